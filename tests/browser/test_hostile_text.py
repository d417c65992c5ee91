# SPDX-License-Identifier: Apache-2.0
"""Nothing that comes from outside runs in a page that the kit writes: names, logs, answers, parameters, records.

Each page is opened twice: with its Content-Security-Policy, and with a browser that ignores it, so that escaping and
sanitising are proven by themselves.
"""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from nbformat import v4, write
from playwright.sync_api import Browser, Page

from ensemblekit.batch.report import write_doctor_page, write_report
from ensemblekit.batch.runner import LessonResult, Run
from ensemblekit.diagnose.doctor.report import Check, DoctorReport
from ensemblekit.lesson.show import table
from tests.unit.test_report import PIXEL

PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "image-handler": "<img src=x onerror=alert(1)>",
    "svg-handler": "<svg onload=alert(1)><a xlink:href='javascript:alert(1)'><text y='20'>svg</text></a></svg>",
    "svg-script": "<svg><script>alert(1)</script><animate onbegin=alert(1) attributeName=x dur=1s></svg>",
    "out-of-attribute": "\"'><script>alert(1)</script><b onmouseover='alert(1)' title='",
    "link": "<a href=' jAvA&#x09;Script:alert(1)'>html link</a> [link](javascript:alert(1)) <javascript:alert(1)>",
    "toggle": "<details open ontoggle=alert(1)><summary onclick=alert(1)>more</summary>x</details>",
    "frame": "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe><object data='javascript:alert(1)'></object>",
    "mutation": "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=alert(1)&gt;'>",
    "form": "<form action='javascript:alert(1)'><button autofocus onfocus=alert(1)>go</button></form></article>",
    "markdown-table": "| a |\n| --- |\n| <img src=x onerror=alert(1)> |\n\n[a]: javascript:alert(1)\n\n[a] `<script>`",
    "styled": "<style>*{color:red}</style><p style='background:url(javascript:alert(1))' onclick=alert(1)>styled</p>",
}
FILE_NAME = "01_<img src=x onerror=alert(1)>"
# what a reader might touch: every link is followed, every element hovered, clicked and focused
TOUCH = """() => document.querySelectorAll("body *").forEach((element) => {
  for (const kind of ["mouseover", "click", "focus", "toggle"])
    if (kind !== "click" || !element.closest("a[href$='.html'], a[href^='../'], a[href^='http']"))
      element.dispatchEvent(new MouseEvent(kind, {bubbles: true, cancelable: true}));
})"""
LEFT = """() => [...document.querySelectorAll("*")].filter((element) =>
  ["SCRIPT", "IFRAME", "OBJECT", "EMBED", "FORM", "BASE", "BUTTON"].includes(element.tagName.toUpperCase())
  || [...element.attributes].some(({name, value}) =>
       name.startsWith("on") || value.replace(/\\s/g, "").toLowerCase().startsWith("javascript:"))
).map((element) => element.outerHTML.slice(0, 120))"""


def _executed(folder: Path, text: str) -> None:
    """Write an executed notebook with the text in every place that a model, a log or a reader can fill."""
    data = {
        "stream": [v4.new_output("stream", text=text), v4.new_output("stream", name="stderr", text=text)],
        "html": [v4.new_output("display_data", {"text/html": text, "text/plain": text})],
        "markdown": [v4.new_output("display_data", {"text/markdown": text})],
        "table": [v4.new_output("display_data", {"text/markdown": table([(text, "answer")], ("name", text)).data})],
        "svg": [
            v4.new_output("display_data", {"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{text}</svg>"})
        ],
        "javascript": [v4.new_output("display_data", {"application/javascript": "alert(1)", "text/latex": text})],
        "error": [v4.new_output("error", ename=text, evalue=text, traceback=[text, f"\x1b[31m{text}\x1b[0m"])],
        "picture": [
            v4.new_output(
                "display_data",
                {"image/png": PIXEL, "image/jpeg": f"x{text}"},
                metadata={"image/png": {"alt": text, "width": text}, "filenames": {"image/jpeg": text}},
            )
        ],
    }
    cells = [v4.new_code_cell(f"answer = {text!r}\n{text}", outputs=outputs) for outputs in data.values()]
    cells[0].metadata["tags"] = [text]
    markdown = [v4.new_markdown_cell(f"# {text}"), v4.new_markdown_cell(text), v4.new_raw_cell(text)]
    folder.mkdir(parents=True, exist_ok=True)
    write(v4.new_notebook(cells=[*markdown, *cells]), folder / f"{FILE_NAME}.ipynb")


def _report(folder: Path, text: str) -> list[Path]:
    _executed(folder / "executed", text)
    (folder / "records").mkdir()
    (folder / "records" / f"{FILE_NAME}.json").write_text(json.dumps({text: text, "release": text, "x": [text]}))
    (folder / "servers" / FILE_NAME).mkdir(parents=True)
    (folder / "servers" / FILE_NAME / "server.log").touch()
    result = LessonResult(FILE_NAME, text, "failed", 1.0, 1, 1, text, {text: text, "RELEASE": text}, ("RELEASE", text))
    machine = {"system": text, "cores": text, "Python": text, text: text}
    index = write_report(Run(text, folder, True, text, 1.0, (result,), machine))
    return sorted(index.parent.glob("*.html"))


def _doctor(folder: Path, text: str) -> Path:
    folder.mkdir()
    steps = (
        Check("lint", "warning", text, (text, f"llm: {text}"), 1.0, {text: text}),
        Check("request", "ok", text, (text,), 1.0, {}),
    )
    return write_doctor_page(DoctorReport(Path(text), text, text, steps, text, 1.0, folder))


@pytest.fixture
def opened(browser: Browser) -> Iterator[list[Page]]:
    """A page in a browser that obeys a page's policy, and in one that does not."""
    contexts = [browser.new_context(bypass_csp=ignored) for ignored in (False, True)]
    yield [context.new_page() for context in contexts]
    for context in contexts:
        context.close()


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_nothing_from_outside_runs_in_a_page(opened: list[Page], payload: str, tmp_path: Path) -> None:
    ran = list[str]()
    paths = [*_report(tmp_path / "run", payload), _doctor(tmp_path / "doctor", payload)]

    assert len(paths) == 3
    for page in opened:
        page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    for page, path in product(opened, paths):
        page.goto(path.as_uri())
        assert page.evaluate(LEFT) == [], path
        page.evaluate(TOUCH)
        page.wait_for_function("() => document.readyState === 'complete'")
        assert ran == [], path
        assert page.url.partition("#")[0] == path.as_uri()


def test_policy_alone_stops_a_script(browser: Browser, tmp_path: Path) -> None:
    path = _doctor(tmp_path / "doctor", "a name")
    path.write_text(path.read_text().replace("<main>", "<main><script>alert(1)</script><img src=x onerror=alert(1)>"))
    page, ran = browser.new_page(), list[str]()
    page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))

    page.goto(path.as_uri())

    assert page.locator("script").count() == 1
    assert ran == []
    page.close()
