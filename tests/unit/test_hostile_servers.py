# SPDX-License-Identifier: Apache-2.0
"""Fake servers that are hostile or broken, over real sockets: each is one clear error, in its time and its memory."""

import gzip
import json
import resource
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ensemblekit.cli.main import app
from ensemblekit.clients.bounded import Asker
from ensemblekit.diagnose.doctor import request, run
from ensemblekit.diagnose.probe import running
from ensemblekit.errors import RequestError, ServerNotReady
from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.servers.attach import AttachedServer

TIME_S = 0.5  # that all questions may take together
SHORT_S, LONG_S = 3.0, 60.0
MOST_S = 200.0  # of a machine with other work; without a bound each would last for ever
MOST_GROWTH_KIB = 400 * 2**10
DROP_S = 0.05
Behaviour = Callable[[str], Iterator[bytes]]


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def for_ever(piece: bytes, head: bytes = b"", *, wait_s: float = 0.0) -> Behaviour:
    """The same piece again and again."""

    def behave(_path: str) -> Iterator[bytes]:
        yield head
        while True:
            yield piece
            time.sleep(wait_s)

    return behave


def once(content: bytes) -> Behaviour:
    """One answer to everything."""
    return lambda _path: iter([content])


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(64 * 2**20))
EVERYWHERE: dict[str, Behaviour] = {
    "body-without-end": for_ever(b"x" * 2**16, HEAD + b"\r\n"),
    "chunks-without-end": for_ever(b"10000\r\n" + b"x" * 2**16 + b"\r\n", CHUNKED),
    "json-without-end": for_ever(b'{"a":' * 2**10, HEAD + b"\r\n"),
    "length-of-a-terabyte": for_ever(b"x" * 2**16, HEAD + b"Content-Length: 1000000000000\r\n\r\n"),
    "body-of-drops": for_ever(b"x", HEAD + b"Content-Length: 1000\r\n\r\n", wait_s=DROP_S),
    "headers-of-drops": for_ever(b"x", HEAD + b"A: ", wait_s=DROP_S),
    "headers-without-end": for_ever(b"A: b\r\n", HEAD),
    "header-of-a-megabyte": once(HEAD + b"A: " + b"x" * 2**20 + b"\r\n\r\n"),
    "thousand-headers": once(HEAD + b"A: b\r\n" * 1000 + b"\r\n{}"),
    "continue-without-end": for_ever(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "gzip-bomb": once(answer(BOMB, "200 OK", "Content-Encoding: gzip")),
    "gzip-without-end": for_ever(BOMB, HEAD + b"Content-Encoding: gzip\r\n\r\n"),
    "silence": for_ever(b"", wait_s=DROP_S),
    "closed-at-once": once(b""),
    "banner-of-ssh": once(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "status-of-letters": once(b"HTTP/1.1 abc OK\r\n\r\n"),
    "redirect-to-itself": once(answer(b"", "302 Found", "Location: /v2")),
    "redirect-to-a-file": once(answer(b"", "301 Moved", "Location: file:///etc/passwd")),
    "invalid-utf-8": once(answer(b'{"version": "\xff\xfe", "extensions": []')),
    "json-list": once(answer(b"[1]")),
    "json-number": once(answer(b"7")),
    "json-null": once(answer(b'{"extensions": null}')),
    "json-wrong-type": once(answer(b'{"extensions": 5, "version": {}}')),
    "json-nested": once(answer(b"[" * 10**5)),
    "number-of-a-million-digits": once(answer(b'{"extensions": ' + b"9" * 10**6 + b"}")),
    "empty-body": once(answer(b"")),
    "shorter-than-it-says": once(HEAD + b'Content-Length: 500\r\n\r\n{"extens'),
    "negative-length": once(HEAD + b"Content-Length: -5\r\n\r\n"),
    "chunk-of-no-size": once(CHUNKED + b"zz\r\n"),
    "html": once(answer(b"<html>It works!</html>")),
    "controls-in-an-error": once(answer(b"\x1b[2J\x1b]0;owned\x07no", "500 \x1b[31mred")),
}
TEXT_IN = {"name": "TEXT", "data_type": "TYPE_STRING", "dims": ["1"]}
GOOD: dict[str, Any] = {
    "/v2": {"name": "triton", "version": "2.49.0", "extensions": ["model_repository"]},
    "/v2/health/ready": {},
    "/v2/repository/index": [{"name": "m", "version": "1", "state": "READY"}],
    "/v2/models/m/config": {"name": "m", "input": [TEXT_IN], "output": [{"name": "OUT", "data_type": "TYPE_FP32"}]},
    "/v2/models/m/generate": {"OUT": 1.5},
}


def good_but(path: str, content: Any) -> Behaviour:
    """A good server in all but one answer, which is an object or raw pieces."""

    def behave(asked: str) -> Iterator[bytes]:
        found = content if asked == path else GOOD.get(asked, {})
        return found(asked) if callable(found) else iter([answer(json.dumps(found).encode())])

    return behave


MANY = [{"name": f"model_{number:05}", "state": "READY"} for number in range(20_000)]
STRANGERS = [{"name": f"\x1b[31mred\u202e{number}"} for number in range(1000)]
HUGE = {"input": [{**TEXT_IN, "dims": [10**9, 10**9]}]}
INDEX, CONFIG, GENERATE = "/v2/repository/index", "/v2/models/m/config", "/v2/models/m/generate"
# behaviour, exit code of probe and of doctor, words that one of them says
LATER: dict[str, tuple[Behaviour, int, int, str]] = {
    "good": (good_but("", {}), 2, 0, "m answered in"),
    "controls-in-the-version": (good_but("/v2", {"version": "\x1b[2J\x07", "extensions": []}), 2, 0, "Triton"),
    "index-of-20000-models": (good_but(INDEX, MANY), 2, 0, "its 20000 loaded models"),
    "index-null": (good_but(INDEX, None), 2, 1, "Input should be"),
    "index-of-numbers": (good_but(INDEX, [1, 2]), 2, 1, "Input should be"),
    "index-without-names": (good_but(INDEX, [{"state": "READY"}]), 2, 1, "Field required"),
    "index-of-controls": (good_but(INDEX, [*GOOD[INDEX], *STRANGERS]), 2, 0, "and 990 more"),
    "index-without-end": (good_but(INDEX, EVERYWHERE["json-without-end"]), 2, 1, "repository/index"),
    "config-of-wrong-types": (good_but(CONFIG, {"input": [3]}), 2, 1, "input.0"),
    "config-of-drops": (good_but(CONFIG, EVERYWHERE["body-of-drops"]), 2, 1, "no whole answer within"),
    "config-of-a-huge-tensor": (good_but(CONFIG, HUGE), 2, 1, "wants 1e+18 of them"),
    "answer-list": (good_but(GENERATE, [1]), 2, 1, "Input should be"),
    "answer-of-drops": (good_but(GENERATE, EVERYWHERE["body-of-drops"]), 2, 1, "no whole answer within 1 s"),
    "answer-without-end": (good_but(GENERATE, EVERYWHERE["body-without-end"]), 2, 1, "more than 16 MiB"),
    "answer-of-controls": (good_but(GENERATE, {"error": "\x1b[31mred\x9b"}), 2, 1, "red"),
    "answer-of-a-large-tensor": (good_but(GENERATE, {"OUT": [0.123456789] * 10**5}), 2, 0, '0.123456789, "... 99992'),
}


class _Hostile(socketserver.ThreadingTCPServer):
    """Plays one behaviour on every connection."""

    daemon_threads = True
    allow_reuse_address = True
    behaviour: Behaviour
    over: threading.Event

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Connection(socketserver.StreamRequestHandler):
    server: _Hostile

    def handle(self) -> None:
        try:
            path = self._read()
            for piece in self.server.behaviour(path):
                if self.server.over.is_set():
                    return
                self.wfile.write(piece)
        except OSError:
            pass  # the other side has had enough

    def _read(self) -> str:
        path = self.rfile.readline().decode().split()[1]
        length = 0
        while (line := self.rfile.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        self.rfile.read(length)
        return path


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Behaviour], str]]:
    """Make a fake server and return its `host:port`; what asks it has half a second, if the test says no other time."""
    for module in (running, run):
        monkeypatch.setattr(module, "ASK_TIMEOUT_S", TIME_S)
    monkeypatch.setattr(running, "ASKED_MODELS", 20)
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    server = _Hostile(("127.0.0.1", 0), _Connection)
    server.over = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def start(behaviour: Behaviour) -> str:
        server.behaviour = behaviour
        return server.url

    begin, before = time.monotonic(), _memory_kib()
    yield start
    assert time.monotonic() - begin < MOST_S
    assert _memory_kib() - before < MOST_GROWTH_KIB
    server.over.set()
    server.shutdown()
    server.server_close()


def _memory_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def said(words: list[str]) -> Result:
    """Run a command; whatever it says cannot command a terminal."""
    done = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    odd = [letter for letter in done.output if not (letter.isprintable() or letter in "\n\t")]
    assert odd == []
    return done


@pytest.mark.parametrize("name", EVERYWHERE)
def test_fake_hostile_server_probed_is_one_clear_error(name: str, serve: Callable[[Behaviour], str]) -> None:
    done = said(["probe", serve(EVERYWHERE[name]), "--allow-load"])

    assert done.exit_code == 2, done.output
    assert done.output.count("Could not ") == done.output.count("Hint: ") == 1
    assert len(done.output) < 2000


@pytest.mark.parametrize("name", EVERYWHERE)
def test_fake_hostile_server_is_one_error_of_the_doctor(name: str, serve: Callable[[Behaviour], str]) -> None:
    done = said(["doctor", "--server", serve(EVERYWHERE[name])])

    assert done.exit_code == 1, done.output
    assert [line.split()[1] for line in done.output.splitlines() if line.startswith("error")] == ["probe"]
    assert len(done.output) < 4000


@pytest.mark.parametrize("name", EVERYWHERE)
def test_fake_hostile_server_cannot_be_attached_to(name: str, serve: Callable[[Behaviour], str]) -> None:
    server = AttachedServer.at(serve(EVERYWHERE[name]))

    with pytest.raises(ServerNotReady, match="curl -i") as caught:
        server.start(TIME_S)

    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", LATER)
def test_fake_server_that_begins_well(
    name: str, serve: Callable[[Behaviour], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour, probed, examined, words = LATER[name]
    for module in (running, run):  # what is answered is waited for on a busy machine too
        monkeypatch.setattr(module, "ASK_TIMEOUT_S", SHORT_S if "drops" in name or "end" in name else LONG_S)
    url = serve(behaviour)

    probe = said(["probe", url])
    doctor = said(["doctor", "--server", url, "--request-timeout", "1"])

    assert (probe.exit_code, doctor.exit_code) == (probed, examined), probe.output + doctor.output
    assert words in probe.output + doctor.output
    assert len(doctor.output) < 8000


def test_fake_server_whose_steps_have_steps_without_end(serve: Callable[[Behaviour], str]) -> None:
    def chain(path: str) -> Iterator[bytes]:
        number = int(path.split("/")[3]) + 1
        config: Mapping[str, Any] = {"ensemble_scheduling": {"step": [{"model_name": str(number)}]}}
        yield answer(json.dumps(config).encode())

    asker = Asker(serve(chain), TIME_S)

    with pytest.raises(RequestError, match="no whole answer within"):
        request.is_decoupled(asker, running.model_config(asker, "1"))


def test_model_that_is_its_own_step_is_asked_once() -> None:
    config = running.ModelConfig(name="m", ensemble_scheduling={"step": [{"model_name": "m"}]})  # type: ignore[arg-type]

    assert not request.is_decoupled(Asker("127.0.0.1:1", TIME_S), config)


@pytest.mark.parametrize("url", ["http://[", "127.0.0.1:99999", "http://127.0.0.1:port", "http://"])
def test_url_that_is_none_is_one_clear_error(url: str) -> None:
    with pytest.raises(RequestError, match=r"ask the server at"):
        Asker(url, TIME_S).ask("/v2")
