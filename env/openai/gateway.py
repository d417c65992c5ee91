# SPDX-License-Identifier: Apache-2.0
"""OpenAI's chat completions in front of an ensemble; behind it Triton's generate endpoints.

    python env/openai/gateway.py --triton 127.0.0.1:8000 --port 9000 [--model chat] [--host HOST] [--ends-with PID]

Clients send the key that stands in ENSEMBLEKIT_OPENAI_KEY; without one nobody is asked for it. What a request does not
say, the ensemble decides (preprocess: greedy, 128 tokens). Sampling parameters go on as they are, vLLM's own too, and
what the model refuses comes back in its words. A model without inputs `return_...`, which `chat` has, tells no numbers
of tokens, and each of its answers ends with "stop".

Not over gRPC: there a stream's error has no code, and the header that adds one (triton_grpc_error) ends the whole
server sooner or later, seen with 24.08 and 24.10.
"""

import argparse
import asyncio
import hmac
import json
import logging
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

KEY_VARIABLE = "ENSEMBLEKIT_OPENAI_KEY"
LARGEST_BODY = 16 * 2**20  # bytes
SHUTDOWN_S = 1.0  # that open answers still get when the gateway is stopped
OK, TOO_LARGE_LINE = 200, 2**20
TOLD = ("finish_reason", "num_input_tokens", "num_output_tokens")
IN_ENSEMBLE = re.compile(r"^(in ensemble '[^']*', )+")  # Triton puts it before a composing model's sentence
WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("tool_choice", "parallel_tool_calls"),
)
UNSUPPORTED = ("tools", "functions", "function_call", "logprobs", "top_logprobs", "audio", "prediction")


class Refused(Exception):  # noqa: N818 - what a client gets instead of an answer
    """There is no answer; the client gets a status and the reason in OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = "invalid_request_error" if self.status < web.HTTPInternalServerError.status_code else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


@dataclass
class Piece:
    """What one response of Triton says of each sequence; of a stream, what is new."""

    texts: list[str]
    reasons: list[str | None]
    prompt_tokens: int
    tokens: int

    @classmethod
    def of(cls, reply: dict[str, Any]) -> "Piece":
        """Read a response of a generate endpoint: a tensor of one value is that value alone."""
        tensors = {name: value if isinstance(value, list) else [value] for name, value in reply.items()}
        if "text_output" not in tensors:
            raise Refused(500, IN_ENSEMBLE.sub("", str(reply.get("error", "the model gave no text"))))
        texts = tensors["text_output"]
        reasons = [None if reason == "None" else reason for reason in tensors.get("finish_reason", [None] * len(texts))]
        counts = tensors.get("num_input_tokens", [0]), tensors.get("num_output_tokens", [0])
        return cls(texts, reasons, counts[0][0], sum(counts[1]))


class Gateway:
    """Answers for one model."""

    def __init__(self, triton: str, model: str, key: str) -> None:
        self.model, self.key, self.began = model, key.encode(), int(time.time())
        self.url = f"http://{triton}/v2/models/{model}"
        self.told: list[str] | None = None  # which of TOLD the model has, once it was asked

    def app(self) -> web.Application:
        """Return the web application."""
        app = web.Application(middlewares=[self.guard], client_max_size=LARGEST_BODY)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self.complete),
                web.get("/v1/models", self.models),
                web.get("/v1/models/{model}", self.models),
                web.get("/health", self.health),
            ]
        )
        app.cleanup_ctx.append(self.connect)
        return app

    async def connect(self, _: web.Application) -> AsyncIterator[None]:
        """Hold the connections to Triton as long as the gateway runs."""
        connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=patience, read_bufsize=TOO_LARGE_LINE) as session:
            self.triton = session
            yield

    @web.middleware
    async def guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Ask for the key, and put every error into OpenAI's shape."""
        try:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if self.key and not hmac.compare_digest(given, self.key) and request.path != "/health":
                raise Refused(401, "send the server's key as api_key", "invalid_api_key")
            return await handler(request)
        except Refused as error:
            return web.json_response(error.body, status=error.status)
        except web.HTTPException as error:
            body = Refused(error.status, f"{request.method} {request.path}: {error.reason}").body
            return web.json_response(body, status=error.status)
        except Exception:  # a fault of the gateway: its log has it, the client no more than that
            logging.exception("%s %s", request.method, request.path)
            return web.json_response(Refused(500, "the gateway failed; see its log").body, status=500)

    async def health(self, _: web.Request) -> web.Response:
        """Say whether the model can be asked."""
        with suppress(aiohttp.ClientError):
            async with self.triton.get(f"{self.url}/ready") as ready:
                if ready.status == OK:
                    return web.Response()
        raise Refused(503, f"the model {self.model} is not ready")

    async def models(self, request: web.Request) -> web.Response:
        """Describe the one model, alone or as a list of one."""
        description = {"id": self.model, "object": "model", "created": self.began, "owned_by": "triton"}
        if "model" not in request.match_info:
            return web.json_response({"object": "list", "data": [description]})
        self.require(request.match_info["model"])
        return web.json_response(description)

    def require(self, model: Any) -> None:
        """Refuse every other model."""
        if model != self.model:
            raise Refused(404, f"the model {str(model)[:80]!r} does not exist; here is {self.model}", "model_not_found")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation, whole or in a stream."""
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not valid JSON: {error}") from None
        if request.content_type != "application/json" or not isinstance(body, dict):
            raise Refused(400, "the body must be a JSON object, of Content-Type application/json")
        self.require(body.pop("model", None))
        options, stream = body.pop("stream_options", None), bool(body.pop("stream", False))
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self.model}
        async with aclosing(self.pieces({**to_inputs(body), "stream": stream})) as pieces:
            if stream:
                with_usage = isinstance(options, dict) and options.get("include_usage") is True
                return await send_stream(request, head, pieces, with_usage=with_usage)
            return web.json_response({**head, "object": "chat.completion", **whole(await anext(pieces))})

    async def pieces(self, inputs: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """Ask Triton and yield its responses; leaving early ends the request there too, where Triton can."""
        verb = "generate_stream" if inputs["stream"] else "generate"
        try:
            inputs |= {f"return_{name}": True for name in await self.outputs()}
            async with self.triton.post(f"{self.url}/{verb}", json=inputs) as response:
                if response.status != OK:
                    said = json.loads((await response.read()).removeprefix(b"data: "))
                    raise Refused(response.status, IN_ENSEMBLE.sub("", str(said.get("error"))))
                if not inputs["stream"]:
                    yield Piece.of(await response.json())
                    return
                async for line in response.content:
                    if line.startswith(b"data: "):
                        yield Piece.of(json.loads(line.removeprefix(b"data: ")))
        except aiohttp.ClientError as error:
            raise Refused(503, f"Triton cannot be asked ({type(error).__name__})") from None

    async def outputs(self) -> list[str]:
        """Return which of `TOLD` the model has."""
        if self.told is None:
            async with self.triton.get(self.url) as about:
                names = {tensor["name"] for tensor in (await about.json()).get("inputs", [])}
            self.told = [name for name in TOLD if f"return_{name}" in names]
        return self.told


async def send_stream(
    request: web.Request, head: dict[str, Any], pieces: AsyncIterator[Piece], *, with_usage: bool
) -> web.StreamResponse:
    """Send each piece as it comes; an error before the first one is still an answer of its own."""
    first = await anext(pieces)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    head = {**head, "object": "chat.completion.chunk", **({"usage": None} if with_usage else {})}
    open_ones, counted = dict.fromkeys(range(len(first.texts))), [first.prompt_tokens, 0]
    choices = [choice(index, delta={"role": "assistant", "content": ""}) for index in open_ones]
    piece: Piece | None = first
    try:
        while piece is not None:
            counted[1] += piece.tokens
            for index in list(open_ones):
                if text := piece.texts[index]:
                    choices.append(choice(index, delta={"content": text}))
                if reason := piece.reasons[index]:
                    del open_ones[index]
                    choices.append(choice(index, reason, delta={}))
            await response.write(b"".join(event({**head, "choices": [one]}) for one in choices))
            choices, piece = [], await anext(pieces, None)
        # of a model that does not tell why it ends
        last = [event({**head, "choices": [choice(index, "stop", delta={})]}) for index in open_ones]
        if with_usage:
            last.append(event({**head, "choices": [], "usage": usage(*counted)}))
    except Refused as error:
        last = [event(error.body)]
    await response.write(b"".join([*last, b"data: [DONE]\n\n"]))
    return response


def event(body: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def to_inputs(body: dict[str, Any]) -> dict[str, Any]:
    """Return what of a request's body goes to the ensemble: the conversation, and all that is left as parameters."""
    given = {name: value for name, value in body.items() if value is not None and name not in WITHOUT_EFFECT}
    messages = given.pop("messages", None)
    if not isinstance(messages, list) or not all(isinstance(one, dict) and "role" in one for one in messages):
        raise Refused(400, "messages must be a list of objects with role and content")
    for name in UNSUPPORTED:
        if given.pop(name, None):
            raise Refused(400, f"{name} is not supported here", "unsupported_parameter")
    if (most := given.pop("max_completion_tokens", None)) is not None:
        given["max_tokens"] = most
    if (kind := given.pop("response_format", {"type": "text"})) != {"type": "text"}:
        given["structured_outputs"] = structure(kind)
    return {"chat_input": json.dumps(messages), "sampling_parameters": json.dumps(given)}


def structure(kind: Any) -> dict[str, Any]:
    """Return vLLM's structured output for OpenAI's response format."""
    if kind == {"type": "json_object"}:
        return {"json_object": True}
    try:
        return {"json": kind["json_schema"]["schema"]}
    except (TypeError, KeyError):
        raise Refused(400, "response_format must be text, json_object, or json_schema with its schema") from None


def whole(piece: Piece) -> dict[str, Any]:
    """Return the rest of the body of an answer that comes at once."""
    sequences = enumerate(zip(piece.texts, piece.reasons, strict=True))
    choices = [
        choice(index, reason or "stop", message={"role": "assistant", "content": text})
        for index, (text, reason) in sequences
    ]
    return {"choices": choices, "usage": usage(piece.prompt_tokens, piece.tokens)}


def choice(index: int, reason: str | None = None, **content: Any) -> dict[str, Any]:
    """Return one of an answer's sequences."""
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}


def usage(prompt_tokens: int, tokens: int) -> dict[str, int] | None:
    """Return how many tokens there were; None if the model does not tell."""
    total = prompt_tokens + tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": total} if total else None


def main(words: list[str]) -> None:
    """Serve until this process, or the one it ends with, is ended."""
    parser = argparse.ArgumentParser(description="OpenAI's chat completions in front of an ensemble")
    parser.add_argument("--triton", required=True, help="Triton's HTTP endpoint, host:port")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", default="chat", help="an ensemble with chat_input and text_output")
    parser.add_argument("--ends-with", type=int, help="a process whose end is the gateway's too")
    given = parser.parse_args(words)

    async def made() -> web.Application:
        if given.ends_with:
            with suppress(OSError):  # where the kernel cannot say, who started the gateway ends it
                process = os.pidfd_open(given.ends_with)
                asyncio.get_running_loop().add_reader(process, signal.raise_signal, signal.SIGTERM)
        return Gateway(given.triton, given.model, os.environ.get(KEY_VARIABLE, "")).app()

    how: dict[str, Any] = {"print": None, "access_log": None, "shutdown_timeout": SHUTDOWN_S}
    web.run_app(made(), host=given.host, port=given.port, handler_cancellation=True, **how)


if __name__ == "__main__":
    main(sys.argv[1:])
