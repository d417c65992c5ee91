# SPDX-License-Identifier: Apache-2.0
"""Pages readable without a network and without Jupyter: the report of a run, and what a doctor found."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, PackageLoader, StrictUndefined
from nbformat import NotebookNode

from ensemblekit.batch.notebooks import STAND_IN
from ensemblekit.batch.runner import LessonResult, Run
from ensemblekit.diagnose.doctor.report import DoctorReport
from ensemblekit.paths import repo_root
from ensemblekit.records import read_records

__all__ = ["write_doctor_page", "write_report"]

QUICK_TEXT = (
    "Quick mode: the model llm on these pages is a Python stand-in, no vLLM ran. The Triton server, its "
    "messages and the ensemble are real; answers, token counts and times of llm are not those of a model."
)
WIDGET_TEXT = "This cell makes a widget for JupyterLab; a run without a browser leaves it out."
WIDGET_TYPE = "application/vnd.jupyter.widget-view+json"
CONTEXT_KEYS = ("release", "flavour", "provider", "engine", "device")  # the same in every record: one column
KEY_RECORDS = 6  # the index shows so many; all of them stand in records/
NOTEBOOK_LINK = re.compile(r'<a href="(?:\./)?(\d\d_[^"/#]+)\.ipynb(#[^"]*)?">(.*?)</a>', re.DOTALL)
UNITS = {"s": "s", "ms": "ms", "gib": "GiB", "mib": "MiB", "tokens": "tokens"}
SHOWN_TYPES = ("text/plain", "text/html", "text/markdown", "text/latex", "image/png", "image/jpeg")
PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[\w+/=\s]*$")
ATTRIBUTES = ("alt", "class", "id", "title", "style", "open", "start", "colspan", "rowspan", "width", "height")
CODE_STYLES = ("default", "github-dark")
TAGS = """
    a abbr b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li
    ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul var
"""
# what the doctor says of a check, as a class of the stylesheet
BADGES = {"ok": "passed", "warning": "interrupted", "error": "failed", "skipped": ""}
LONG_VALUE = 60  # characters; longer records are for the JSON file


def write_report(run: Run) -> Path:
    """Write `report/` into the run's folder and return its index page.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    pages = [result for result in run.results if (run.folder / "executed" / f"{result.name}.ipynb").is_file()]
    templates, records = _templates(), _records(run.folder)
    shared = {"run": run, "quick_text": QUICK_TEXT if _is_quick(run) else "", "machine": run.machine}
    for before, result, after in _neighbours(pages):
        body = _body(run.folder / "executed" / f"{result.name}.ipynb", {page.name for page in pages})
        page = templates.get_template("page.html.j2")
        text = page.render(shared, result=result, before=before, after=after, body=body, code_style=_code_style())
        (folder / f"{result.name}.html").write_text(text)
    rows = [
        {"result": r, "page": f"{r.name}.html" if r in pages else ""} | _row(records.get(r.name, {}), r.takes)
        for r in run.results
    ]
    index = folder / "index.html"
    index.write_text(templates.get_template("index.html.j2").render(shared, rows=rows, logs=_logs(run.folder)))
    return index


def write_doctor_page(found: DoctorReport) -> Path:
    """Write `report.html` into the folder of what the doctor found, and return it.

    Raises:
        OSError: It cannot be written.
    """
    page = found.folder / "report.html"
    page.write_text(_templates().get_template("doctor.html.j2").render(found=found, badge=BADGES))
    return page


def _is_quick(run: Run) -> bool:
    return run.quick or any(result.parameters.get("ENGINE") == STAND_IN for result in run.results)


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("ensemblekit.batch"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = _duration
    environment.filters["label"] = _label
    return environment


def _duration(seconds: float) -> str:
    """Return seconds as a reader wants them.

    >>> _duration(7.25), _duration(135)
    ('7.2 s', '2 min 15 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _label(name: str) -> str:
    """Return the name of a record as a reader wants it, its unit behind a comma.

    >>> _label("ready_s"), _label("memory_gib"), _label("exit_code")
    ('ready, s', 'memory, GiB', 'exit code')
    """
    words = name.split("_")
    unit = UNITS.get(words[-1]) if len(words) > 1 else None
    return f"{' '.join(words[:-1])}, {unit}" if unit else " ".join(words)


def _neighbours(
    pages: Sequence[LessonResult],
) -> list[tuple[LessonResult | None, LessonResult, LessonResult | None]]:
    padded = [None, *pages, None]
    return [(a, b, c) for (a, b), (_, c) in pairwise(pairwise(padded)) if b is not None]


def _body(executed: Path, names: Collection[str]) -> str:
    """Return an executed notebook as a piece of HTML in which nothing runs.

    nbconvert's whole pages fetch require.js and MathJax from the web; its `basic` template is the cells only.
    """
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _shown_outputs(cell)
    # embed_images would have each piece of HTML "repaired" by itself, so that <details> closes before its answer;
    # nbconvert's own sanitising does the same, so the finished page is cleaned, as a whole
    exporter = HTMLExporter(template_name="basic", embed_images=False, anchor_link_text="")
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"path": str(repo_root() / "notebooks")}})
    text: str = _cleaner().clean(NOTEBOOK_LINK.sub(partial(_page_link, names), body))
    return text


def _code_style() -> str:
    """Return the style sheet of coloured code, for light and dark."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=name, nobackground=True).get_style_defs(".highlight") for name in CODE_STYLES)
    return f"{light} @media (prefers-color-scheme: dark) {{ {dark} }}"


@cache
def _cleaner() -> Any:
    """Return what takes scripts, handlers and foreign addresses out of a page.

    A model's answer, a log line or a name is part of a notebook's outputs, and may be HTML or Markdown there.
    """
    from bleach import Cleaner
    from bleach.css_sanitizer import CSSSanitizer

    styles = CSSSanitizer(allowed_css_properties=["text-align", "color", "background-color", "font-weight"])
    return Cleaner(
        tags=TAGS.split(), attributes=_is_harmless, protocols=["http", "https", "data"], css_sanitizer=styles
    )


def _is_harmless(tag: str, name: str, value: str) -> bool:
    if name == "src":
        return tag == "img" and bool(PICTURE.match(value))
    if name == "href":
        return tag == "a" and not value.strip().lower().startswith("data:")
    return name in ATTRIBUTES


def _page_link(names: Collection[str], link: re.Match[str]) -> str:
    """Return a link between lessons as one between pages; plain text if this run has no such page."""
    name, anchor, text = link.groups(default="")
    return f'<a href="{name}.html{anchor}">{text}</a>' if name in names else text


def _shown_outputs(cell: NotebookNode) -> list[NotebookNode]:
    tags = cell.metadata.get("tags", [])
    if "skip-execution" in tags:
        return [nbformat.v4.new_output("stream", name="stdout", text=WIDGET_TEXT)]
    if "hide-output" in tags:
        return []
    for output in cell.outputs:
        if "data" in output:  # a widget's data has a text too, which only names it
            kinds = SHOWN_TYPES if WIDGET_TYPE not in output.data else ()
            output.data = {kind: value for kind, value in output.data.items() if kind in kinds}
    return [output for output in cell.outputs if output.get("data", True)]


def _records(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        return read_records(folder)
    except (OSError, json.JSONDecodeError):
        return {}


def _row(record: Mapping[str, Any], takes: Sequence[str]) -> dict[str, Any]:
    """Return what the index shows of a lesson's record: what it ran on, and its first few short values."""
    plain = {name: _text(value) for name, value in record.items() if name not in CONTEXT_KEYS}
    short = {name: text for name, text in plain.items() if len(text) <= LONG_VALUE}
    context = " · ".join(str(record[key]) for key in CONTEXT_KEYS if record.get(key) and key.upper() in takes)
    return {"context": context, "values": dict(list(short.items())[:KEY_RECORDS])}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value) if isinstance(value, str | int) else json.dumps(value)


def _logs(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted((folder / "servers").rglob("*.log"))]
