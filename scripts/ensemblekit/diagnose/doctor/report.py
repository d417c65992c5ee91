# SPDX-License-Identifier: Apache-2.0
"""An examination as a page that needs no network, and on a terminal."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.markup import escape

from ensemblekit.diagnose.doctor.steps import Examination, Step

__all__ = ["show_step", "show_verdict", "write_page"]

STYLE = {"ok": "green", "warning": "yellow", "error": "bold red", "skipped": "dim"}
# the classes of the stylesheet that batch reports have
BADGE = {"ok": "passed", "warning": "interrupted", "error": "failed", "skipped": ""}


def write_page(found: Examination) -> Path:
    """Write `report.html` into the examination's folder and return it.

    Raises:
        OSError: It cannot be written.
    """
    templates = Environment(
        loader=PackageLoader("ensemblekit.batch"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = found.folder / "report.html"
    page.write_text(templates.get_template("doctor.html.j2").render(found=found, badge=BADGE))
    return page


def show_step(step: Step, console: Console) -> None:
    """Print one step when it is done."""
    style = STYLE[step.state]
    head = f"[{style}]{step.state:<8}[/] {step.name:<10} {escape(step.headline)}"
    console.print(f"{head} [dim]{step.seconds:.2f} s[/]", highlight=False, soft_wrap=True)
    for detail in step.details:
        for line in detail.splitlines():
            console.print(f"                    {line}", markup=False, highlight=False, soft_wrap=True)


def show_verdict(found: Examination, page: Path, console: Console) -> None:
    """Print what the steps come to."""
    style = STYLE["error" if found.failed else "ok"]
    console.print(f"\n[{style}]{escape(found.headline)}[/]", highlight=False, soft_wrap=True)
    lines = [f"Found in {found.seconds:.1f} s." if found.failed else f"{found.seconds:.1f} s in all."]
    if found.wasted:
        lines.append(f"A start would have {found.wasted}. (--force tries it all the same)")
    lines.append(f"Report: {page}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
