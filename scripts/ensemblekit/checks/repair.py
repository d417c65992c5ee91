# SPDX-License-Identifier: Apache-2.0
"""Exercise 2: an ensemble's four mistakes, one after the other, and what the server said to each attempt."""

from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from ensemblekit.checks.task import UNTOUCHED, Mistake, task
from ensemblekit.clients.http import LoadAnswer

__all__ = ["input_name", "model_name", "output_type", "platform"]

MODELS = ["preprocess", "llm", "postprocess"]
INPUTS = {name: name for name in ("chat_input", "sampling_parameters", "stream")}
REFUSED_UNREAD = 500  # the load API's status for a configuration that the server could not even read
LOADED = 200


@task("the server can read the configuration")
def platform(config: ModelConfig, answer: LoadAnswer) -> Iterator[Mistake]:
    """Check the platform."""
    found = config.platform
    if config.backend:
        yield Mistake(f"backend {config.backend!r}", "an ensemble is a platform and has no backend: clear that field")
    if found == "ensembles":
        yield UNTOUCHED
    if not found:
        yield Mistake("no platform at all", "the field must say what this model is: correct the word, do not remove it")
    if found != "ensemble" and found.strip().lower() == "ensemble":
        yield Mistake(f"platform {found!r}", "Triton compares letter by letter: lower case, and no blank")
    if found != "ensemble":
        yield Mistake(
            f"platform {found!r}", "the model is an ensemble, in the singular; the other models' words do not fit"
        )
    if answer.status == REFUSED_UNREAD:
        yield Mistake(str(answer), "something else cannot be read now: print last_refusal(server)")


@task("every step names a model that is there")
def model_name(config: ModelConfig, answer: LoadAnswer) -> Iterator[Mistake]:
    """Check the models of the three steps."""
    names = [step.model_name for step in config.ensemble_scheduling.step]
    if len(names) < len(MODELS):
        yield Mistake(
            f"the steps {names}", "a step is gone, and with it a part of the pipeline: keep three, correct a name"
        )
    if len(names) > len(MODELS):
        yield Mistake(f"the steps {names}", "a step was added: correct the name in the step that is there")
    if names == ["preprocess", "lmm", "postprocess"]:
        yield UNTOUCHED
    if names[1] != "llm" and names[1].strip().lower() == "llm":
        yield Mistake(f"the model {names[1]!r}", "a model's name is its folder's: lower case, and no blank")
    if names[1] in MODELS and names[1] != "llm":
        yield Mistake(
            f"the model {names[1]!r} twice", "that model has a step already: this one is the language model's"
        )
    if names[1] != "llm":
        about = f"the model {names[1]!r}"
        yield Mistake(about, "no folder of the repository has that name: print(repository.tree()) shows them")
    if names != MODELS:
        yield Mistake(f"the steps {names}", "another step's name was changed: only one was misspelt")
    yield from _refused_unread(answer)


@task("every step's input is one that the model has")
def input_name(config: ModelConfig, answer: LoadAnswer) -> Iterator[Mistake]:
    """Check the input map of the first step."""
    inputs = dict(config.ensemble_scheduling.step[0].input_map)
    if config.input[0].name != "chat_input":
        about = f"the ensemble's own input is {config.input[0].name!r} now"
        yield Mistake(
            about, "clients send chat_input: change the key in the step's input_map, not the ensemble's input"
        )
    if inputs == {"question": "chat_input"} | {name: name for name in INPUTS if name != "chat_input"}:
        yield UNTOUCHED
    if "question" in inputs and "chat_input" in inputs:
        yield Mistake(f"both names: {inputs}", "the old key is still there: delete it")
    if "question" in inputs:
        yield Mistake(
            f"the key 'question': {inputs}", "the key, not the value, is the name that preprocess does not have"
        )
    if not inputs:
        yield Mistake("an empty input_map", "only one key was wrong: put the other entries back")
    if lost := [name for name in INPUTS if name not in inputs and name != "chat_input"]:
        yield Mistake(f"no {' and no '.join(lost)}", "these entries were right: put them back")
    if len(inputs) < len(INPUTS):
        yield Mistake(
            f"no entry for the question: {inputs}", "deleting is not renaming: preprocess would get no question"
        )
    if "chat_input" not in inputs:
        wrong = ", ".join(inputs.keys() - INPUTS.keys())
        yield Mistake(f"the key {wrong!r}", "preprocess has no such input: print(repository.config_text('preprocess'))")
    if inputs["chat_input"] != "chat_input":
        about = f"chat_input comes from {inputs['chat_input']!r}"
        yield Mistake(about, "the value was right: it names the ensemble's tensor. Only the key was wrong")
    if inputs != INPUTS:
        yield Mistake(f"{inputs}", "another entry was changed: only one key was wrong")
    yield from _refused_unread(answer)


@task("the ensemble loads")
def output_type(config: ModelConfig, answer: LoadAnswer) -> Iterator[Mistake]:
    """Check the type of the ensemble's output."""
    names = DataType.Name
    if [output.name for output in config.output] != ["text_output"]:
        about = f"the outputs {[output.name for output in config.output]}"
        yield Mistake(about, "the ensemble's one output is text_output: keep it, and correct its type")
    found = config.output[0].data_type
    wrong = [field.name for field in config.input[:2] if names(field.data_type) != "TYPE_STRING"]
    if wrong:
        yield Mistake(
            f"the input {wrong[0]} is no text any more", "the input's type was right: the output has the wrong one"
        )
    if names(found) == "TYPE_INT32":
        yield UNTOUCHED
    if names(found) != "TYPE_STRING":
        about = f"{names(found)} ({found})"
        yield Mistake(about, "the output is what postprocess writes: print(repository.config_text('postprocess'))")
    if list(config.output[0].dims) != [-1]:
        yield Mistake(f"dims {list(config.output[0].dims)}", "the shape was right: [-1], any number of texts")
    if answer.status != LOADED:
        yield Mistake(str(answer), "read what the server says; something besides the type differs")


def _refused_unread(answer: LoadAnswer) -> Iterator[Mistake]:
    if answer.status == REFUSED_UNREAD:
        yield Mistake(str(answer), "an earlier repair is undone: print last_refusal(server)")
