# SPDX-License-Identifier: Apache-2.0
"""README.md of the atlas: the catalogue beside what the servers said. `python -m tests.atlas.table` writes it."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.faults.catalogue import FAULTS
from ensemblekit.faults.fault import Fault
from tests.atlas.cases import ATLAS, CASES, Case
from tests.atlas.measure import Answer, measure_all, said_first, spoken

__all__ = ["README", "render"]

README = ATLAS / "README.md"
HEAD = """# The fault atlas
One repository per fault in `faults/`. `test_servers.py` loads each on the real servers 24.08 and 24.10, and compares
their words with the catalogue's (`scripts/ensemblekit/faults/`), with what `ensemblekit lint` predicts before the
start, and with the root cause that `ensemblekit explain` finds in the log.

`python -m tests.atlas.table` writes this page from those servers' answers; a test compares it.
"""
LOAD_HEAD = """
## Faults that stop a load
*load API*: HTTP status in explicit mode; "hidden" where it says only "failed to poll from model repository" and the
reason stands in the server's log. The words were said by the 24.08 server; those of 24.10 are the same.

| code | fault | load API | what the server said | fix |
| --- | --- | --- | --- | --- |
"""
LATE_HEAD = """
## Traps that load, and break later
*shown*: on real servers; "lint" where none here can show it.

| code | trap | shown | what happens | fix |
| --- | --- | --- | --- | --- |
"""


def render(answers: Mapping[str, Answer]) -> str:
    """Return the page for these answers, by folder."""
    loads = [_load_row(case, answers) for case in CASES if case.code[0] == "E"]
    by_code = {case.code: case for case in CASES}
    late = [_late_row(entry, by_code.get(entry.code, by_code["T302"])) for entry in FAULTS if entry.code[0] == "T"]
    return "".join([HEAD, LOAD_HEAD, *loads, LATE_HEAD, *late])


def _load_row(case: Case, answers: Mapping[str, Answer]) -> str:
    answer = answers.get(case.folder)
    words = _words(case, answer) if answer else case.fault.message
    status = f"{case.fault.status}, hidden" if case.fault.hidden else str(case.fault.status)
    if case.how == "start":
        status = "server hangs" if answer and answer.kind == "stuck" else "server exits"
    elif not answer:
        status = f"not shown: {case.why}"
    cells = (_link(case.fault, case), case.fault.title, status, f"`{words}`", _cell(case.fault.fix))
    return f"| {' | '.join(cells)} |\n"


def _words(case: Case, answer: Answer) -> str:
    """Return the whole sentence that lint predicted if the server said it, else what the pattern found."""
    predicted = said_first(lint_repository(case.path, gpus=0, backends=frozenset({"python", "vllm"})), case)
    words = predicted if predicted and predicted in answer.text else spoken(case, answer)
    return _cell(re.sub(r"/[^\s']*/repository", "/models", words.splitlines()[0]))


def _late_row(entry: Fault, case: Case) -> str:
    shown = "lint" if case.how == "lint" or entry.code == "T307" else "server"
    what = f"HTTP {entry.status}: `{entry.message}`" if entry.status and entry.message else entry.cause
    cells = (_link(entry, case), entry.title, shown, _cell(what), _cell(entry.fix))
    return f"| {' | '.join(cells)} |\n"


def _link(entry: Fault, case: Case) -> str:
    return f"[{entry.code}](faults/{case.folder})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Start the servers and write the page."""
    with tempfile.TemporaryDirectory() as name:
        loads, starts = measure_all(Path(name), ("24.08",))
    README.write_text(render(loads["24.08"] | starts))


if __name__ == "__main__":
    main()
