# SPDX-License-Identifier: Apache-2.0
"""A plan for readers, for programs and for a shell."""

import json
import shlex
from collections.abc import Iterable

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblekit.diagnose.preflight import Row
from ensemblekit.workarounds.build_plan import CORE_SWITCH, FLAG, BuildPlan, joined
from ensemblekit.workarounds.build_scripts import STAGES

__all__ = ["compared", "plan_json", "print_plan", "rows_table", "shell_script"]


def compared(plan: BuildPlan) -> tuple[tuple[str, str], ...]:
    """Return the options of the build without and with ensembles, side by side; an option that is lacking is empty.

    >>> from ensemblekit.workarounds.build_plan import make_plan
    >>> [pair for pair in compared(make_plan("24.08", "full")) if pair[0] != pair[1]]
    [('', '--backend=ensemble')]
    """
    without, rows = plan.options(None), []
    for option in plan.options(FLAG):
        rows.append((option if option in without else "", option))
    return tuple(rows)


def plan_json(plan: BuildPlan) -> str:
    """Return the plan for programs: every command as a list of words."""
    return json.dumps(
        {
            "release": plan.release.name,
            "variant": plan.variant,
            "source": plan.folder,
            "clone": plan.clone,
            "dryrun": plan.command(dryrun=True),
            "build": plan.command(),
            "without_ensembles": plan.command(switch=None),
            "with_core_switch": plan.command(switch=CORE_SWITCH),
            "the_flag": FLAG,
            "tag": plan.tag,
            "stages": list(STAGES),
        },
        indent=2,
    )


def shell_script(plan: BuildPlan) -> str:
    """Return the plan as a script that can be run as it is: source, dry run, build, name."""
    lines = [
        "#!/usr/bin/env bash",
        f"# Triton {plan.release.name} with vLLM and with ensembles ({plan.variant}), by upstream's own build.py.",
        f"# {FLAG} is what the vLLM image of 24.08 lacks. Needs git, Docker, and Python with requests and distro.",
        "set -euo pipefail",
        *([shlex.join(plan.clone)] if plan.clone else []),
        f"cd {shlex.quote(plan.folder)}",
        "# writes the scripts to build/ and stops: read them before the long part",
        joined(plan.command(dryrun=True)),
        joined(plan.command()),
        "# the name by which the kit's flavour custom-build finds it",
        shlex.join(plan.tag),
    ]
    return "\n".join(lines) + "\n"


def rows_table(rows: Iterable[Row]) -> Table:
    """Return the prerequisites as a table; what is missing has its fix beside it."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "needs", "found", "fix, or what it costs"):
        table.add_column(name, no_wrap=not name, overflow="fold")
    for row in rows:
        mark = "[green]ok" if row.fine else "[red]missing" if row.required else "[yellow]less"
        table.add_row(mark, row.name, escape(row.found), "" if row.fine else escape(row.without))
    return table


def print_plan(console: Console, plan: BuildPlan) -> None:
    """Print the plan for a reader: what to type, and the one option that matters."""

    def say(text: str = "", style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    say(f"Triton {plan.release.name} with vLLM and ensembles, {plan.variant} build, upstream's branch {plan.branch}")
    if plan.clone:
        say(f"\n1. The source\n\n{shlex.join(plan.clone)}\ncd {plan.folder}")
    else:
        say(f"\n1. The source is here\n\ncd {shlex.quote(plan.folder)}")
    say("\n2. The options of build.py: one of them matters\n")
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("without ensembles", no_wrap=True)
    table.add_column("with ensembles", no_wrap=True)
    for without, with_flag in compared(plan):
        table.add_row(without, with_flag, style="" if without == with_flag else "bold green")
    console.print(table)
    say(f"The same through the core's own switch: {CORE_SWITCH} instead of {FLAG}.")
    say(f"\n3. The dry run writes the scripts to build/ and stops\n\n{joined(plan.command(dryrun=True))}")
    say(f"\n4. The build\n\n{joined(plan.command())}")
    say(f"\n5. The name by which FLAVOUR custom-build with PROVIDER container finds it\n\n{shlex.join(plan.tag)}\n")
