# SPDX-License-Identifier: Apache-2.0
"""Random input of every kind that comes from outside: an answer or one clear error, no traceback, no hang."""

import importlib
import importlib.util
import io
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from ensemblekit.bench.report import describe, rows
from ensemblekit.bench.results import BenchResult
from ensemblekit.clients.bounded import Reply
from ensemblekit.diagnose.explain.explainer import explain_lines
from ensemblekit.diagnose.explain.source import lines_of, open_log
from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.diagnose.lint.fix import corrections
from ensemblekit.diagnose.lint.output import as_json, as_sarif, show_report
from ensemblekit.diagnose.probe import running
from ensemblekit.errors import RequestError
from ensemblekit.paths import repo_root
from ensemblekit.servers.attach import ServerAbout
from tests.atlas.cases import ATLAS
from tests.atlas.mutations import mutate
from tests.conftest import DATA
from tests.faults.conftest import LONG, Report
from tests.unit import backend_support
from tests.unit.backend_support import Request, Sender, Tensor
from tests.unit.test_backend_models import MODELS, PROMPT, STAND_IN, an_instance
from tests.unit.test_bundle import UNPACK, a_bundle, write_manifest

HANGS_S = 10.0  # for one input, on a busy machine; most take a few milliseconds
GOOD = sorted(path for path in (ATLAS / "good").iterdir() if path.is_dir())
LOGS = sorted((DATA / "logs").glob("*.log"))
RECORDS = sorted((repo_root() / "notebooks" / "records").glob("*.json"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def inputs(short: int, long: int) -> settings:
    """Return how many inputs are tried; the short form tries the same ones each time."""
    return settings(
        max_examples=long if LONG else short,
        deadline=None,
        database=None,
        derandomize=not LONG,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def trial(report: Report, name: str) -> Iterator[None]:
    """Count one input: held if nothing was raised, and in time."""
    began = time.monotonic()
    held = False
    try:
        yield
        held = time.monotonic() - began < HANGS_S
        assert held, f"{time.monotonic() - began:.1f} s for one input"
    finally:
        report.count(f"inputs: {name}", held, seconds=time.monotonic() - began)


@contextmanager
def clear(kind: type[Exception]) -> Iterator[None]:
    """Let one kind of error pass, if it says what was attempted."""
    try:
        yield
    except kind as error:
        if not str(error).startswith("Could not "):
            raise


NAMES = (
    *("max_tokens", "temperature", "top_k", "seed", "stop", "n", "logprobs", "structured_outputs", "logit_bias"),
    *("lora_name", "priority", "top_p", "detokenize", "best_of", "stream", "bad_words"),
)
ODD = st.sampled_from(
    (
        *('{"max_tokens": 1e999}', '{"max_tokens": null}', '{"max_tokens": ' + "9" * 5000 + "}", '{"seed": 1e400}'),
        *('{"temperature": -Infinity}', '{"temperature": 1e-320}', '{"stop": "\\ud800"}', "NaN", "\ufeff{}"),
        *("[" * 40_000, '{"a":' * 10_000, "null", "", " "),
    )
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# numbers are what most of the parameters take, so most values are some
PARAMETERS = st.dictionaries(
    st.sampled_from(NAMES) | st.text(max_size=12), st.integers() | st.floats() | VALUES, max_size=4
)


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """Return bytes with a few random changes: cut, repeated, put in, replaced."""
    chance = random.Random(draw(st.integers(0, 2**63)))
    for _ in range(chance.randint(1, 6)):
        start = chance.randint(0, len(text))
        end = min(len(text), start + chance.choice((0, 1, 1, 8, 200)))
        new = chance.choice((b"", chance.randbytes(3), text[start:end] * 3, b'"', b"{", b"]", b"\x00", b"-1", b"1e999"))
        text = text[:start] + new + text[end:]
    return text


# around Python's limit, which hypothesis raises
DEEP = st.integers(500, 6_000).map(lambda depth: '{"stop": ' + "[" * depth + "]" * depth + "}")
JSON_TEXTS = (ODD | DEEP).map(str.encode) | PARAMETERS.map(lambda made: json.dumps(made).encode())
MESSAGES = st.dictionaries(st.sampled_from(("role", "content", "tool_calls", "name")), VALUES, max_size=3) | st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(("system", "user", "assistant", "tool", "king")),
    st.text() | st.lists(st.dictionaries(st.sampled_from(("type", "text")), VALUES, max_size=2), max_size=2),
)
CHATS = st.lists(MESSAGES, max_size=4).map(lambda chat: json.dumps(chat).encode())
CONVERSATIONS = CHATS | CHATS.flatmap(damaged)
SENT = JSON_TEXTS | JSON_TEXTS.flatmap(damaged) | st.binary(max_size=60)


def with_inputs(parameters: str, **values: bytes) -> Any:
    """Return a request, with its sender; bytes stay as they are."""
    request, sender = Request(parameters), Sender()
    request._inputs = {name: Tensor(name, np.array([value], dtype=np.object_)) for name, value in values.items()}
    request.get_response_sender = lambda: sender  # type: ignore[attr-defined]
    return request


def is_clear(response: Any) -> None:
    """An answer, or an error of the client's that shows nothing of the server's inside."""
    if response.error is None:
        return
    text = response.error.message
    assert response.error.code == "invalid"
    assert text.strip()
    assert "Traceback" not in text
    assert ".py" not in text
    assert str(repo_root()) not in text


@pytest.fixture
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    """What the models import is in its place until the test ends."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("limits", ["", '{"max_tokens": 64, "n": 2}'], ids=["no-limits", "limits"])
def test_sampling_parameters_of_preprocess(limits: str, module_patch: pytest.MonkeyPatch, report: Report) -> None:
    model = an_instance(MODELS / "preprocess", module_patch)
    model.limits = json.loads(limits or "{}")

    @inputs(300, 8_000)
    @given(SENT, PARAMETERS.map(json.dumps) | st.just(""), st.text() | st.binary(max_size=20) | CONVERSATIONS)
    def tried(sent: bytes, own: str, question: str | bytes) -> None:
        with trial(report, "preprocess"):
            asked = question if isinstance(question, bytes) else question.encode("utf-8", "replace")
            (response,) = model.execute([with_inputs(own, chat_input=asked, sampling_parameters=sent)])
            is_clear(response)

    tried()


def test_sampling_parameters_of_the_stand_in(module_patch: pytest.MonkeyPatch, report: Report) -> None:
    model = an_instance(STAND_IN, module_patch)

    @inputs(300, 16_000)
    @given(SENT, st.just(PROMPT.encode()) | st.binary(max_size=20))
    def tried(sent: bytes, prompt: bytes) -> None:
        with trial(report, "stand-in"):
            request = with_inputs("", text_input=prompt, sampling_parameters=sent)
            model.execute([request])
            sender = request.get_response_sender()
            assert sender.closed
            for response, _ in sender.sent:
                is_clear(response)

    tried()


def test_sampling_parameters_of_the_vllm_backend(module_patch: pytest.MonkeyPatch, report: Report) -> None:
    pytest.importorskip("msgspec", reason="comes with vLLM: the CPU or CUDA environment")
    pytest.importorskip("tokenizers", reason="comes with vLLM: the CPU or CUDA environment")
    from tests.unit import fake_vllm

    backend_support.install(module_patch)
    fake_vllm.install(module_patch)
    request_module = importlib.import_module("triton_vllm.request")
    engine_module = importlib.import_module("triton_vllm.engine")
    engine = SimpleNamespace(
        _lora_enabled=False,
        _llm=SimpleNamespace(vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(policy="fcfs"))),
        tokenize=lambda prompt: list(prompt.encode("utf-8", "replace")),
        route=lambda params, stream: request_module.choose_route(params, stream=stream, own_text=True, fast_path=True),
    )
    for name in ("lora", "priority"):  # the real ones, of an engine without adapters
        setattr(engine, name, getattr(engine_module.Engine, name).__get__(engine))
    parser = request_module.RequestParser(engine)

    @inputs(300, 16_000)
    @given(SENT, st.just(PROMPT.encode()) | st.binary(max_size=20))
    def tried(sent: bytes, prompt: bytes) -> None:
        with trial(report, "vLLM backend"):
            request = with_inputs("", text_input=prompt, sampling_parameters=sent)
            sender = request.get_response_sender()
            parsed = parser.parse(request)
            assert (parsed is None) == sender.closed
            for response, _ in sender.sent:
                is_clear(response)

    tried()


def test_configs_of_lint(tmp_path: Path, report: Report) -> None:
    for repository in GOOD:
        shutil.copytree(repository, tmp_path / repository.name, symlinks=True)
    configs = sorted(tmp_path.glob("*/*/config.pbtxt"))
    good = {config: config.read_bytes() for config in configs}

    @inputs(300, 10_000)
    @given(st.sampled_from(configs), st.integers(0, 2**32), st.booleans(), st.data())
    def tried(config: Path, seed: int, bytewise: bool, data: st.DataObject) -> None:
        text = data.draw(damaged(good[config])) if bytewise else mutate(good[config].decode(), seed)[0].encode()
        config.write_bytes(text)
        try:
            with trial(report, "lint"):
                found = lint_repository(config.parent.parent, release="24.08")
                show_report(found, Console(file=io.StringIO()))
                json.dumps([as_json(found), as_sarif(found)])
                corrections(found)
        finally:
            config.write_bytes(good[config])

    tried()


def test_logs_of_explain(tmp_path: Path, report: Report) -> None:
    texts = [log.read_bytes() for log in LOGS]
    file = tmp_path / "server.log"

    @inputs(300, 16_000)
    @given(st.sampled_from(texts), st.integers(0, 10**6), st.sampled_from((2_000, 20_000)), st.data())
    def tried(text: bytes, at: int, length: int, data: st.DataObject) -> None:
        start = at % len(text)
        file.write_bytes(data.draw(damaged(text[start : start + length])))
        with trial(report, "explain"), open_log(file) as log:
            found = explain_lines(lines_of(log))
            json.dumps(found.as_dict())
            assert str(found)
            assert found.exit_code in range(4)

    tried()


def test_records_of_a_bench(tmp_path: Path, report: Report) -> None:
    file = tmp_path / "record.json"
    texts = [record.read_bytes() for record in RECORDS]

    @inputs(300, 10_000)
    @given(st.sampled_from(texts), st.integers(0, 2**63), VALUES, st.booleans(), st.data())
    def tried(text: bytes, seed: int, value: Any, whole: bool, data: st.DataObject) -> None:
        file.write_bytes(
            json.dumps(_changed(json.loads(text), seed, value)).encode() if whole else data.draw(damaged(text))
        )
        with trial(report, "records"):
            try:
                record = BenchResult.load(file)
            except ValueError:
                return
            describe(record)
            rows(record)

    tried()


def _changed(content: Any, seed: int, value: Any) -> Any:
    """Return JSON with one value, at any depth, replaced or away."""
    chance = random.Random(seed)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return content
        key = chance.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and chance.random() < 0.8:
            place = place[key]
        elif chance.random() < 0.3:
            del place[key]
            return content
        else:
            place[key] = value
            return content


@pytest.fixture
def unpack_module(tmp_path: Path, module_patch: pytest.MonkeyPatch) -> ModuleType:
    """The unpack script, beside a whole bundle."""
    bundle = a_bundle(tmp_path / "bundle")
    spec = importlib.util.spec_from_file_location("bundle_unpack", UNPACK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.HERE = str(bundle)  # type: ignore[attr-defined]
    return module


def test_manifests_of_a_bundle(unpack_module: Any, report: Report) -> None:
    file = Path(unpack_module.HERE) / "manifest.json"
    text = file.read_bytes()
    whole = st.integers(0, 2**63).flatmap(
        lambda seed: VALUES.map(lambda value: json.dumps(_changed(json.loads(text), seed, value)).encode())
    )

    @inputs(300, 10_000)
    @given(whole | damaged(text) | SENT)
    def tried(content: bytes) -> None:
        file.write_bytes(content)
        with trial(report, "manifests"), clear(unpack_module.UnpackError):
            manifest = unpack_module.read_manifest()
            unpack_module.check_python(manifest)
            unpack_module.check_parts(manifest)

    tried()


def test_archives_of_a_bundle(unpack_module: Any, tmp_path: Path, report: Report) -> None:
    bundle = Path(unpack_module.HERE)
    parts = sorted(bundle.glob("part-*"))
    good = {part: part.read_bytes() for part in parts}
    beside = set(tmp_path.rglob("*"))
    target = tmp_path / "target"

    @inputs(200, 4_000)
    @given(st.sampled_from(parts), st.data())
    def tried(part: Path, data: st.DataObject) -> None:
        part.write_bytes(data.draw(damaged(good[part])))
        write_manifest(bundle)  # its checksums are right: only the archive is damaged
        try:
            with trial(report, "archives"):
                with clear(unpack_module.UnpackError):
                    unpack_module.unpack(unpack_module.read_manifest(), str(target))
                outside = {path for path in tmp_path.rglob("*") if target not in (path, *path.parents)}
                assert outside == beside
        finally:
            part.write_bytes(good[part])
            shutil.rmtree(target, ignore_errors=True)

    tried()


TENSOR = {"name": "chat_input", "data_type": "TYPE_STRING", "dims": [1], "optional": False}
CONFIG = {"name": "e", "platform": "ensemble", "max_batch_size": 0, "input": [TENSOR], "output": [TENSOR]}
CONFIG |= {"ensemble_scheduling": {"step": [{"model_name": "llm"}]}, "model_transaction_policy": {"decoupled": True}}
BODIES: dict[str, Any] = {
    "/v2": {"name": "triton", "version": "2.49.0", "extensions": ["classification"]},
    "/index": [{"name": "e", "version": "1", "state": "READY"}, {"name": "never"}],
    "/config": CONFIG,
    "load": {"error": "failed to load 'x', failed to poll from model repository"},
}
KINDS: tuple[Any, ...] = (ServerAbout, list[running._IndexRow], running.ModelConfig)


@st.composite
def changed_bodies(draw: st.DrawFn) -> dict[str, bytes]:
    """Return what a server answers at each of its addresses, one or two of them wrong."""
    bodies = {name: json.dumps(body).encode() for name, body in BODIES.items()}
    for name in draw(st.lists(st.sampled_from(list(bodies)), min_size=1, max_size=2)):
        changed = json.dumps(_changed(json.loads(json.dumps(BODIES[name])), draw(st.integers(0, 2**63)), draw(VALUES)))
        bodies[name] = draw(st.just(changed.encode()) | damaged(bodies[name]) | SENT)
    return bodies


@contextmanager
def serving(reply: Callable[[str], bytes]) -> Iterator[str]:
    """A server on a socket which answers each request with these bytes and closes."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            asked = self.request.recv(65536).decode("latin1").split()
            with suppress(OSError):  # the client has seen enough
                self.request.sendall(reply(asked[1] if len(asked) > 1 else ""))

    class Server(ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_answers_of_a_server(report: Report) -> None:
    answers: dict[str, bytes] = {}

    def reply(path: str) -> bytes:
        name = next((end for end in ("/v2", "/index", "/config") if path.endswith(end)), "load")
        return answers[name]

    with serving(reply) as url:

        @inputs(200, 6_000)
        @given(changed_bodies(), st.sampled_from((200, 200, 200, 400, 403, 503)), st.booleans(), st.data())
        def tried(bodies: dict[str, bytes], status: int, broken: bool, data: st.DataObject) -> None:
            for name, body in bodies.items():
                head = f"HTTP/1.1 {200 if name != 'load' else status} OK\r\nContent-Length: {len(body)}\r\n\r\n"
                answers[name] = head.encode() + body
            if broken:
                name = data.draw(st.sampled_from(list(bodies)))
                answers[name] = data.draw(damaged(answers[name]))
            with trial(report, "server answers"), clear(RequestError):
                running.ask_server(url, allow_load=True)

        tried()


def test_bodies_of_a_server(report: Report) -> None:
    @inputs(300, 10_000)
    @given(changed_bodies() | SENT.map(lambda text: {"": text}), st.sampled_from(KINDS))
    def tried(bodies: dict[str, bytes], kind: Any) -> None:
        for body in bodies.values():
            with trial(report, "server bodies"):
                reply = Reply("http://127.0.0.1:8000/v2", 200, body)
                assert reply.excerpt.startswith("HTTP 200")
                with clear(RequestError):
                    reply.read(kind)

    tried()
