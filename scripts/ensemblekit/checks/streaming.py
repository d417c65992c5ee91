# SPDX-License-Identifier: Apache-2.0
"""Exercise 4: what a client asked for and how it read the answer, seen at the client's own functions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from ensemblekit.checks.task import Mistake, excerpt, task
from ensemblekit.clients import grpc
from ensemblekit.errors import RequestError

__all__ = ["begin_of", "limited", "repeatable"]

MOST_TOKENS = 6
TEMPERATURE = 0.8
LETTERS = (20, 30)  # two lengths: an answer that is cut at a fixed place fits only one
WHOLE = {"max_tokens": 200}


@dataclass
class Request:
    """One request as a client made it, and how it read the responses."""

    sampling: dict[str, Any] = field(default_factory=dict)
    streamed: bool = False
    end: str = "open"  # or read to the end, or closed early


@contextmanager
def _watched_requests() -> Iterator[list[Request]]:
    """Note every request that the kit's client makes meanwhile."""
    seen: list[Request] = []
    request_inputs, stream_results = grpc.request_inputs, grpc.stream_results

    def inputs(text: str, **more: Any) -> Any:
        """Return what was sent."""
        seen.append(Request(dict(more.get("sampling_parameters") or {}), bool(more.get("stream"))))
        return request_inputs(text, **more)

    def results(*given: Any) -> Any:
        """Return what came."""
        request = seen[-1]
        try:
            yield from stream_results(*given)
            request.end = "read to the end"
        except GeneratorExit:
            request.end = "closed early"
            raise

    with patch.multiple(grpc, request_inputs=inputs, stream_results=results):
        yield seen


def _is_greedy(sampling: dict[str, Any]) -> bool:
    return not sampling.get("temperature") or sampling.get("top_k") == 1


@task("the answer comes as a stream, greedy and at most 6 tokens long")
def limited(server: grpc.Served, question: str, function: Callable[..., Any]) -> Iterator[Mistake]:
    """Check a function that returns the pieces of a short greedy answer."""
    with _watched_requests() as requests:
        pieces = function(server, question)
    if pieces is None:
        yield Mistake("the function returns nothing", "end it with `return`")
    if isinstance(pieces, grpc.Answer):
        yield Mistake("an Answer", "the pieces are wanted, as a list: stream(...) yields them")
    if isinstance(pieces, str):
        yield Mistake(f"one text: {excerpt(pieces)}", "return the pieces themselves, as a list")
    if not isinstance(pieces, list | tuple):
        yield Mistake(f"a {type(pieces).__name__}", "stream(...) only promises the pieces: list(...) fetches them")
    if not requests:
        yield Mistake("the server was not asked", "call stream(server, question, sampling_parameters=...)")
    asked = requests[-1]
    if not asked.streamed:
        yield Mistake("a request without streaming", "ask() waits for the whole answer: use stream()")
    if asked.sampling.get("max_tokens") is None:
        about = f"sampling parameters {asked.sampling}: no max_tokens"
        yield Mistake(
            about, "cutting the list is no limit, the engine goes on: max_tokens tells the engine where to stop"
        )
    if not 1 < asked.sampling["max_tokens"] <= MOST_TOKENS:
        yield Mistake(f"max_tokens {asked.sampling['max_tokens']}", f"at most {MOST_TOKENS}, and enough for two pieces")
    if not _is_greedy(asked.sampling):
        about = f"temperature {asked.sampling['temperature']}"
        yield Mistake(about, "greedy means that the likeliest token is taken each time: that is temperature 0")
    whole = grpc.ask(server, question, sampling_parameters=asked.sampling).text
    if "".join(pieces) != whole:
        about = f"joined: {excerpt(''.join(pieces))}, the whole answer: {excerpt(whole)}"
        yield Mistake(about, "return every piece as it comes, its blanks too")


@task("the stream is stopped when there is enough text")
def begin_of(server: grpc.Served, question: str, function: Callable[..., Any]) -> Iterator[Mistake]:
    """Check a function that reads the beginning of an answer and then stops it."""
    full = grpc.ask(server, question, sampling_parameters=WHOLE).text
    for letters in LETTERS:
        with _watched_requests() as requests:
            begin = function(server, question, letters)
        yield from _of_text(begin, full, letters)
        yield from _of_reading(requests)
        if not full.startswith(begin):
            about = f"{excerpt(begin)} is not how the answer begins: {excerpt(full)}"
            yield Mistake(about, "join the pieces as they come, blanks included, and leave the sampling greedy")
        if len(begin) < letters:
            about = f"{len(begin)} letters of {letters}: {excerpt(begin)}"
            yield Mistake(
                about, "go on until there are as many letters as the parameter `letters` says, pieces are not letters"
            )


def _of_text(begin: object, full: str, letters: int) -> Iterator[Mistake]:
    if begin is None:
        yield Mistake("the function returns nothing", "end it with `return`, after the loop")
    if not isinstance(begin, str):
        yield Mistake(f"a {type(begin).__name__}: {excerpt(begin)}", "join the pieces to one text")
    if begin == full:
        about = f"the whole answer, though {letters} letters are enough"
        yield Mistake(about, "leave the loop as soon as there is enough")


def _of_reading(requests: list[Request]) -> Iterator[Mistake]:
    if not requests:
        yield Mistake("the server was not asked", "loop over stream(server, question, ...)")
    if not any(one.streamed for one in requests):
        yield Mistake("a request without streaming", "ask() waits for the whole answer: loop over stream()")
    ends = {one.end for one in requests}
    if "read to the end" in ends:
        about = "the stream was read to its end, and the text cut afterwards"
        yield Mistake(
            about,
            "list(stream(...)) waits for everything: leave the loop over stream() early, and the request is cancelled",
        )
    if "open" in ends:
        about = "the stream is still open"
        yield Mistake(
            about, "something outside the function still holds it: loop over it in the function, or call its close()"
        )


@task("the answer is free, and the same twice")
def repeatable(server: grpc.Served, question: str, free: Any) -> Iterator[Mistake]:
    """Check sampling parameters by what they say, and then by two answers."""
    if not isinstance(free, dict):
        yield Mistake(
            f"a {type(free).__name__}: {excerpt(free)}", "sampling parameters are a dictionary of names and values"
        )
    if "temperature" not in free:
        yield Mistake(f"{free}", "without a temperature the ensemble's default counts, which is greedy")
    if free["temperature"] == 0 or free.get("top_k") == 1:
        yield Mistake(f"{free}", "that is greedy: of course it is the same twice, but it is not free")
    if free["temperature"] != TEMPERATURE:
        yield Mistake(f"temperature {free['temperature']!r}", f"the task asks for {TEMPERATURE}, as a number")
    if near := [
        name for name in free if name != "seed" and name.lower().replace("_", "") in ("seed", "randomseed", "sed")
    ]:
        yield Mistake(f"the name {near[0]!r}", "the sampling parameter is called `seed`, in small letters")
    if free.get("seed") is None:
        about = f"{free}: no seed"
        yield Mistake(about, "each answer is drawn anew unless the draw starts from the same number, which you give")
    if type(free["seed"]) is not int or free["seed"] == -1:
        yield Mistake(f"seed {free['seed']!r}", "a whole number, without quotes; -1 means: a new one each time")
    try:
        one, two = (grpc.ask(server, question, sampling_parameters=free).text for _ in range(2))
    except RequestError as error:
        yield Mistake(error.found, "the server refuses a parameter: its words name it")
        return
    if one != two:
        yield Mistake(f"{excerpt(one)} and {excerpt(two)}", "the two answers differ: is the seed the same each time?")
