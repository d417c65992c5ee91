# SPDX-License-Identifier: Apache-2.0
"""The report: every page readable without a network, honest about quick mode, linked both ways."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from nbformat import v4, write

from ensemblekit.batch.report import QUICK_TEXT, WIDGET_TEXT, write_report
from ensemblekit.batch.runner import LessonResult, Run

MACHINE = {"system": "Debian", "cores": "2", "Python": "3.11.7", "numpy": "1.26.4"}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def a_notebook(folder: Path, name: str) -> None:
    """Write an executed notebook with one of everything that a page must handle."""
    plain = v4.new_code_cell("print(1)", execution_count=1, outputs=[v4.new_output("stream", text="<one>\n")])
    picture = v4.new_code_cell("plot()", outputs=[v4.new_output("display_data", {"image/png": PIXEL})])
    widget = v4.new_code_cell("prompt_box()", metadata={"tags": ["skip-execution", "nbval-skip"]})
    hidden = v4.new_code_cell(
        "noise()", metadata={"tags": ["hide-output"]}, outputs=[v4.new_output("stream", text="secret noise")]
    )
    markdown = v4.new_markdown_cell(
        "# A title\n\nSee [the next](02_second.ipynb#there), [another](05_absent.ipynb) and `code`.\n\n"
        "<details><summary>Answer</summary>\n\nIt is *this*.\n</details>"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write(v4.new_notebook(cells=[markdown, plain, picture, widget, hidden]), folder / f"{name}.ipynb")


@pytest.fixture
def a_run(tmp_path: Path) -> Run:
    """A quick run of three lessons, of which the last did not get to run."""
    for name in ("01_first", "02_second"):
        a_notebook(tmp_path / "executed", name)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "01_first.json").write_text('{"wasted_s": 5.1234567, "loaded": ["a", "b"], "engine": "x"}')
    (tmp_path / "servers" / "01_first").mkdir(parents=True)
    (tmp_path / "servers" / "01_first" / "server.log").touch()
    results = (
        LessonResult(
            "01_first",
            "The first",
            "passed",
            7.25,
            4,
            4,
            takes=("ENGINE",),
            parameters={"ENGINE": "stand-in"},
        ),
        LessonResult("02_second", "The second", "failed", 75.0, 4, 2, "Could not <do> it.\nHint: try"),
        LessonResult("03_third", "The third", "not run"),
    )
    return Run("20260101-quick", tmp_path, True, "2026-01-01 12:00:00", 82.0, results, MACHINE)


def pages(run: Run) -> dict[str, str]:
    """The pages of a run's report by file name."""
    index = write_report(run)
    return {path.name: path.read_text() for path in sorted(index.parent.glob("*.html"))}


class Loads(HTMLParser):
    """Collects what a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "script":
            self.found.append(f"script {given.get('src')}")
        if tag in ("img", "link", "iframe"):
            self.found.append(given.get("src") or given.get("href") or "")


def test_every_page_fetches_nothing(a_run: Run) -> None:
    for name, text in pages(a_run).items():
        loads = Loads()
        loads.feed(text)
        assert [found for found in loads.found if not found.startswith("data:")] == [], name
        assert not re.search(r"@import|url\(", text), name
        assert "Content-Security-Policy\" content=\"default-src 'none'; img-src data:;" in text, name


def test_quick_run_says_so_on_every_page(a_run: Run) -> None:
    found = pages(a_run)

    assert list(found) == ["01_first.html", "02_second.html", "index.html"]
    assert all(QUICK_TEXT in text for text in found.values())


def test_full_run_does_not_speak_of_a_stand_in(a_run: Run) -> None:
    results = tuple(LessonResult(r.name, r.title, r.outcome, r.seconds) for r in a_run.results)
    run = Run(a_run.run_id, a_run.folder, False, a_run.began, a_run.seconds, results, MACHINE)

    assert not any("stand-in" in text for text in pages(run).values())


def test_index_shows_outcome_time_records_and_logs(a_run: Run) -> None:
    text = pages(a_run)["index.html"]

    assert "Not every lesson did what it should" in text
    assert "1 of 3 lessons passed in 1 min 22 s" in text
    assert '<a href="01_first.html">The first</a>' in text
    assert "03_third.html" not in text
    assert "<dt>wasted, s</dt><dd>5.123</dd>" in text
    assert "<dd>a, b</dd>" in text
    assert "Could not &lt;do&gt; it." in text
    assert 'href="../servers/01_first/server.log"' in text
    assert "<dt>numpy</dt><dd>1.26.4</dd>" in text


def test_page_shows_inputs_outputs_pictures_and_neighbours(a_run: Run) -> None:
    text = pages(a_run)["01_first.html"]

    assert "&lt;one&gt;" in text
    assert f"data:image/png;base64,{PIXEL[:20]}" in text
    assert '<a href="02_second.html">The second →</a>' in text
    assert '<a href="02_second.html#there">the next</a>, another and' in text


def test_page_folds_the_answers_to_its_questions(a_run: Run) -> None:
    (details,) = re.findall(r"<details>(.*?)</details>", pages(a_run)["01_first.html"], re.DOTALL)

    assert "<p>It is <em>this</em>.</p>" in details


def test_page_leaves_out_widgets_and_hidden_outputs(a_run: Run) -> None:
    text = pages(a_run)["01_first.html"]

    assert WIDGET_TEXT in text
    assert "secret noise" not in text
