# SPDX-License-Identifier: Apache-2.0
"""The fast path: looked for at the start, never a condition; the whole model is answered with it and without."""

import asyncio
import gc
import importlib
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.conftest import slowdown
from tests.unit import backend_support
from tests.unit.backend_support import Request, Sender, wait_for

pytest.importorskip("msgspec", reason="comes with vLLM: the CPU or CUDA environment")
pytest.importorskip("tokenizers", reason="comes with vLLM: the CPU or CUDA environment")

from tests.unit import fake_vllm
from tests.unit.fake_vllm import ANSWER

PROMPT = "Capital?"
STOPPED_S = 5.0


@pytest.fixture
def fast_path(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    fake_vllm.install(monkeypatch)
    return importlib.import_module("triton_vllm.fast_path")


def test_fast_path_is_there_with_all_that_it_needs(fast_path: Any) -> None:
    assert fast_path.available(fake_vllm.AsyncLLM()) is None


def test_fast_path_names_what_the_engine_lacks_and_the_version(fast_path: Any) -> None:
    llm = fake_vllm.AsyncLLM()
    del llm.engine_core
    llm.engine_core = SimpleNamespace(abort_requests_async=lambda names: None)  # type: ignore[assignment]

    reason = fast_path.available(llm)

    assert reason.startswith("in vLLM 9.9.9 ")
    assert "add_request_async" in reason


def test_fast_path_names_a_call_that_takes_other_arguments(fast_path: Any) -> None:
    llm = fake_vllm.AsyncLLM()
    llm.output_processor.process_outputs = lambda outputs: None  # type: ignore[assignment, misc]

    assert "output_processor.process_outputs takes other arguments" in fast_path.available(llm)


def test_fast_path_names_a_module_that_is_gone(fast_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.metrics.stats", None)

    assert "vllm.v1.metrics.stats" in fast_path.available(fake_vllm.AsyncLLM())


@pytest.mark.parametrize(
    ("params", "stream", "routes"),
    [
        ({}, False, ("FAST_PATH", "TEXT_AT_END")),
        ({}, True, ("FAST_PATH", "VLLM")),
        ({"n": 2}, False, ("TEXT_AT_END", "TEXT_AT_END")),
        ({"n": 2}, True, ("VLLM", "VLLM")),
        ({"logprobs": 0}, False, ("TEXT_AT_END", "TEXT_AT_END")),
        ({"logprobs": 0}, True, ("VLLM", "VLLM")),
        ({"prompt_logprobs": 1}, True, ("VLLM", "VLLM")),
    ],
)
def test_one_sequence_without_probabilities_takes_the_fast_path_where_there_is_one(
    fast_path: Any, params: dict[str, Any], stream: bool, routes: tuple[str, str]
) -> None:
    choose = importlib.import_module("triton_vllm.request").choose_route
    given = fake_vllm.SamplingParams(**params)

    found = [choose(given, stream=stream, own_text=True, fast_path=way) for way in (True, False)]

    assert tuple(route.name for route in found) == routes
    assert choose(given, stream=stream, own_text=False, fast_path=True).name == "VLLM"


class AModel:
    """The backend's model on the stand-in for vLLM."""

    def __init__(self, folder: Any, utils: Any, way: str, **parameters: str) -> None:
        self.log: list[str] = []
        utils.Logger = SimpleNamespace(log_info=self.log.append, log_error=self.log.append, log_warn=self.log.append)
        utils.get_model_dir = lambda: str(folder)
        utils.using_decoupled_model_transaction_policy = lambda config: True
        if not (folder / "model.json").exists():
            (folder / "model.json").write_text('{"model": "a/b"}')
        given = {"FAST_PATH": "no" if way == "generate" else "yes"} | parameters
        config = {"parameters": {name: {"string_value": value} for name, value in given.items()}}
        module = backend_support.load_model(backend_support.BACKEND / "model.py")
        self.model = module.TritonPythonModel()
        self.model.initialize(
            {
                "model_config": json.dumps(config),
                "model_name": "llm",
                "model_version": "1",
                "model_instance_kind": "MODEL",
                "model_instance_device_id": "0",
            }
        )
        self.llm = fake_vllm.AsyncLLM.made[-1]

    def send(self, parameters: str = "", **inputs: Any) -> Sender:
        request, sender = Request(parameters, **inputs), Sender()
        request.get_response_sender = lambda: sender  # type: ignore[attr-defined]
        self.model.execute([request])
        return sender

    def ask(self, parameters: str = "", **inputs: Any) -> list[Any]:
        """Return all responses to a request."""
        sender = self.send(parameters, **inputs)
        wait_for(lambda: sender.closed)
        return [response for response, _ in sender.sent]


@pytest.fixture(params=["fast path", "generate"])
def make_model(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> Iterator[Callable[..., AModel]]:
    utils = backend_support.install(monkeypatch)
    fake_vllm.install(monkeypatch)
    setup = importlib.import_module("triton_vllm.process_setup")
    monkeypatch.setattr(setup, "prepare_process", lambda: None)  # this process is that of all tests
    process = importlib.import_module("triton_vllm.engine_process")
    monkeypatch.setattr(process, "EarlyImport", lambda: nullcontext(SimpleNamespace(offer=lambda: None)))
    # not of all that the tests have made
    collector = SimpleNamespace(collect=lambda: 0, freeze=lambda: None, get_objects=gc.get_objects)
    monkeypatch.setattr(importlib.import_module("triton_vllm.engine"), "gc", collector)
    made: list[AModel] = []

    def make(**parameters: str) -> AModel:
        made.append(AModel(tmp_path, utils, request.param, **parameters))
        return made[-1]

    yield make
    for model in made:
        model.model.finalize()


@pytest.fixture
def a_model(make_model: Callable[..., AModel]) -> AModel:
    return make_model()


def test_engine_killed_before_vllm_can_wait_for_it_is_named_with_its_signal(
    make_model: Callable[..., AModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), name="EngineCore_0")

    def fail(arguments: Any, stat_loggers: Any = None) -> None:
        child.start()
        child.kill()
        child.join()
        raise RuntimeError("See root cause above. Failed core proc(s): {}")

    monkeypatch.setattr(fake_vllm.AsyncLLM, "from_engine_args", fail)

    with pytest.raises(Exception, match=r"vLLM did not start: .*Failed core proc\(s\): \{'EngineCore_0': -9\}"):
        make_model()


def test_whole_answer_has_the_prompt_in_front_unless_it_is_excluded(a_model: AModel) -> None:
    (with_prompt,) = a_model.ask(text_input=PROMPT)
    (without,) = a_model.ask(text_input=PROMPT, exclude_input_in_output=True)

    assert with_prompt.text("text_output") == PROMPT + ANSWER
    assert without.text("text_output") == ANSWER


def test_streamed_pieces_join_to_the_whole(a_model: AModel) -> None:
    responses = a_model.ask(text_input=PROMPT, stream=True, sampling_parameters='{"max_tokens": 50}')

    assert "".join(response.text("text_output") for response in responses) == ANSWER


def test_several_sequences_come_as_several_texts(a_model: AModel) -> None:
    (response,) = a_model.ask(
        text_input=PROMPT, exclude_input_in_output=True, sampling_parameters='{"n": 2, "max_tokens": 50}'
    )

    assert [text.decode() for text in response.tensors["text_output"].values] == [ANSWER, ANSWER]


def test_bad_request_gets_one_error_and_its_neighbour_an_answer(a_model: AModel) -> None:
    (bad,) = a_model.ask(text_input=PROMPT, sampling_parameters='{"temprature": 1}')
    (good,) = a_model.ask(text_input=PROMPT)

    assert 'unknown sampling parameter "temprature"' in bad.error.message
    assert bad.error.code == "invalid"
    assert good.error is None


DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('{"temperature": -1}', "temperature must be non-negative, got -1.0."),
        ('{"max_tokens": 1e999}', "sampling_parameters is not valid JSON: 1e999 is not a finite number"),
        ('{"temperature": NaN}', "NaN is not a finite number"),
        (DEEP, "sampling_parameters is nested too deeply"),
        ('{"structured_outputs": "{"}', "structured_outputs is not valid JSON"),
        ('{"length_penalty": 1}', 'unknown sampling parameter "length_penalty": vLLM had it up to 0.6'),
        ('{"prompt_logprobs": 1}', 'sampling parameter "prompt_logprobs" has no effect'),
    ],
    ids=["refused", "infinite", "nan", "deep", "structured", "retired", "no-effect"],
)
def test_request_that_cannot_be_served_is_an_invalid_argument_in_upstreams_words(
    a_model: AModel, parameters: str, message: str
) -> None:
    (response,) = a_model.ask(text_input=PROMPT, sampling_parameters=parameters)

    assert response.error.message.startswith("Error generating stream: ")
    assert message in response.error.message
    assert response.error.code == "invalid"
    assert any(line.startswith("[vllm] Error generating stream: ") for line in a_model.log)


@pytest.mark.parametrize("parameters", ['{"max_tokens": null}', "", '{"seed": 1}'])
def test_value_that_vllm_takes_is_taken(a_model: AModel, parameters: str) -> None:
    (response,) = a_model.ask(text_input=PROMPT, exclude_input_in_output=True, sampling_parameters=parameters)

    assert response.text("text_output") == ANSWER


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no such token"), "invalid", "Error generating stream: no such token"),
        (fake_vllm.VLLMClientError("no such token"), "invalid", "Error generating stream: no such token"),
        (OverflowError("int too big"), "invalid", "Error generating stream: int too big"),
        (OSError("cannot read /root/.cache/key"), "internal", "vLLM failed on this request (OSError)"),
    ],
)
def test_error_of_vllm_is_the_clients_or_the_servers_and_names_no_path(
    a_model: AModel, error: Exception, code: str, said: str
) -> None:
    a_model.llm.refuses[PROMPT] = error

    (response,) = a_model.ask(text_input=PROMPT)

    assert said in response.error.message
    assert response.error.code == code
    assert "/root" not in response.error.message


def test_stream_that_shall_repeat_the_prompt_is_refused_in_upstreams_words(a_model: AModel) -> None:
    (response,) = a_model.ask(text_input=PROMPT, stream=True, exclude_input_in_output=False)

    wanted = "Error generating stream: When streaming, `exclude_input_in_output` = False is not allowed."
    assert response.error.message == wanted


@pytest.fixture
def adapters(tmp_path: Any) -> None:
    """A model with two LoRA adapters, `enable_lora` written as in upstream's samples."""
    (tmp_path / "model.json").write_text('{"model": "a/b", "enable_lora": "true"}')
    (tmp_path / "multi_lora.json").write_text('{"alpaca": "/loras/alpaca", "wizard": "wizard"}')
    (tmp_path / "wizard").mkdir()


def test_request_that_names_an_adapter_is_answered_by_it(adapters: None, a_model: AModel, tmp_path: Any) -> None:
    given = {"lora_name": "wizard", "max_tokens": 50}

    (response,) = a_model.ask(text_input=PROMPT, exclude_input_in_output=True, sampling_parameters=json.dumps(given))
    (without,) = a_model.ask(text_input=PROMPT, exclude_input_in_output=True)

    assert response.text("text_output") == f"wizard: {ANSWER}"
    assert without.text("text_output") == ANSWER
    loaded = [(lora.lora_name, lora.lora_int_id, lora.lora_path) for lora in a_model.llm.loras]
    assert loaded == [("alpaca", 1, "/loras/alpaca"), ("wizard", 2, str(tmp_path / "wizard"))]


def test_adapter_that_is_not_there_is_refused_in_upstreams_words(adapters: None, a_model: AModel) -> None:
    (response,) = a_model.ask(text_input=PROMPT, sampling_parameters='{"lora_name": "bactrian"}')

    wanted = "LoRA bactrian is not supported, we currently support ['alpaca', 'wizard']"
    assert response.error.message == wanted


def test_adapter_without_lora_is_refused_in_upstreams_words(a_model: AModel) -> None:
    (response,) = a_model.ask('{"lora_name": "alpaca"}', text_input=PROMPT)

    assert response.error.message == "LoRA feature is not enabled."


def test_lora_without_its_file_is_an_error_of_the_start_in_upstreams_words(
    make_model: Callable[..., AModel], tmp_path: Any
) -> None:
    (tmp_path / "model.json").write_text('{"model": "a/b", "enable_lora": true}')

    with pytest.raises(backend_support.TritonModelException) as raised:
        make_model()

    assert str(raised.value) == f"Triton backend cannot find {tmp_path / 'multi_lora.json'}."


def test_additional_outputs_come_only_as_asked_for(a_model: AModel) -> None:
    given = '{"max_tokens": 5, "logprobs": 1}'
    (plain,) = a_model.ask(text_input=PROMPT, sampling_parameters=given)
    switches = {f"return_{name}": True for name in ("finish_reason", "logprobs", "num_input_tokens")}

    (response,) = a_model.ask(text_input=PROMPT, sampling_parameters=given, **switches)

    assert set(plain.tensors) == {"text_output"}
    assert set(response.tensors) == {"text_output", "finish_reason", "logprobs", "num_input_tokens"}
    assert response.text("finish_reason") == "length"
    assert list(response.tensors["num_input_tokens"].values) == [len(PROMPT)]
    logprobs = json.loads(response.text("logprobs"))
    assert len(logprobs) == 5
    assert list(logprobs[0].values()) == [{"logprob": -0.5, "rank": 1, "decoded_token": "x"}]


def test_additional_outputs_of_a_stream_tell_what_is_new_and_add_up(a_model: AModel) -> None:
    switches = {f"return_{name}": True for name in ("finish_reason", "cumulative_logprob", "num_output_tokens")}

    responses = a_model.ask(text_input=PROMPT, stream=True, sampling_parameters='{"max_tokens": 50}', **switches)

    reasons = [response.text("finish_reason") for response in responses]
    assert reasons == ["None"] * (len(responses) - 1) + ["stop"]
    tokens = sum(int(response.tensors["num_output_tokens"].values[0]) for response in responses)
    assert tokens == len(ANSWER.encode()) + 1
    assert float(responses[-1].tensors["cumulative_logprob"].values[0]) < 0
    assert "".join(response.text("text_output") for response in responses) == ANSWER


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("limit", "tokens", "reason"), [(5, 5, "length"), (50, len(ANSWER.encode()) + 1, "stop")], ids=["length", "stop"]
)
def test_reason_and_numbers_of_tokens_are_told_without_leaving_the_fast_path(
    a_model: AModel, stream: bool, limit: int, tokens: int, reason: str
) -> None:
    names = ("finish_reason", "num_input_tokens", "num_output_tokens")
    given = {"sampling_parameters": json.dumps({"max_tokens": limit}), "stream": stream}
    given |= {"text_input": PROMPT, "exclude_input_in_output": True}

    told = a_model.ask(**given, **{f"return_{name}": True for name in names})
    untold = a_model.ask(**given)

    assert [response.text("finish_reason") for response in told] == ["None"] * (len(told) - 1) + [reason]
    assert {int(response.tensors["num_input_tokens"].values[0]) for response in told} == {len(PROMPT)}
    assert sum(int(response.tensors["num_output_tokens"].values[0]) for response in told) == tokens
    said = ["".join(response.text("text_output") for response in responses) for responses in (told, untold)]
    assert said[0] == said[1]
    assert [set(response.tensors) for response in untold] == [{"text_output"}] * len(untold)
    assert bool(a_model.llm.generated) == any("no fast path" in line for line in a_model.log)


def test_probabilities_for_one_request_are_not_made_for_the_next(a_model: AModel) -> None:
    for _ in range(2):  # both kinds are known the second time
        (added,) = a_model.ask(text_input=PROMPT, return_cumulative_logprob=True)
        asked = len(a_model.llm.generated)
        (plain,) = a_model.ask(text_input=PROMPT, return_finish_reason=True)

        assert float(added.tensors["cumulative_logprob"].values[0]) < 0
        assert added.text("text_output") == plain.text("text_output")
        assert (len(a_model.llm.generated) > asked) == any("no fast path" in line for line in a_model.log)


def test_logprobs_that_were_not_asked_for_are_null(a_model: AModel) -> None:
    (response,) = a_model.ask(text_input=PROMPT, return_logprobs=True, return_cumulative_logprob=True)

    assert response.text("logprobs") == "null"


def test_priority_without_the_schedule_for_it_is_refused(a_model: AModel) -> None:
    (refused,) = a_model.ask(text_input=PROMPT, sampling_parameters='{"priority": 1}')
    a_model.llm.vllm_config.scheduler_config.policy = "priority"
    (taken,) = a_model.ask(text_input=PROMPT, sampling_parameters='{"priority": 1}')

    assert 'priority has no effect: model.json needs "scheduling_policy": "priority"' in refused.error.message
    assert taken.error is None


def test_cancelled_request_leaves_the_engine(a_model: AModel) -> None:
    a_model.llm.engine_core.step = lambda: asyncio.sleep(60)  # type: ignore[method-assign]
    sender = a_model.send(text_input=PROMPT)

    sender.cancelled = True
    wait_for(lambda: sender.closed)

    ((response, _),) = sender.sent
    assert response is not None
    assert response.error.code == "cancelled"
    said = [line for line in a_model.log if "the request" in line]
    assert said == ["[vllm] Cancelling the request", "[vllm] Successfully cancelled the request"]


def test_engine_that_dies_is_said_to_every_client(a_model: AModel) -> None:
    a_model.llm.engine_core.dead = True

    (response,) = a_model.ask(text_input=PROMPT)

    assert response.error.code == "unavailable"


@pytest.mark.parametrize("refused", [False, True])
def test_dead_engine_unloads_a_model_that_checks_its_health(
    make_model: Callable[..., AModel], monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    monkeypatch.setattr(importlib.import_module("triton_vllm.engine"), "HEALTH_POLL_S", 0.01)
    unloaded: list[str] = []

    def unload(name: str) -> None:
        unloaded.append(name)
        if refused:
            raise RuntimeError("not allowed")

    sys.modules["triton_python_backend_utils"].unload_model = unload  # type: ignore[attr-defined]
    model = make_model(ENABLE_VLLM_HEALTH_CHECK="true")
    assert model.ask(text_input=PROMPT)[0].error is None

    model.llm.engine_core.dead = True
    wait_for(lambda: bool(unloaded))
    (response,) = model.ask(text_input=PROMPT)

    assert unloaded == ["llm"]
    assert response.error.message == "Model is unavailable due to unhealthy vLLM engine"
    assert response.error.code == "unavailable"
    if refused:
        wait_for(lambda: "llm stays loaded: not allowed" in model.log[-1])


def test_only_a_model_without_the_fast_path_says_so_and_asks_generate(a_model: AModel) -> None:
    a_model.ask(text_input=PROMPT)

    said = [line for line in a_model.log if "no fast path" in line]
    assert len(said) == bool(a_model.llm.generated)
    assert all('FAST_PATH is "no"' in line for line in said)


def test_stop_ends_an_engine_and_its_workers_that_do_not_end_by_themselves(make_model: Callable[..., AModel]) -> None:
    model = make_model()
    engine = multiprocessing.get_context("spawn").Process(target=subprocess.run, args=(["sleep", "600"],))
    engine.start()
    wait_for(lambda: bool(psutil.Process(engine.pid).children()), seconds=60.0)
    (worker,) = psutil.Process(engine.pid).children()
    model.llm.shutdown = engine.join  # type: ignore[method-assign]

    begin = time.monotonic()
    model.model.finalize()
    del model.model.engine  # finalized once

    assert time.monotonic() - begin < STOPPED_S * slowdown()
    assert engine.exitcode == -signal.SIGKILL
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
