# SPDX-License-Identifier: Apache-2.0
"""Widgets: skins over plain functions that the lesson has already shown. Batch runs skip their cells."""

import asyncio
import os
from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as widgets

from ensemblekit.clients.grpc import Served, stream
from ensemblekit.diagnose.doctor.report import Plan
from ensemblekit.diagnose.doctor.run import examine
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.diagnose.probe.target import probe_target
from ensemblekit.errors import KitError
from ensemblekit.faults.log import ModelLoad, model_loads, parse_log, poll_errors, read_log
from ensemblekit.lesson.lesson import Lesson
from ensemblekit.servers.process import TritonServer
from ensemblekit.servers.running import LAB_VARIABLE, RunningServer, running_servers

__all__ = ["diagnosis_form", "load_panel", "prompt_box", "servers_panel"]

PANEL_REFRESH_S = 0.3
STATE_COLOUR = {
    "loading": "#3b7dd8",
    "ready": "#76b900",
    "unloaded": "#f2a33a",
    "failed": "#d33f49",
    "refused": "#d33f49",
}
WHOLE_LABEL = {"description_width": "initial"}  # the default cuts "temperature" off
PANEL_LINES = 6


def load_panel(lesson: Lesson, server: TritonServer) -> widgets.VBox:
    """Return a panel with a Start and a Stop button that shows each model's state while the server loads."""
    start, stop = (
        widgets.Button(description="Start", button_style="success"),
        widgets.Button(description="Stop"),
    )
    states, log = widgets.HTML("not started"), widgets.HTML()

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        task = loop.run_in_executor(None, lesson.attempt_start, server)
        while not task.done():
            states.value, log.value = _states(server), _last_lines(server)
            await asyncio.sleep(PANEL_REFRESH_S)
        try:
            states.value = f"{_states(server)}<pre>{escape(str(task.result()))}</pre>"
        except KitError as error:
            states.value = f"<pre>{escape(str(error))}</pre>"
        start.disabled = False

    def on_start(_button: widgets.Button) -> None:
        start.disabled = True
        _TASKS.add(asyncio.ensure_future(watch()))

    start.on_click(on_start)
    stop.on_click(lambda _button: server.stop())
    return widgets.VBox([widgets.HBox([start, stop]), states, log])


_TASKS: set[asyncio.Future[None]] = set()  # asyncio keeps only weak references to tasks


def _states(server: TritonServer) -> str:
    lines = parse_log(read_log(server.log_path))
    rows = [_state(message.split("'")[1], "refused") for message in poll_errors(lines)]
    for load in model_loads(lines):
        rows.append(_state(load.model, _state_of(load)))
    return "<br>".join(rows) or "starting"


def _state_of(load: ModelLoad) -> str:
    if load.failure:
        return "failed"
    if load.loaded_s is None:
        return "loading"
    return "ready" if load.unloaded_s is None else "unloaded"


def _state(model: str, state: str) -> str:
    return f'<span style="color:{STATE_COLOUR[state]}">&#9632;</span> {escape(model)}: {state}'


def _last_lines(server: TritonServer) -> str:
    lines = read_log(server.log_path).splitlines()[-PANEL_LINES:]
    return f"<pre style='font-size:80%;color:#666'>{escape(chr(10).join(lines))}</pre>"


def prompt_box(server: Served) -> widgets.VBox:
    """Return a box with a question, sliders for the sampling parameters, and the answer as it streams in."""
    question = widgets.Textarea("What is the capital of France?", layout={"width": "auto"})
    temperature = widgets.FloatSlider(0.0, min=0.0, max=1.5, step=0.1, description="temperature", style=WHOLE_LABEL)
    top_p = widgets.FloatSlider(1.0, min=0.05, max=1.0, step=0.05, description="top_p", style=WHOLE_LABEL)
    max_tokens = widgets.IntSlider(64, min=1, max=512, description="max_tokens", style=WHOLE_LABEL)
    answer, send = widgets.HTML(), widgets.Button(description="Ask", button_style="success")

    def parameters() -> dict[str, float]:
        return {"temperature": temperature.value, "top_p": top_p.value, "max_tokens": max_tokens.value}

    send.on_click(
        lambda _button: _stream_into(answer, lambda: stream(server, question.value, sampling_parameters=parameters()))
    )
    return widgets.VBox([question, widgets.HBox([temperature, top_p, max_tokens]), send, answer])


def _stream_into(target: widgets.HTML, pieces: Callable[[], object]) -> None:
    text = ""
    try:
        for piece in pieces():  # type: ignore[attr-defined]
            text += piece
            target.value = f"<p style='white-space:pre-wrap'>{escape(text)}</p>"
    except KitError as error:
        target.value = f"<pre>{escape(str(error))}</pre>"


def servers_panel() -> widgets.VBox:
    """Return every running server of this JupyterLab's lessons with a Stop button each; Refresh looks again."""
    refresh, rows = widgets.Button(description="Refresh"), widgets.VBox()

    def look(_button: widgets.Button | None = None) -> None:
        found = running_servers(os.environ.get(LAB_VARIABLE, ""))
        rows.children = tuple(_server_row(server, look) for server in found) or (widgets.HTML("No server is running."),)

    refresh.on_click(look)
    look()
    return widgets.VBox([rows, refresh])


def _server_row(server: RunningServer, look: Callable[[], None]) -> widgets.HBox:
    stop = widgets.Button(description="Stop")

    def on_stop(_button: widgets.Button) -> None:
        stop.disabled = True
        server.stop()
        look()

    stop.on_click(on_stop)
    return widgets.HBox([stop, widgets.HTML(escape(str(server)))])


def diagnosis_form(repository: Path, log: Path, server: str) -> widgets.VBox:
    """Return a form with a field for each of the three and a button for each question."""
    fields = {
        "Server": widgets.Text(server, description="Server", layout={"width": "100%"}),
        "Repository": widgets.Text(str(repository), description="Repository", layout={"width": "100%"}),
        "Log": widgets.Text(str(log), description="Log", layout={"width": "100%"}),
    }
    answer = widgets.HTML()

    def path(name: str) -> Path:
        return Path(str(fields[name].value)).expanduser()

    questions: dict[str, Callable[[], object]] = {
        "Probe": lambda: probe_target(str(fields["Server"].value)),
        "Lint": lambda: _findings(path("Repository")),
        "Explain": lambda: explain_log(path("Log")),
        "Doctor": lambda: examine(Plan(path("Repository"), server=str(fields["Server"].value), engine="stand-in")),
    }
    buttons = [_button(name, question, answer) for name, question in questions.items()]
    return widgets.VBox([*fields.values(), widgets.HBox(buttons), answer])


def _findings(repository: Path) -> str:
    report = lint_repository(repository)
    rows = [f"{finding.severity} {finding.code} {finding.place}: {finding.title}" for finding in report.findings]
    return "\n".join(rows) or "nothing found"


def _button(name: str, question: Callable[[], object], answer: widgets.HTML) -> widgets.Button:
    def on_click(_button: widgets.Button) -> None:
        answer.value = "<i>working</i>"
        try:
            text = str(question())
        except KitError as error:
            text = str(error)
        answer.value = f"<pre style='white-space:pre-wrap'>{escape(text)}</pre>"

    button = widgets.Button(description=name)
    button.on_click(on_click)
    return button
