# SPDX-License-Identifier: Apache-2.0
"""What the checks of all exercises share: a task is one sentence that must hold, and a list of known mistakes."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, ParamSpec

import httpx

from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.diagnose.lint.run import lint_repository
from ensemblekit.errors import CheckFailed, KitError, ServerError
from ensemblekit.lesson.lesson import Lesson, Server
from ensemblekit.repository.stage import StagedRepository
from ensemblekit.servers.attach import URL_VARIABLE, AttachedServer

__all__ = ["FILL_IN", "UNTOUCHED", "Mistake", "excerpt", "lint_mistakes", "start", "task"]

FILL_IN = "fill in the cell marked Your turn, then run it and this cell again"
SHARE_VARIABLE = "ENSEMBLEKIT_SHARE_PROGRESS"  # 1: the instructor may see which tasks this seat has done
SHARE_TIMEOUT_S = 2.0
P = ParamSpec("P")
LONGEST_FOUND = 300  # characters of an answer that a message quotes


@dataclass(frozen=True)
class Mistake:
    """What a check found instead of the right answer, and the hint that leads on."""

    found: str
    hint: str


UNTOUCHED = Mistake("nothing has changed yet", FILL_IN)


def excerpt(value: object) -> str:
    """Return a value as a message quotes it.

    >>> excerpt("sea" * 200)[-8:]
    'asease …'
    """
    text = repr(value)
    return text if len(text) <= LONGEST_FOUND else f"{text[:LONGEST_FOUND]} …"


def task(sentence: str) -> Callable[[Callable[P, Iterator[Mistake]]], Callable[P, None]]:
    """Make a check of a function that yields the mistakes it finds: the first is told, none prints `ok: SENTENCE`."""

    def decorate(mistakes: Callable[P, Iterator[Mistake]]) -> Callable[P, None]:
        @wraps(mistakes)
        def confirm(*answers: P.args, **more: P.kwargs) -> None:
            mistake = _first_mistake(lambda: mistakes(*answers, **more), answers)
            if mistake:
                raise CheckFailed(f"confirm that {sentence}", found=mistake.found, hint=mistake.hint) from None
            print(f"ok: {sentence}")
            _share(mistakes.__module__.rpartition(".")[2], mistakes.__name__)

        return confirm

    return decorate


def _share(exercise: str, name: str) -> None:
    """Tell the workshop's server that a task is done, where this seat chose to; it says no name and no answer."""
    url = os.environ.get(URL_VARIABLE)
    if not url or not os.environ.get(SHARE_VARIABLE):
        return
    server = AttachedServer.at(url)
    with contextlib.suppress(httpx.HTTPError):  # a server that is gone is no fault of the answer
        asked = {"exercise": exercise, "task": name}
        page = f"http://{server.http_url}/progress"
        httpx.get(page, params=asked, headers=server.key_headers, timeout=SHARE_TIMEOUT_S, trust_env=False)


def _first_mistake(mistakes: Callable[[], Iterator[Mistake]], answers: tuple[object, ...]) -> Mistake | None:
    if any(_is_untouched(answer) for answer in answers):
        return UNTOUCHED
    try:
        return next(mistakes(), None)
    except KitError as error:
        return Mistake(error.found, error.hint)
    except Exception as error:
        return Mistake(f"your code raised {type(error).__name__}: {error}{_place(error)}", _hint_for(error))


def _hint_for(error: Exception) -> str:
    if isinstance(error, TypeError) and "argument" in str(error):
        return "keep the function's parameters as the cell marked Your turn gives them"
    if isinstance(error, UnicodeError):
        return "the bytes are UTF-8: decode and encode with that"
    return "try the function in a cell of its own, with a value that you choose"


def _place(error: Exception) -> str:
    """Return where in the notebook an error arose, if it did: frames of files are the kit's and of libraries."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if (
            not Path(trace.tb_frame.f_code.co_filename).is_absolute()
            or "ipykernel" in trace.tb_frame.f_code.co_filename
        ):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of its cell)" if line else ""


def _is_untouched(answer: object) -> bool:
    """Return whether an answer is still the `...` of the exercise, or a function whose body is."""
    if answer is ...:
        return True
    return isinstance(answer, FunctionType) and _does_nothing(answer.__code__, inspect.getdoc(answer))


def _does_nothing(code: CodeType, text: str | None) -> bool:
    said = {one for one in code.co_consts if not isinstance(one, str) or text is None}
    return not code.co_names and said <= {None, ...} and len(code.co_varnames) == _parameters(code)


def _parameters(code: CodeType) -> int:
    stars = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_argcount + code.co_kwonlyargcount + stars


def lint_mistakes(repository: StagedRepository) -> Iterator[Mistake]:
    """Yield what lint knows of a repository: what a server would refuse, before one is started."""
    for finding in lint_repository(repository.path, release="24.08", flavour="base-plus-vllm").findings:
        if finding.severity == "error":
            place = f"{finding.file.relative_to(repository.path)}" if finding.file.is_absolute() else str(finding.file)
            line = f":{finding.line}" if finding.line else ""
            yield Mistake(f"{finding.code} in {place}{line}: {finding.says or finding.title}", finding.fix)


def start(lesson: Lesson, repository: StagedRepository, *, name: str = "server", **choice: Any) -> Server:
    """Start a server on a repository and return it; what lint knows is said first, and in a few lines.

    Args:
        lesson: The exercise's lesson.
        repository: What the server serves.
        name: The folder of its log.
        **choice: `release` and `flavour`, where they are not the lesson's.

    Raises:
        CheckFailed: The repository, or the start, has a fault; the message names it.
    """
    for mistake in lint_mistakes(repository):
        raise CheckFailed("start the server", found=mistake.found, hint=mistake.hint)
    server = lesson.server(repository, name=name, **choice)
    try:
        return lesson.start(server)
    except ServerError as error:
        causes = explain_log(server.log_path).causes
        found = causes[0].says if causes else error.found
        hint = (causes[0].fix if causes else "") or error.hint
        raise CheckFailed("start the server", found=found, hint=hint, log_path=server.log_path) from None
