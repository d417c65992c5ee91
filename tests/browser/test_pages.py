# SPDX-License-Identifier: Apache-2.0
"""The report of a run as a reader sees it, on a desk and on a phone; its notebooks are the committed ones."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Page

from ensemblekit.batch.notebooks import Notebook, choose_notebooks
from ensemblekit.batch.report import write_report
from ensemblekit.batch.runner import LessonResult, Outcome, Run

WIDTHS = {"desk": 1200, "phone": 375}  # pixels
HEIGHT = 900
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "incomplete", "interrupted", "not run")
MACHINE = {"system": "Linux", "cores": "2", "Python": "3.11"}
# elements that stand out to the right, unless a parent scrolls or cuts them
OVERFLOWING = """() => {
  const width = document.documentElement.clientWidth, held = (element) => {
    for (let parent = element.parentElement; parent; parent = parent.parentElement)
      if (getComputedStyle(parent).overflowX !== "visible") return true;
    return false;
  };
  if (document.documentElement.scrollWidth > width) return [`the page: ${document.documentElement.scrollWidth} pixels`];
  return [...document.querySelectorAll("body *")].filter((element) => {
    const box = element.getBoundingClientRect();
    return element.textContent.trim() && box.width && box.right > width + 1 && !held(element);
  }).map((element) => `${element.tagName}: ${element.textContent.trim().slice(0, 60)}`);
}"""


# each text with its colour and the colour behind it, where their contrast is below WCAG's AA
PALE = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number), weights = [0.2126, 0.7152, 0.0722];
  const light = (rgb) => rgb.slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, at) => sum + weights[at] * value, 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = numbers(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    throw "no background";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), pale = new Set();
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.getClientRects().length) continue;
    const [front, back] = [numbers(getComputedStyle(element).color), behind(element)].map(light);
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (contrast < 4.5) pale.add(`${element.className || element.tagName} ${contrast.toFixed(1)}: ${text}`);
  }
  return [...pale];
}"""
GENERIC = re.compile(r"no description|^(?:image|picture|figure|plot|graph|<)|\.png", re.IGNORECASE)


def _result(lesson: Notebook) -> LessonResult:
    cells = sum(cell.cell_type == "code" for cell in lesson.content.cells)
    outcome = OUTCOMES[int(lesson.path.name[:2]) % len(OUTCOMES)]  # the pages are the same whatever it is
    message = "" if outcome == "passed" else f"Could not run lesson {lesson.name}.\nHint: " + "look " * 30
    return LessonResult(lesson.name, lesson.title, outcome, 10.0, cells, cells, message, takes=tuple(lesson.parameters))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a report of all lessons, with logs whose names are as long as those of a run."""
    folder, lessons = tmp_path_factory.mktemp("run"), choose_notebooks()
    (folder / "executed").mkdir()
    for lesson in lessons:
        shutil.copy(lesson.path, folder / "executed")
        log = folder / "servers" / lesson.name / "probe-24.08-base-plus-vllm" / "server.log"
        log.parent.mkdir(parents=True)
        log.touch()
    results = tuple(map(_result, lessons))
    return write_report(Run("20260101-120000-quick-0000", folder, True, "2026-01-01", 80.0, results, MACHINE))


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of the width that the test asks for; what goes wrong in it fails the test."""
    made = browser.new_page(viewport={"width": getattr(request, "param", WIDTHS["desk"]), "height": HEIGHT})
    wrong: list[str] = []
    made.on("console", lambda message: wrong.append(message.text))
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("requestfailed", lambda failed: wrong.append(failed.url))
    yield made
    made.close()
    assert wrong == []


def _pages(index: Path) -> list[Path]:
    return sorted(index.parent.glob("*.html"))


@pytest.mark.parametrize("page", WIDTHS.values(), ids=WIDTHS, indirect=True)
def test_no_page_is_wider_than_the_window(page: Page, index: Path) -> None:
    for path in _pages(index):
        page.goto(path.as_uri())
        assert page.evaluate(OVERFLOWING) == [], path.name


def test_pages_show_pictures_and_no_warning_or_traceback(page: Page, index: Path) -> None:
    for path in _pages(index):
        page.goto(path.as_uri())
        assert page.locator(".output_stderr, .output_error").count() == 0, path.name
        assert "Traceback" not in page.inner_text("body"), path.name
        broken = "() => [...document.images].filter((image) => !image.naturalWidth).length"
        assert page.evaluate(broken) == 0, path.name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(page: Page, index: Path, scheme: str, screenshots: Path) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for path in _pages(index):
        page.goto(path.as_uri())
        page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate(PALE) == [], path.name
        backgrounds = "() => [...document.images].map((image) => getComputedStyle(image).backgroundColor)"
        assert set(page.evaluate(backgrounds)) <= {"rgb(255, 255, 255)"}, path.name
        page.screenshot(path=screenshots / f"report-{path.stem[:5]}-{scheme}.png", full_page=True)
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_every_picture_has_words_of_its_own(page: Page, index: Path) -> None:
    for path in _pages(index):
        page.goto(path.as_uri())
        texts = [image.get_attribute("alt") or "" for image in page.locator("img").all()]
        assert [text for text in texts if len(text.split()) < 5 or GENERIC.search(text)] == [], path.name
        assert len(set(texts)) == len(texts), path.name


def test_answers_are_folded_until_a_reader_opens_them(page: Page, index: Path) -> None:
    asked = 0
    for path in _pages(index)[:-1]:
        page.goto(path.as_uri())
        for details in page.locator("details").all():
            answer = details.locator("p").first
            assert not answer.is_visible(), path.name
            details.locator("summary").click()
            assert answer.is_visible(), path.name
            asked += 1
    assert asked >= len(_pages(index)) - 1


def test_links_lead_from_the_index_through_every_lesson_and_back(page: Page, index: Path, screenshots: Path) -> None:
    page.goto(index.as_uri())
    page.screenshot(path=screenshots / "report-index.png", full_page=True)
    titles = page.locator("table.lessons a").all_inner_texts()
    page.locator("table.lessons a").first.click()
    seen = [page.title()]
    while (following := page.locator("nav").first.locator("span").nth(1).locator("a")).count():
        following.click()
        seen.append(page.title())
    page.locator("nav a", has_text="All lessons of this run").first.click()

    assert seen == titles == [_title(path) for path in sorted((index.parents[1] / "executed").glob("*.ipynb"))]
    assert page.url == index.as_uri()


def _title(notebook: Path) -> str:
    return str(nbformat.read(notebook, as_version=4).cells[0].source.removeprefix("# "))


def test_files_that_the_index_names_are_there(page: Page, index: Path) -> None:
    page.goto(index.as_uri())
    hrefs = [str(link.get_attribute("href")) for link in page.locator("main a").all()]

    # run.json and records/ are written by a run, not by its report
    missing = [href for href in hrefs if not (index.parent / href).exists()]
    assert missing == ["../records/", "../run.json"]
    assert sum(href.endswith("server.log") for href in hrefs) == len(_pages(index)) - 1
