# SPDX-License-Identifier: Apache-2.0
"""Which notebooks run with which parameters, checked before anything starts, and kept so that a stopped run goes on.

papermill itself only warns about unknown names and takes any type.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat

from ensemblekit.batch.translate import LANGUAGE
from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root
from ensemblekit.releases import known_release
from ensemblekit.settings import Settings, check_settings

__all__ = ["Notebook", "Parameter", "RunPlan", "choose_notebooks", "distribute", "read_sets"]

RELEASE_NAME = re.compile(r"\b\d\d\.\d\d\b")
STAND_IN = "stand-in"
PLAN = "plan.json"
SETS_HINT = "a list of parameter sets, for example `- {RELEASE: 24.08, ENGINE: stand-in}`"
FOLDERS = ("exercises", "solutions", LANGUAGE)  # beside the lessons
TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell.

    Attributes:
        name: Upper case.
        type_name: As annotated.
        default: The literal.
        comment: What stands behind `#`: unit and legal values.
    """

    name: str
    type_name: str
    default: Any
    comment: str

    def parse(self, text: str) -> Any:
        """Return a command-line text as a value of this parameter's type.

        Raises:
            ParameterError: The text is none.
        """
        kind = TYPES.get(self.type_name, str)
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            return kind(text)
        except (ValueError, KeyError):
            raise ParameterError(
                f"use {self.name} = {text!r}",
                found=f"it takes a value of type {self.type_name}",
                hint=f"its default is {self.default!r}: {self.comment}",
            ) from None

    def takes_release(self, release: str) -> bool:
        """Return whether a RELEASE is among those that the comment names (all are, if it names none)."""
        named = RELEASE_NAME.findall(self.comment)
        return not named or release in named


@dataclass(frozen=True)
class Notebook:
    """A lesson, an exercise or a solution to execute."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name without suffix; for an exercise or a solution, behind the name of its folder."""
        folder = self.path.parent.name
        return f"{folder}-{self.path.stem}" if folder in FOLDERS else self.path.stem

    @cached_property
    def content(self) -> nbformat.NotebookNode:
        """What stands in the file."""
        content: nbformat.NotebookNode = nbformat.read(self.path, as_version=4)
        return content

    @cached_property
    def title(self) -> str:
        """The first heading, or the name."""
        text = "\n".join(cell.source for cell in self.content.cells if cell.cell_type == "markdown")
        found = re.search(r"^# (.+)$", text, re.MULTILINE)
        return found[1].strip() if found else self.name

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters, by name, in their order."""
        cells = [c for c in self.content.cells if "parameters" in c.metadata.get("tags", [])]
        return {p.name: p for cell in cells for p in _read_parameters(cell.source)}


def _read_parameters(source: str) -> list[Parameter]:
    """Return what a parameters cell assigns; lines that are no plain literal are none."""
    lines, found = source.splitlines(), []
    for node in ast.parse(source).body:
        target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(target, ast.Name) and node.value:
            default = ast.literal_eval(node.value)
            annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else type(default).__name__
            comment = lines[(node.end_lineno or 1) - 1][node.end_col_offset :].partition("#")[2].strip()
            found.append(Parameter(target.id, annotation, default, comment))
    return found


def choose_notebooks(only: Sequence[str] = (), *, folder: Path | None = None) -> list[Notebook]:
    """Return the lessons in order, or the notebooks whose number or name is in `only`.

    Args:
        only: Numbers such as `01`, or names, or the begin of a name; `exercises/01`, `zh/01` for other folders.
        folder: Where the lessons are, by default the checkout's `notebooks/`.

    Raises:
        ParameterError: An entry of `only` fits no notebook, or there is none at all.
    """
    folder = folder or repo_root() / "notebooks"
    found = [notebook for word in only or [""] for notebook in _chosen(word, folder)]
    order = {"": 0} | {name: at for at, name in enumerate(FOLDERS, 1)}
    return sorted(dict.fromkeys(found), key=lambda one: (order.get(one.path.parent.name, 0), one.path.name))


def _chosen(word: str, folder: Path) -> list[Notebook]:
    """Return the notebooks that an entry of `--only` means; all lessons for none."""
    *above, last = Path(word).parts or ("",)
    inner = above[-1] if above and above[-1] in FOLDERS else ""
    last = last.removesuffix(".ipynb")
    if last in FOLDERS:
        inner, last = last, ""
    begin = last.zfill(2) + "_" if last.isdigit() else last
    known = [Notebook(path) for path in sorted((folder / inner).glob("[0-9]*.ipynb"))]
    chosen = [notebook for notebook in known if notebook.path.stem.startswith(begin)]
    if not chosen:
        kind = "lessons" if inner in ("", LANGUAGE) else inner
        raise ParameterError(
            f"choose the {kind.removesuffix('s')} {word!r}" if word else f"find the lessons in {folder}",
            found=f"the {kind} are {', '.join(one.path.stem for one in known)}" if known else "no notebook",
            hint="give a number or a name, for example `--only 01` or `--only exercises/01`",
        )
    return chosen


def distribute(lessons: Sequence[Notebook], given: Mapping[str, str], *, quick: bool) -> dict[str, dict[str, Any]]:
    """Return each lesson's parameters: what was given, where the lesson has it, and the stand-in if `quick`.

    A RELEASE goes only to lessons whose parameters cell names it as legal: lesson 05 keeps its own.

    Raises:
        ParameterError: No chosen lesson has a parameter of that name, or takes that value.
    """
    for name, text in given.items():
        takers = [lesson for lesson in lessons if name in lesson.parameters]
        if not takers:
            known = sorted({name for lesson in lessons for name in lesson.parameters})
            raise ParameterError(
                f"set the parameter {name}",
                found="no chosen lesson has one of that name",
                hint=f"the names are {', '.join(known)}" if known else "the chosen lessons have none",
            )
        if name == "RELEASE":
            _require_release(takers, text)
    if quick and given.get("ENGINE", STAND_IN) != STAND_IN:
        raise ParameterError(
            f"run with --quick and ENGINE {given['ENGINE']!r}",
            found="--quick means that nothing of vLLM is installed",
            hint="leave one of the two out",
        )
    return {lesson.name: _for_lesson(lesson, given, quick) for lesson in lessons}


def _require_release(takers: Sequence[Notebook], release: str) -> None:
    known_release(release)
    if not any(lesson.parameters["RELEASE"].takes_release(release) for lesson in takers):
        legal = "; ".join(f"{lesson.name}: {lesson.parameters['RELEASE'].comment}" for lesson in takers)
        raise ParameterError(
            f"run the chosen lessons with release {release}",
            found=f"none of them takes it ({legal})",
            hint="choose a release that they name, or other lessons with --only",
        )


def _for_lesson(lesson: Notebook, given: Mapping[str, str], quick: bool) -> dict[str, Any]:
    values = {name: lesson.parameters[name].parse(text) for name, text in given.items() if name in lesson.parameters}
    if "RELEASE" in values and not lesson.parameters["RELEASE"].takes_release(values["RELEASE"]):
        del values["RELEASE"]
    if quick and "ENGINE" in lesson.parameters:
        values["ENGINE"] = STAND_IN
    if values:
        _check_now(lesson, values)
    return values


def _check_now(lesson: Notebook, values: Mapping[str, Any]) -> None:
    """Refuse what the lesson itself would refuse, before a kernel is started for it.

    Raises:
        ParameterError: A value is not one of the legal ones.
    """
    defaults = {name: parameter.default for name, parameter in lesson.parameters.items()}
    known = {name.upper() for name in Settings.model_fields}
    check_settings(**{name: value for name, value in {**defaults, **values}.items() if name in known})


@dataclass(frozen=True)
class RunPlan:
    """What `ensemblekit run` was asked for.

    Attributes:
        only: As `choose_notebooks` takes them.
        given: Parameters by name, as text.
        quick: Whether the stand-in takes the place of vLLM.
        cell_timeout_s: How long a cell may take.
        sets: Parameters of each run of a sweep, beside those given; empty for a single run.
    """

    only: Sequence[str]
    given: Mapping[str, str]
    quick: bool
    cell_timeout_s: float
    sets: Sequence[Mapping[str, str]] = ()

    def runs(self, folder: Path) -> list[tuple[Path, dict[str, str]]]:
        """Return the folder and the parameters of each run: the plan's own folder, or one below it for each set."""
        if not self.sets:
            return [(folder, dict(self.given))]
        return [(folder / f"{at:02d}", {**self.given, **one}) for at, one in enumerate(self.sets, 1)]

    def save(self, folder: Path) -> None:
        """Write the plan into a folder, which is made.

        Raises:
            OSError: It cannot be written.
        """
        folder.mkdir(parents=True)
        (folder / PLAN).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "RunPlan":
        """Return the plan of a run's folder.

        Raises:
            ParameterError: There is none.
        """
        try:
            return cls(**json.loads((folder / PLAN).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ParameterError(
                f"go on with the run {folder}", found=f"no plan of a run: {error}", hint="`ensemblekit runs` lists them"
            ) from error


def read_sets(path: Path) -> list[dict[str, str]]:
    """Return the parameter sets of a sweep's YAML file.

    Raises:
        ParameterError: The file is no list of parameter sets.
    """
    import yaml

    try:
        sets = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # noqa: S506 - texts only: 24.10 is no number
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ParameterError(f"read the sweep {path}", found=str(error), hint=SETS_HINT) from error
    if not isinstance(sets, list) or not sets or not all(_is_set(one) for one in sets):
        raise ParameterError(f"read the sweep {path}", found="something else", hint=SETS_HINT)
    return sets


def _is_set(one: Any) -> bool:
    return isinstance(one, dict) and bool(one) and all(isinstance(text, str) for text in [*one, *one.values()])
