# SPDX-License-Identifier: Apache-2.0
"""A form for a notebook: a skin over `probe_target`, `lint_repository`, `explain_log` and `examine`."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as widgets

from ensemblekit.diagnose.doctor.examination import Plan, examine
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.diagnose.probe.target import probe_target
from ensemblekit.errors import KitError

__all__ = ["diagnosis_form"]


def diagnosis_form(repository: Path, log: Path, server: str) -> widgets.VBox:
    """Return a form with a field for each of the three and a button for each question.

    Raises:
        Nothing: errors are shown in the form.
    """
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
