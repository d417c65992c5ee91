# SPDX-License-Identifier: Apache-2.0
"""The kit's vLLM backend with a real vLLM and a real model on the CPU, inside the real Triton 24.08."""

import asyncio
import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

pytest.importorskip("vllm", reason="needs vLLM: the CPU or CUDA environment, not the quick one")

from safetensors.numpy import save_file
from transformers import AutoTokenizer

from ensemblekit.assets.weights import ensure_checkpoint
from ensemblekit.clients.grpc import ask, ask_many, stream
from ensemblekit.clients.http import ask_http, load_model, model_states, stream_http
from ensemblekit.diagnose.alive import DEADLINE_S, ask_alive
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.errors import RequestError
from ensemblekit.releases import get_release
from ensemblekit.repository.config import set_parameter, write_config
from ensemblekit.repository.read import read_config
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import ServerOptions, TritonServer
from ensemblekit.servers.supervised import wait_until
from tests.conftest import slowdown
from tests.faults.conftest import LONG as LONG_FORM

RELEASE = "24.08"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
GREEDY = {"max_tokens": 128, "temperature": 0.0}
LONG = {"max_tokens": 1000, "ignore_eos": True, "temperature": 0.0}
COUNTRIES = (
    *("France", "Italy", "Spain", "Germany", "Portugal", "Greece", "Austria", "Poland"),
    *("Japan", "China", "India", "Egypt", "Russia", "Canada", "Mexico", "Sweden"),
)
SLIPS = 3  # so small a model answers about another country now and then; mixed-up answers would all be wrong
LORA = {"max_loras": 2, "max_lora_rank": 8}
PROMPT_TOKENS = 37  # of QUESTION in the model's chat template
CONVERSATION_TOKENS = 49  # of `conversation`
RUNNING = "vllm:num_requests_running"
CANCELLED_WITHIN_S = 1.0
METRIC_S = 0.5  # between two looks at a metric
ENGINE_STOPPED_S = 4.0  # 1.5 s alone; of the whole stop, the rest is Triton's
START_TIMEOUT_S = 600.0  # 25 s alone on two cores; other tests may run beside

pytestmark = [pytest.mark.server, pytest.mark.slow]
both = pytest.mark.parametrize("model", ["llm", "ensemble"])


def metric_value(server: TritonServer, name: str) -> float | None:
    """Return the sum of a metric over its labels, None if the server has no such metric."""
    text = httpx.get(f"http://{server.metrics_url}/metrics", timeout=60, trust_env=False).text
    values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(values) if values else None


def settled(server: TritonServer, name: str) -> float:
    """Return a metric once it says the same twice: a thread of their own sends them, after the answers."""
    before, now = -1.0, metric_value(server, name) or 0.0
    while before != now:
        time.sleep(METRIC_S)
        before, now = now, metric_value(server, name) or 0.0
    return now


@pytest.fixture(scope="module", params=["yes", "no"], ids=["fast-path", "generate"])
def a_real_vllm_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """One server for each way to vLLM, for the whole file: loading vLLM is most of its time."""
    folder = tmp_path_factory.mktemp("vllm")
    source = ensure_checkpoint()
    repository = stage_repository(
        folder / "repository", source=source, device="cpu", engine_arguments=LORA | {"enable_lora": True}
    )
    make_adapters(repository.path / "llm" / "1", Path(source.engine_model))
    config = read_config(repository.path / "llm")
    set_parameter(config, "FAST_PATH", request.param)
    write_config(config, repository.path / "llm" / "config.pbtxt")
    installation = install_embedded(get_release(RELEASE), "base-plus-vllm", folder)
    server = TritonServer(installation, repository.path, folder, environment=repository.environment)
    try:
        yield server.start(START_TIMEOUT_S)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def a_prompt(a_real_vllm_server: TritonServer) -> str:
    """The question as the language model gets it."""
    return ask(a_real_vllm_server, QUESTION, model="preprocess").text


def text_for(model: str, prompt: str) -> str:
    """What to send to a model so that the language model sees the same prompt."""
    return prompt if model == "llm" else QUESTION


def test_preprocess_with_the_tokenizer_writes_the_prompt_of_the_plain_template(a_prompt: str) -> None:
    assert a_prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )


@both
def test_greedy_answer_is_the_known_one(a_real_vllm_server: TritonServer, a_prompt: str, model: str) -> None:
    answer = ask(a_real_vllm_server, text_for(model, a_prompt), model=model, sampling_parameters=GREEDY)

    assert answer.pieces == (ANSWER,)


@both
def test_streamed_pieces_join_to_the_whole(a_real_vllm_server: TritonServer, a_prompt: str, model: str) -> None:
    text = text_for(model, a_prompt)

    answer = ask(a_real_vllm_server, text, model=model, sampling_parameters=GREEDY, streaming=True)

    assert answer.text == ANSWER
    assert len(answer.pieces) >= len(ANSWER.split())


@pytest.mark.parametrize(
    "question", ["Write only emojis: 😀🎉", "Écris en français et en 中文."], ids=["emojis", "accents"]
)
def test_text_beyond_ascii_is_the_same_decoded_at_the_end_by_piece_and_by_vllm(
    a_real_vllm_server: TritonServer, question: str
) -> None:
    short = GREEDY | {"max_tokens": 61}  # ends inside a character of several tokens, if one is there

    at_end = ask(a_real_vllm_server, question, sampling_parameters=short)
    by_piece = ask(a_real_vllm_server, question, sampling_parameters=short, streaming=True)
    by_vllm = ask(a_real_vllm_server, question, sampling_parameters=short | {"stop": ["no such text"]})

    assert at_end.text == by_piece.text == by_vllm.text


def test_generate_and_generate_stream_give_the_same_text(a_real_vllm_server: TritonServer) -> None:
    assert ask_http(a_real_vllm_server, QUESTION) == ANSWER
    assert "".join(stream_http(a_real_vllm_server, QUESTION)) == ANSWER


def test_llm_unasked_puts_the_prompt_in_front(a_real_vllm_server: TritonServer, a_prompt: str) -> None:
    reply = generate(a_real_vllm_server, "llm", text_input=a_prompt, sampling_parameters=json.dumps(GREEDY))

    assert reply.json()["text_output"] == a_prompt + ANSWER


@both
def test_request_parameters_stand_in_for_the_json_tensor(
    a_real_vllm_server: TritonServer, a_prompt: str, model: str
) -> None:
    text = {"text_input": a_prompt, "exclude_input_in_output": True} if model == "llm" else {"chat_input": QUESTION}

    reply = generate(a_real_vllm_server, model, **text, max_tokens="3", temperature=0)

    assert reply.json()["text_output"] == "The capital of"


def test_n_sequences_come_as_n_texts(a_real_vllm_server: TritonServer) -> None:
    parameters = {"n": 3, "temperature": 1.0, "seed": 7, "max_tokens": 8}

    reply = generate(
        a_real_vllm_server,
        "ensemble",
        chat_input="Say something.",
        sampling_parameters=json.dumps(parameters),
    )

    assert len(reply.json()["text_output"]) == 3


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ('{"temprature": 1}', 'unknown sampling parameter "temprature"; did you mean "temperature"?'),
        ('{"temperature": "hot"}', 'sampling parameter "temperature": Expected `float`'),
        ('{"temperature": -1}', "temperature must be non-negative"),
        ('{"n": 65}', "n must be at most 64, got 65"),
        ('{"structured_outputs": {"regex": "a", "choice": ["b"]}}', "You can only use one kind of structured outputs"),
        ('{"max_tokens": 0}', "max_tokens must be at least 1"),
        ('{"detokenize": false}', 'unknown sampling parameter "detokenize"'),
        ('{"max_tokens": 5', "sampling_parameters is not valid JSON"),
        ("[1]", "sampling_parameters must be a JSON object"),
    ],
    ids=["unknown", "wrong-type", "refused", "too-many", "two-constraints", "zero", "reserved", "cut-json", "list"],
)
@both
def test_bad_sampling_parameters_give_one_clear_error(
    a_real_vllm_server: TritonServer, model: str, parameters: str, text: str
) -> None:
    name = "text_input" if model == "llm" else "chat_input"

    reply = generate(a_real_vllm_server, model, **{name: QUESTION}, sampling_parameters=parameters)

    assert reply.status_code == httpx.codes.BAD_REQUEST
    assert "Error generating stream: " in reply.json()["error"] or model != "llm"
    assert text in reply.json()["error"]
    assert "N/A" not in reply.text


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", "text_input is empty"),
        ("word " * 3000, "tokens; this model's context (max_model_len) holds 2048"),
    ],
    ids=["empty", "longer-than-the-context"],
)
def test_a_prompt_that_cannot_be_served_gives_one_clear_error(
    a_real_vllm_server: TritonServer, prompt: str, text: str
) -> None:
    with pytest.raises(RequestError, match="says") as raised:
        ask(a_real_vllm_server, prompt, model="llm")

    assert text in raised.value.found


@pytest.mark.parametrize(("country", "capital"), [("France", "Paris"), ("Spain", "Madrid")])
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
def test_last_question_of_a_conversation_is_answered_with_what_was_said_before(
    a_real_vllm_server: TritonServer, country: str, capital: str, streaming: bool
) -> None:
    asked = json.dumps(conversation(country))

    answer = ask(a_real_vllm_server, asked, sampling_parameters=GREEDY, streaming=streaming)

    assert answer.text == f"The capital of {country} is {capital}."


def test_prompt_of_a_conversation_holds_every_turn_once_and_its_own_system_message(
    a_real_vllm_server: TritonServer,
) -> None:
    turns = conversation("France")

    prompt = ask(a_real_vllm_server, json.dumps(turns), model="preprocess").text

    written = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    assert prompt == f"{written}<|im_start|>assistant\n"


def test_conversation_is_encoded_once_and_by_llm_alone(a_real_vllm_server: TritonServer) -> None:
    """A text encoded twice, or with a mark put before it twice, has other tokens than the model's own template."""
    asked = json.dumps(conversation("France"))
    prompt = ask(a_real_vllm_server, asked, model="preprocess").text
    before = settled(a_real_vllm_server, "vllm:prompt_tokens_total")

    (part,) = generate_parts(
        a_real_vllm_server,
        text_input=prompt,
        sampling_parameters='{"max_tokens": 1}',
        return_num_input_tokens=True,
    )
    ask(a_real_vllm_server, asked, sampling_parameters={"max_tokens": 1})

    source = AutoTokenizer.from_pretrained(ensure_checkpoint().engine_model)
    ids = source.apply_chat_template(conversation("France"), add_generation_prompt=True, return_dict=False)
    assert part["num_input_tokens"] == len(ids) == CONVERSATION_TOKENS
    assert settled(a_real_vllm_server, "vllm:prompt_tokens_total") == before + 2 * CONVERSATION_TOKENS


def test_conversation_longer_than_the_context_is_one_clear_error_and_harms_no_other(
    a_real_vllm_server: TritonServer,
) -> None:
    turns = conversation("France")
    long = [*turns[:2], {"role": "assistant", "content": "word " * 3000}, *turns[3:]]

    reply = generate(a_real_vllm_server, "ensemble", chat_input=json.dumps(long))

    assert reply.status_code == httpx.codes.BAD_REQUEST
    assert "tokens; this model's context (max_model_len) holds 2048" in reply.json()["error"]
    assert ask(a_real_vllm_server, QUESTION, sampling_parameters=GREEDY).text == ANSWER


@pytest.mark.parametrize("text", ['["red", "green"]', "[1, 2"], ids=["a-list", "cut-json"])
def test_text_that_is_no_conversation_stays_a_question(a_real_vllm_server: TritonServer, text: str) -> None:
    prompt = ask(a_real_vllm_server, text, model="preprocess").text

    assert f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" in prompt
    assert ask(a_real_vllm_server, text, sampling_parameters=GREEDY | {"max_tokens": 4}).text


def test_a_stream_that_shall_repeat_the_prompt_is_refused(a_real_vllm_server: TritonServer) -> None:
    reply = generate(a_real_vllm_server, "llm", text_input="a", stream=True, exclude_input_in_output=False)

    assert "When streaming, `exclude_input_in_output` = False is not allowed." in reply.json()["error"]


def test_sixteen_at_once_are_answered_each_its_own_and_a_bad_one_harms_no_other(
    a_real_vllm_server: TritonServer,
) -> None:
    # Whole texts are not compared: in a batch bfloat16 rounds differently, and greedy answers may differ.
    questions = [f"What is the capital of {country}?" for country in COUNTRIES]

    async def all_and_a_bad_one() -> tuple[list[str], object]:
        good = ask_many(a_real_vllm_server, questions, sampling_parameters=GREEDY)
        bad = ask_many(a_real_vllm_server, [QUESTION], sampling_parameters={"bogus": 1})
        answers, error = await asyncio.gather(good, bad, return_exceptions=True)
        return [answer.text for answer in answers], error

    texts, error = asyncio.run(all_and_a_bad_one())

    assert isinstance(error, RequestError)
    assert len(texts) == 16
    named = [country in text for country, text in zip(COUNTRIES, texts, strict=True)]
    assert sum(named) >= 16 - SLIPS


def test_a_cancelled_stream_leaves_the_engine_within_a_second(a_real_vllm_server: TritonServer, a_prompt: str) -> None:
    pieces = stream(a_real_vllm_server, a_prompt, model="llm", sampling_parameters=LONG)
    for _ in range(3):
        next(pieces)
    assert wait_until(lambda: metric_value(a_real_vllm_server, RUNNING) == 1 or None, 30.0)

    pieces.close()
    time.sleep(CANCELLED_WITHIN_S * slowdown())

    assert metric_value(a_real_vllm_server, RUNNING) == 0
    log = a_real_vllm_server.log_path.read_text(errors="replace")
    assert "[vllm] Cancelling the request" in log
    assert "[vllm] Successfully cancelled the request" in log


def test_a_cancelled_request_without_stream_leaves_the_engine_within_a_second(
    a_real_vllm_server: TritonServer, a_prompt: str
) -> None:
    async def ask_and_leave() -> None:
        question = ask_many(a_real_vllm_server, [a_prompt], model="llm", sampling_parameters=LONG)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(question, 2.0)

    asyncio.run(ask_and_leave())
    time.sleep(CANCELLED_WITHIN_S * slowdown())

    assert metric_value(a_real_vllm_server, RUNNING) == 0


def test_each_request_is_answered_by_the_adapter_it_names(a_real_vllm_server: TritonServer, a_prompt: str) -> None:
    short = GREEDY | {"max_tokens": 16}

    def answer(name: str) -> str:
        given = {"text_input": a_prompt, "exclude_input_in_output": True}
        parameters = json.dumps(short | {"lora_name": name})
        reply = generate(a_real_vllm_server, "llm", **given, sampling_parameters=parameters)
        return str(reply.json()["text_output"])

    with ThreadPoolExecutor() as at_once:
        silent, noisy, silent_too, noisy_too = at_once.map(answer, ["silent", "noisy"] * 2)

    assert silent == silent_too == ANSWER
    assert noisy == noisy_too
    assert "Paris" not in noisy


def test_adapter_that_is_not_there_is_refused_in_upstreams_words(a_real_vllm_server: TritonServer) -> None:
    reply = generate(a_real_vllm_server, "llm", text_input=QUESTION, sampling_parameters='{"lora_name": "bactrian"}')

    assert reply.status_code == httpx.codes.BAD_REQUEST
    assert "LoRA bactrian is not supported, we currently support ['silent', 'noisy']" in reply.json()["error"]


@pytest.mark.parametrize("streaming", [False, True])
def test_additional_outputs_tell_of_every_token(
    a_real_vllm_server: TritonServer, a_prompt: str, streaming: bool
) -> None:
    wanted = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
    parts = generate_parts(
        a_real_vllm_server,
        text_input=a_prompt,
        stream=streaming,
        exclude_input_in_output=True,
        sampling_parameters=json.dumps(GREEDY | {"logprobs": 1}),
        **{f"return_{name}": True for name in wanted},
    )

    tokens = [token for part in parts for token in json.loads(part["logprobs"])]
    likeliest = [next(one for one in token.values() if one["rank"] == 1) for token in tokens]
    assert "".join(part["text_output"] for part in parts) == ANSWER
    assert "".join(one["decoded_token"] for one in likeliest).startswith(ANSWER)
    assert sum(part["num_output_tokens"] for part in parts) == len(tokens)
    assert parts[-1]["cumulative_logprob"] == pytest.approx(sum(one["logprob"] for one in likeliest), abs=1e-3)
    assert [part["finish_reason"] for part in parts] == ["None"] * (len(parts) - 1) + ["stop"]
    assert {part["num_input_tokens"] for part in parts} == {PROMPT_TOKENS}


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("limit", "text", "tokens", "reason"), [(128, ANSWER, 8, "stop"), (3, ANSWER[:14], 3, "length")]
)
def test_reason_and_numbers_of_tokens_are_the_same_by_both_ways_to_vllm(
    a_real_vllm_server: TritonServer, a_prompt: str, limit: int, text: str, tokens: int, reason: str, streaming: bool
) -> None:
    parts = generate_parts(
        a_real_vllm_server,
        text_input=a_prompt,
        stream=streaming,
        exclude_input_in_output=True,
        sampling_parameters=json.dumps(GREEDY | {"max_tokens": limit}),
        **{f"return_{name}": True for name in ("finish_reason", "num_input_tokens", "num_output_tokens")},
    )

    assert "".join(part["text_output"] for part in parts) == text
    assert [part["finish_reason"] for part in parts] == ["None"] * (len(parts) - 1) + [reason]
    assert sum(part["num_output_tokens"] for part in parts) == tokens
    assert {part["num_input_tokens"] for part in parts} == {PROMPT_TOKENS}
    assert "cumulative_logprob" not in parts[0]


@pytest.mark.parametrize("as_text", [False, True], ids=["object", "json"])
def test_structured_outputs_hold_the_answer_to_a_choice(a_real_vllm_server: TritonServer, as_text: bool) -> None:
    choice: object = {"choice": ["Rome", "Oslo"]}
    parameters = GREEDY | {"structured_outputs": json.dumps(choice) if as_text else choice}

    answer = ask(a_real_vllm_server, QUESTION, sampling_parameters=parameters)

    assert answer.text in ("Rome", "Oslo")


def test_metrics_count_the_tokens_of_a_request(a_real_vllm_server: TritonServer, a_prompt: str) -> None:
    before = settled(a_real_vllm_server, "vllm:generation_tokens_total")

    ask(a_real_vllm_server, a_prompt, model="llm", sampling_parameters={"max_tokens": 5, "ignore_eos": True})

    assert settled(a_real_vllm_server, "vllm:generation_tokens_total") == before + 5
    text = httpx.get(f"http://{a_real_vllm_server.metrics_url}/metrics").text
    for name in (
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
        "e2e_request_latency_seconds",
    ):
        assert f'vllm:{name}_count{{model="llm",version="1"}}' in text


def test_metrics_tell_how_many_sequences_requests_ask_for(a_real_vllm_server: TritonServer, a_prompt: str) -> None:
    names = [f"vllm:request_params_n_{end}" for end in ("count", "sum")]
    count, total = (settled(a_real_vllm_server, name) for name in names)

    ask(a_real_vllm_server, a_prompt, model="llm", sampling_parameters={"n": 2, "max_tokens": 3, "temperature": 1.0})

    assert [settled(a_real_vllm_server, name) for name in names] == [count + 1, total + 2]


def test_engine_imports_vllm_at_the_same_time_as_the_model(a_real_vllm_server: TritonServer) -> None:
    processes = psutil.Process(a_real_vllm_server.pid).children(recursive=True)
    (engine,) = [one for one in processes if "EngineCore" in one.name()]
    stub, log = psutil.Process(engine.ppid()), a_real_vllm_server.log_path.read_text(errors="replace")

    (imported_s,) = re.findall(r"llm: loading weights and starting the engine, ([\d.]+) s after the start", log)

    assert "stub" in stub.name()
    assert engine.create_time() < stub.create_time() + float(imported_s)


def test_stopping_ends_every_process_and_the_log_is_clean(a_real_vllm_server: TritonServer) -> None:
    if read_parameter(a_real_vllm_server, "FAST_PATH") == "no" and not LONG_FORM:
        pytest.skip("the long form: this engine is killed instead")
    processes = psutil.Process(a_real_vllm_server.pid).children(recursive=True)
    assert any("EngineCore" in process.name() for process in processes)

    sockets = [Path(one.laddr) for process in processes for one in process.net_connections("unix") if one.laddr]
    assert any(file.exists() for file in sockets)

    begin = time.monotonic()
    a_real_vllm_server.stop()
    took_s = time.monotonic() - begin

    assert [process.name() for process in processes if process.is_running()] == []
    assert [file for file in sockets if file.exists()] == []
    log = a_real_vllm_server.log_path.read_text(errors="replace")
    assert "llm: engine ready in" in log
    assert log.count("[vllm] no fast path") == (read_parameter(a_real_vllm_server, "FAST_PATH") == "no")
    assert "llm: engine stopped" in log
    assert "Traceback" not in log
    assert "force killing" not in log
    times = re.findall(r" (\d\d):(\d\d):(\d\d\.\d+) .*\[vllm\] llm: (?:stopping the engine|engine stopped)", log)
    began_s, ended_s = (int(hours) * 3600 + int(minutes) * 60 + float(seconds) for hours, minutes, seconds in times)
    engine_s = ended_s - began_s
    print(f"stopped in {took_s:.1f} s, of these the engine {engine_s:.1f} s")
    assert engine_s < ENGINE_STOPPED_S * slowdown()


def test_dead_engine_is_not_alive_while_ready_says_200(a_real_vllm_server: TritonServer) -> None:
    """The last test of each server, which it may have to start anew: it kills its EngineCore."""
    if read_parameter(a_real_vllm_server, "FAST_PATH") == "yes" and not LONG_FORM:
        pytest.skip("the long form: this engine was stopped, and another starts to be killed")
    server = a_real_vllm_server if a_real_vllm_server.running else a_real_vllm_server.start(START_TIMEOUT_S)
    healthy = ask_alive(server.http_url)
    engines = [one for one in psutil.Process(server.pid).children(recursive=True) if "EngineCore" in one.name()]
    for engine in engines:
        engine.kill()
    psutil.wait_procs(engines)
    verdicts, late_s = [ask_alive(server.http_url) for _ in range(2)], slowdown()
    ready = httpx.get(f"http://{server.http_url}/v2/health/ready", trust_env=False).status_code
    reason = server.why_ended
    server.kill()
    explained = explain_log(server.log_path)

    assert (healthy.alive, healthy.model, len(engines)) == (True, "ensemble", 1)
    assert [found.alive for found in verdicts] == [False, False]
    assert all(found.elapsed_s < DEADLINE_S + late_s for found in verdicts)
    assert ready == httpx.codes.OK
    assert reason == "the process of vLLM's engine (EngineCore) ended"
    assert "S443" in {cause.code for cause in explained.causes}
    print(f"{healthy}; {'; '.join(map(str, verdicts))}")


@pytest.mark.skipif(not LONG_FORM, reason="the long form: three engines start")
def test_models_are_loaded_and_unloaded_and_one_that_vllm_refuses_harms_no_other(tmp_path: Path) -> None:
    """As upstream's own test does it, in explicit mode: two bad engines, one good one, the ensemble."""
    source = ensure_checkpoint()
    repository = stage_repository(tmp_path / "models", source=source, device="cpu")
    bad = {"odd_argument": {"invalid_attribute": True}, "no_model": {"model": "invalid_model"}}
    for name, more in bad.items():
        shutil.copytree(repository.path / "llm", repository.path / name)
        file = repository.path / name / "1" / "model.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
        config = read_config(repository.path / name)
        config.name = name
        write_config(config, repository.path / name / "config.pbtxt")
    installation = install_embedded(get_release(RELEASE), "base-plus-vllm", tmp_path)
    options = ServerOptions(explicit=True)
    server = TritonServer(installation, repository.path, tmp_path, options, repository.environment)
    try:
        server.start(START_TIMEOUT_S)
        with ThreadPoolExecutor(len(bad)) as threads:
            refused = dict(zip(bad, threads.map(partial(load_model, server), bad), strict=True))
        loaded = load_model(server, "ensemble", timeout_s=START_TIMEOUT_S)
        text = ask(server, QUESTION, sampling_parameters=GREEDY).text
        for name in ("ensemble", "llm"):
            url = f"http://{server.http_url}/v2/repository/models/{name}/unload"
            httpx.post(url, json={}, headers=server.control_headers, trust_env=False).raise_for_status()
        unloaded = wait_until(lambda: model_states(server)["llm"] == "UNAVAILABLE" or None, START_TIMEOUT_S)
    finally:
        server.stop()

    assert {name: answer.status for name, answer in refused.items()} == dict.fromkeys(bad, httpx.codes.BAD_REQUEST)
    assert "invalid_attribute" in refused["odd_argument"].body
    assert "vLLM did not start" in refused["no_model"].body
    assert (loaded.status, text) == (httpx.codes.OK, ANSWER)
    assert unloaded


def make_adapters(folder: Path, checkpoint: Path) -> None:
    """Make two LoRA adapters as peft writes them: `silent` changes nothing, `noisy` changes every answer."""
    model = json.loads((checkpoint / "config.json").read_text())
    rank, hidden, random = LORA["max_lora_rank"], model["hidden_size"], np.random.default_rng(0)
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    for name, strength in {"silent": 0.0, "noisy": 0.2}.items():
        tensors = {}
        for layer in range(model["num_hidden_layers"]):
            module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            tensors[f"{module}.lora_A.weight"] = random.normal(size=(rank, hidden)).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = (strength * random.normal(size=(hidden, rank))).astype(np.float32)
        (folder / name).mkdir()
        save_file(tensors, folder / name / "adapter_model.safetensors")
        (folder / name / "adapter_config.json").write_text(json.dumps(adapter | {"target_modules": ["q_proj"]}))
    (folder / "multi_lora.json").write_text(json.dumps({"silent": "silent", "noisy": str(folder / "noisy")}))


def conversation(country: str) -> list[dict[str, str]]:
    """Two turns and a system message; the last question names no country."""
    return [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": f"Tell me about {country}."},
        {"role": "assistant", "content": f"{country} is a country in Europe."},
        {"role": "user", "content": "What is its capital?"},
    ]


def read_parameter(server: TritonServer, name: str) -> str:
    return str(read_config(server.repository / "llm").parameters[name].string_value)


def generate(server: TritonServer, model: str, **body: object) -> httpx.Response:
    return httpx.post(f"http://{server.http_url}/v2/models/{model}/generate", json=body, timeout=600)


def generate_parts(server: TritonServer, **body: object) -> list[dict[str, Any]]:
    """Return every response of `llm`, streamed or not, from the endpoint for streams."""
    url = f"http://{server.http_url}/v2/models/llm/generate_stream"
    with httpx.stream("POST", url, json=body, timeout=600) as reply:
        return [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line.strip()]
