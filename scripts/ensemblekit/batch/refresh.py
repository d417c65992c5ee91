# SPDX-License-Identifier: Apache-2.0
"""Take the outputs of a run over into the lessons, so that a reader sees them and nbval has what to compare with."""

import re
from pathlib import Path

import nbformat

from ensemblekit.errors import RepositoryError

__all__ = ["refresh_outputs"]

# paths, addresses and the ports of one machine: such an output is dropped, a figure or a checked line never holds them
OF_ONE_MACHINE = re.compile(r"(?<![\w.:])/(?:home|root|work|tmp|opt|mnt|Users)/|127\.0\.0\.1:\d")
KEPT_METADATA = ("tags",)


def refresh_outputs(lesson: Path, executed: Path) -> int:
    """Copy outputs and execution counts from an executed notebook to its lesson and return how many cells have any.

    Args:
        lesson: The notebook in `notebooks/`; its cells stay as they are.
        executed: The same notebook as papermill left it, run with its defaults.

    Raises:
        RepositoryError: The two do not have the same cells: one of them was edited since, or run with parameters.
    """
    target, source = nbformat.read(lesson, as_version=4), nbformat.read(executed, as_version=4)
    ran = [cell for cell in source.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in ran] != [cell.source for cell in target.cells]:
        raise RepositoryError(
            f"take the outputs of {executed} over into {lesson.name}",
            found="the two have different cells",
            hint="run the lesson again with its defaults, then refresh",
        )
    for cell, done in zip(target.cells, ran, strict=True):
        cell.metadata = {key: cell.metadata[key] for key in KEPT_METADATA if key in cell.metadata}
        if cell.cell_type == "code":
            cell.outputs = [_clean(output) for output in done.outputs if not OF_ONE_MACHINE.search(_text(output))]
            cell.execution_count = done.execution_count
    nbformat.write(target, lesson)
    return sum(bool(cell.get("outputs")) for cell in target.cells)


def _text(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    return "".join([str(output.get("text", "")), *(str(data[kind]) for kind in data if kind.startswith("text/"))])


def _clean(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "metadata" in output:
        output.metadata = {}
    return output
