# SPDX-License-Identifier: Apache-2.0
"""A lesson in a kernel: cells run again, and errors that a reader can read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemblekit.errors import KitError, UnsupportedMachine
from ensemblekit.lesson import lesson as lesson_module
from ensemblekit.lesson.lesson import Lesson, open_lesson
from ensemblekit.paths import BATCH_VARIABLE, RUN_DIR_VARIABLE
from ensemblekit.servers.running import LAB_VARIABLE, running_servers
from tests.conftest import DATA

REPOSITORY = DATA / "report_repository"

pytestmark = pytest.mark.server


@pytest.fixture
def lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lesson]:
    """A lesson whose servers end with the test."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    made = open_lesson("lesson_test", ENGINE="stand-in", FLAVOUR="base-plus-vllm", READY_TIMEOUT_S=60)
    yield made
    made.stop()


def test_lesson_start_cell_run_again_replaces_the_server(lesson: Lesson) -> None:
    first = lesson.server(REPOSITORY, explicit=True)
    lesson.start(first)
    second = lesson.server(REPOSITORY, explicit=True)

    lesson.start(second)

    assert not first.running
    assert second.answers()


def test_lesson_start_phases_are_those_of_the_running_server(lesson: Lesson) -> None:
    server = lesson.server(REPOSITORY, explicit=True)
    lesson.start(server)
    assert server.started_s is not None

    assert lesson.start_phases() == {"rest": round(server.started_s, 2)}

    lesson.stop()
    assert lesson.start_phases() == {}


def test_lesson_opened_again_stops_what_the_old_one_left(lesson: Lesson) -> None:
    server = lesson.server(REPOSITORY, explicit=True)
    lesson.start(server)

    open_lesson("lesson_test", ENGINE="stand-in")

    assert not server.running


def test_lesson_finished_in_a_batch_run_stops_its_server(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BATCH_VARIABLE, "1")
    server = lesson.server(REPOSITORY, explicit=True)
    lesson.start(server)

    lesson.finish()

    assert not server.running


def test_lesson_finished_by_a_reader_keeps_its_server_until_the_next_lesson_or_stop(
    lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = list[Any]()
    monkeypatch.delenv(BATCH_VARIABLE, raising=False)
    monkeypatch.setenv(LAB_VARIABLE, "this-test")
    monkeypatch.setattr(lesson_module, "display", shown.append)
    server = lesson.server(lesson.repository(), explicit=True)
    lesson.start(server)
    lesson.finish()
    assert server.running
    assert [one.lesson for one in running_servers("this-test")] == [lesson.name]
    assert running_servers("another-seat") == []

    following = open_lesson("next_lesson", ENGINE="stand-in", FLAVOUR="base-plus-vllm", made_for="stand-in")
    other = following.server(following.repository(), explicit=True)
    following.start(other)
    assert not server.running
    following.finish()
    button, line = shown[-1].children
    button.click()

    assert "is stopped" in line.value
    assert not other.running


def test_lesson_start_that_fails_is_readable(lesson: Lesson) -> None:
    server = lesson.server(REPOSITORY, flavour="vllm-image")

    with pytest.raises(KitError) as caught:
        lesson.start(server)

    lines = str(caught.value).splitlines()
    assert lines[0] == "Could not get Triton 24.08 ready within 60 s."
    assert lines[-1].startswith("Hint: ")
    assert not server.running


def test_lesson_with_vllm_where_none_is_installed_fetches_nothing_and_names_the_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr("ensemblekit.assets.weights.find_spec", lambda name: None)
    monkeypatch.setattr(lesson_module, "ensure_checkpoint", lambda *given, **more: pytest.fail("fetched weights"))
    made = open_lesson("lesson_test", ENGINE="vllm", FLAVOUR="base-plus-vllm")

    with pytest.raises(UnsupportedMachine, match=r"(?s)vLLM is not installed.*Hint: use ENGINE \"stand-in\""):
        made.repository()
