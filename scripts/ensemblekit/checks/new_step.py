# SPDX-License-Identifier: Apache-2.0
"""Exercise 3: a function that changes text, its step in the ensemble, and the answers that come out."""

from collections.abc import Callable, Iterator
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from ensemblekit.checks.task import UNTOUCHED, Mistake, excerpt, lint_mistakes, start, task
from ensemblekit.clients.grpc import Answer
from ensemblekit.repository.stage import StagedRepository

__all__ = ["answered", "capitals", "start", "wiring"]

STEPS_BEFORE, NEW = 3, "capitals"
PLAIN, ACCENTED, PIECE = b"the Sea, 3 km", "é".encode(), b" sea"


@task("the function writes capital letters, accents too")
def capitals(change: Callable[[bytes], Any]) -> Iterator[Mistake]:
    """Check the function on plain text, on an accent, and on the piece of a stream."""
    plain = change(PLAIN)
    if plain is None:
        yield Mistake("the function returns nothing", "end it with `return`: printing is not returning")
    if isinstance(plain, str):
        yield Mistake(
            f"it returns a str: {plain!r}", "a STRING tensor holds bytes: encode the text before you return it"
        )
    if not isinstance(plain, bytes):
        yield Mistake(f"it returns a {type(plain).__name__}", "return bytes, as it was given")
    if plain == PLAIN:
        yield Mistake(f"{plain!r} comes back unchanged", "text has methods for this; they return a new text")
    if plain == PLAIN.swapcase():
        yield Mistake(f"{plain!r}", "that exchanges capitals and small letters: a capital must stay one")
    if plain in (PLAIN.title(), PLAIN.capitalize()):
        yield Mistake(f"{plain!r}", "every letter is to be a capital, not the first of a word or of the text only")
    if plain == PLAIN.lower():
        yield Mistake(f"{plain!r}", "those are small letters")
    if plain != PLAIN.upper():
        yield Mistake(f"{PLAIN!r} becomes {plain!r}", "only the letters change: nothing is added, nothing left out")
    accented = change(ACCENTED)
    if accented == ACCENTED:
        hint = (
            "upper() of bytes knows ASCII only, and another code than UTF-8 sees other letters: decode as UTF-8 first"
        )
        yield Mistake("é stays é", hint)
    if accented in (b"", b"?", "\N{REPLACEMENT CHARACTER}".encode()):
        yield Mistake(
            f"é becomes {accented!r}", "the bytes are UTF-8: ASCII has no é, and ignoring errors loses letters"
        )
    if accented != "É".encode():
        yield Mistake(f"é becomes {accented!r}", "the bytes are UTF-8 before and after: decode and encode with that")
    if change(PIECE) != PIECE.upper():
        yield Mistake(
            f"{PIECE!r} becomes {change(PIECE)!r}", "a piece begins with the blank before its word: do not strip it"
        )
    if change(b"") != b"":
        yield Mistake(
            f"an empty text becomes {change(b'')!r}", "the last piece of a stream may be empty: it must stay so"
        )


@task("the new step makes the ensemble's answer")
def wiring(repository: StagedRepository, config: ModelConfig) -> Iterator[Mistake]:
    """Check the steps of an ensemble, and then what lint knows of the whole repository."""
    steps = list(config.ensemble_scheduling.step)
    by_model = {step.model_name: step for step in steps}
    writes = by_model["postprocess"].output_map["text_output"] if "postprocess" in by_model else ""
    if len(steps) == STEPS_BEFORE and writes == "text_output" and NEW not in by_model:
        yield UNTOUCHED
    if missing := [name for name in ("preprocess", "llm", "postprocess") if name not in by_model]:
        yield Mistake(
            f"no step of {missing[0]}", "the three steps stay; the new one is added: run the notebook from its top"
        )
    if len(steps) == STEPS_BEFORE:
        yield Mistake("still three steps", "steps.add(...) appends one")
    if NEW not in by_model:
        about = f"a step of {steps[-1].model_name!r}"
        yield Mistake(about, f"the new model is called {NEW}, as in add_variant: a step names the folder exactly")
    if len(steps) > STEPS_BEFORE + 1:
        about = f"{len(steps)} steps"
        yield Mistake(
            about, "the cell ran more than once, and each run adds a step: run the cell that reads config again"
        )
    yield from _of_new_step(by_model[NEW], writes)
    if writes == "text_output":
        yield Mistake(
            "postprocess and capitals both write text_output", "postprocess has to write an intermediate tensor now"
        )
    yield from lint_mistakes(repository)


def _of_new_step(step: Any, postprocess_writes: str) -> Iterator[Mistake]:
    inputs, outputs = dict(step.input_map), dict(step.output_map)
    if step.model_version != -1:
        about = f"model_version {step.model_version}"
        yield Mistake(
            f"E212: {about}", "-1 asks for the latest version; without it a step asks for version 0, which is not there"
        )
    if not inputs:
        yield Mistake(
            "the new step has no input_map", "tell it what to read: its tensor as key, the ensemble's as value"
        )
    if not outputs:
        yield Mistake(
            "the new step has no output_map", "tell it where to write: its tensor as key, the ensemble's as value"
        )
    if set(inputs) != {"generated"} and "generated" in inputs.values():
        yield Mistake(
            f"input_map {inputs}", "key and value are exchanged, or the tensor is another: the key is the model's"
        )
    if set(inputs) != {"generated"}:
        yield Mistake(
            f"input_map {inputs}", "the model's only input is `generated`: print(repository.config_text('capitals'))"
        )
    if set(outputs) != {"text_output"}:
        yield Mistake(
            f"output_map {outputs}", "the model's only output is `text_output`, and the key is the model's tensor"
        )
    if outputs["text_output"] != "text_output":
        about = f"the new step writes {outputs['text_output']!r}"
        yield Mistake(about, "what the ensemble returns is text_output: the last step has to write that")
    read = inputs["generated"]
    if read == "text_output":
        yield Mistake(
            "the new step reads text_output", "that is what it writes itself: let it read what postprocess writes"
        )
    if read == "generated":
        about = "the new step reads what llm writes"
        yield Mistake(about, "it would miss postprocess's work: let it read the tensor that postprocess writes")
    if read != postprocess_writes and postprocess_writes != "text_output":
        about = f"postprocess writes {postprocess_writes!r}, the new step reads {read!r}"
        yield Mistake(about, "both names have to be the same")


@task("the answer is in capitals, and so is each piece of a stream")
def answered(whole: Answer, streamed: Answer) -> Iterator[Mistake]:
    """Check a whole and a streamed answer to the same question."""
    if not whole.text.isupper():
        yield Mistake(excerpt(whole.text), "the server runs, but the new step changes nothing: look at change()")
    if streamed.text != whole.text:
        yield Mistake(
            excerpt(streamed.pieces), "joined, the pieces are not the whole answer: does change() keep blanks?"
        )
    if len(streamed.pieces) < 2:
        yield Mistake(excerpt(streamed.pieces), "the answer comes as one piece: ask with streaming=True")
