# SPDX-License-Identifier: Apache-2.0
"""Make the exercise notebooks from the solutions: what a participant has to find is taken out, its names stay.

In a solution, a code cell tagged `solution` has a line `# solution`. What stands above it stays; of what
stands below it, the exercise keeps the names that other cells use and the heads of functions, each with `...`.

An exercise notes in its metadata the digest of what it asked when it was made. One whose cells are no longer those
holds somebody's answers: it is never overwritten, only moved to a new name when its owner asks for a fresh one.
"""

import ast
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ensemblekit.errors import RepositoryError
from ensemblekit.paths import repo_root

__all__ = [
    "Written",
    "different",
    "exercise_from",
    "exercises_dir",
    "outdated_exercises",
    "solutions_dir",
    "write_exercises",
]

TAG, MARK = "solution", "# solution"
DROPPED_TAGS = (TAG, "nbval-check-output")  # an exercise has no outputs to compare with
DIGEST = "ensemblekit_made"  # the key in a notebook's metadata
SEE_SOLUTION = "**Done, or stuck?** Compare with [the solution](../solutions/{name})."


def solutions_dir() -> Path:
    """Return the folder of the solutions, which are written by hand."""
    return repo_root() / "notebooks" / "solutions"


def exercises_dir() -> Path:
    """Return the folder of the exercises, which are made from the solutions."""
    return repo_root() / "notebooks" / "exercises"


def exercise_from(solution: NotebookNode, name: str) -> NotebookNode:
    """Return the exercise of a solution.

    Args:
        solution: The solved notebook; it stays as it is.
        name: Its file name, for the link and for errors.

    Raises:
        RepositoryError: A code cell tagged `solution` has no line `# solution`.
    """
    exercise = nbformat.from_dict(solution)
    exercise.cells = [_open_cell(cell, solution, name) for cell in solution.cells if not _tells(cell)]
    ending = nbformat.v4.new_markdown_cell(SEE_SOLUTION.format(name=name), id="see-solution")
    exercise.cells.append(ending)
    exercise.metadata[DIGEST] = _digest(exercise)
    return exercise


def _digest(notebook: NotebookNode) -> str:
    """Return a digest of what stands in a notebook's cells."""
    return hashlib.sha256("\0".join(cell.source for cell in notebook.cells).encode()).hexdigest()[:16]


def _is_untouched(path: Path) -> bool:
    """Return whether an exercise is as it was made: nothing was written into it, and nothing was run."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError):
        return False
    ran = any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    return bool(not ran and notebook.metadata.get(DIGEST) == _digest(notebook))


def _tells(cell: NotebookNode) -> bool:
    return cell.cell_type == "markdown" and TAG in cell.metadata.get("tags", [])


def _open_cell(cell: NotebookNode, solution: NotebookNode, name: str) -> NotebookNode:
    made = nbformat.from_dict(cell)
    tags = cell.metadata.get("tags", [])
    kept = [tag for tag in tags if tag not in DROPPED_TAGS]
    made.metadata = nbformat.from_dict({"tags": kept} if kept else {})
    if cell.cell_type == "code":
        made.outputs, made.execution_count = [], None
        if TAG in tags:
            others = [one.source for one in solution.cells if one.cell_type == "code" and one is not cell]
            made.source = _without_answer(cell.source, {word for source in others for word in _names_in(source)}, name)
    return made


def _names_in(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def _without_answer(source: str, used: set[str], name: str) -> str:
    lines = source.splitlines()
    if MARK not in lines:
        raise RepositoryError(
            f"make the exercise of {name}",
            found=f"a cell tagged `{TAG}` has no line `{MARK}`: {lines[0] if lines else '(empty)'}",
            hint=f"put the line `{MARK}` above what a participant has to find",
        )
    at = lines.index(MARK)
    answer = "\n".join(lines[at + 1 :])
    heads = [head for statement in ast.parse(answer).body for head in _heads(statement, answer, used)]
    return "\n".join([*lines[:at], *(heads or ["..."])])


def _heads(statement: ast.stmt, source: str, used: set[str]) -> list[str]:
    """Return what an exercise shows of a statement: `name = ...`, or a function without its body."""
    if isinstance(statement, ast.FunctionDef):
        documented = isinstance(statement.body[0], ast.Expr) and isinstance(statement.body[0].value, ast.Constant)
        last = (statement.body[0].end_lineno or 0) if documented else statement.body[0].lineno - 1
        return [*source.splitlines()[statement.lineno - 1 : last], "    ..."]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    plain = [target for target in targets if isinstance(target, ast.Name | ast.Tuple)]
    names = [node.id for target in plain for node in ast.walk(target) if isinstance(node, ast.Name)]
    return [f"{name} = ..." for name in names if name in used]


def _made(solutions: Path) -> dict[str, str]:
    """Return the text of every exercise, by file name."""
    texts = {}
    for path in sorted(solutions.glob("*.ipynb")):
        exercise = exercise_from(nbformat.read(path, as_version=4), path.name)
        texts[path.name] = nbformat.writes(exercise) + "\n"
    return texts


@dataclass(frozen=True)
class Written:
    """What became of the exercises: files that were written or removed, those left as they are, those moved."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    moved: tuple[Path, ...]


def write_exercises(solutions: Path, exercises: Path, *, fresh: Collection[str] = ()) -> Written:
    """Write the exercise of every solution and remove those without one; never one that holds answers.

    Args:
        solutions: The folder of the solutions.
        exercises: The folder of the exercises.
        fresh: Numbers or beginnings of the names of exercises to begin anew; their old files get a new name.

    Raises:
        RepositoryError: A solution cannot be turned into an exercise.
        OSError: The folder cannot be written.
    """
    made, moved, kept, written = _made(solutions), [], [], []
    exercises.mkdir(exist_ok=True)
    for name in different(made, exercises):
        path = exercises / name
        if path.exists() and not _is_untouched(path):
            if not any(name.startswith(begin) for begin in fresh):
                kept.append(path)
                continue
            moved.append(_set_aside(path))
        if name in made:
            path.write_text(made[name])
        else:
            path.unlink(missing_ok=True)
        written.append(path)
    return Written(tuple(written), tuple(kept), tuple(moved))


def _set_aside(path: Path) -> Path:
    """Move answers to the first free name beside them, and return it."""
    numbers = (number for number in range(1, 1000) if not path.with_suffix(f".answers-{number}.ipynb").exists())
    return path.rename(path.with_suffix(f".answers-{next(numbers)}.ipynb"))


def outdated_exercises(solutions: Path, exercises: Path) -> list[str]:
    """Return the names of exercises that are not what their solutions make now.

    Raises:
        RepositoryError: A solution cannot be turned into an exercise.
        OSError: A file cannot be read.
    """
    return different(_made(solutions), exercises)


def different(made: Mapping[str, str], folder: Path) -> list[str]:
    """Return the names of a folder's notebooks that are not what was made, or are missing; answers do not count.

    Raises:
        OSError: A file cannot be read.
    """
    paths = [path for path in folder.glob("*.ipynb") if ".answers-" not in path.name]
    there = {path.name: path.read_text(encoding="utf-8") for path in paths}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
