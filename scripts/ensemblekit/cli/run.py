# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit run`: executes the lessons; its parameters are read by the grammar that the set-up uses too."""

from typing import Any

import click

from ensemblekit.cli.options import PATH, SECONDS, WORD, container_engine, runs_dir
from ensemblekit.cli.run_grammar import PAIR_OPTIONS, GivenTwiceError, merged, read_run
from ensemblekit.errors import ParameterError

__all__ = ["run"]

DEFAULT_CELL_TIMEOUT_S = 1800.0  # a first start with weights to fetch on a slow line; lessons have shorter limits
ONLY_HELP = "A lesson's number or name, or for example exercises/01, solutions/01, zh/01; may be given again."
PAIR_HELP = "Set a parameter of the lessons; may be given again."


class _RunCommand(click.Command):
    """Reads parameters in every spelling before click reads the rest; click's own declarations are for the help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read parameters first, in every spelling, and leave the rest to click."""
        words = read_run(args)
        try:
            left = super().parse_args(ctx, words.rest)
            ctx.params["given"] = merged(words.parameters)
        except click.BadOptionUsage as error:
            if error.option_name not in PAIR_OPTIONS:
                raise
            raise ParameterError(
                "set a parameter", found="a name and no value behind it", hint="for example `-p RELEASE 24.08`"
            ) from error
        except GivenTwiceError as error:
            raise ParameterError(f"set {error.name}", found=str(error), hint="give it once") from error
        return left


@click.command(cls=_RunCommand)
@click.option("--quick", is_flag=True, help="In a minute: a Python stand-in for llm; no vLLM, no weights.")
@click.option("--only", type=WORD, multiple=True, metavar="LESSON", help=ONLY_HELP)
@click.option("-p", "--parameter", nargs=2, multiple=True, expose_value=False, metavar="NAME VALUE", help=PAIR_HELP)
@click.option("--release", expose_value=False, help="Same as -p RELEASE: for example 24.08.")
@click.option("--provider", expose_value=False, help="Same as -p PROVIDER: embedded, container or attach.")
@click.option("--device", expose_value=False, help="Same as -p DEVICE: auto, cpu or cuda.")
@click.option("--model", expose_value=False, help="Same as -p MODEL: a checkpoint folder or a hub id.")
@container_engine
@click.option(
    "--timeout", "cell_timeout_s", type=SECONDS, default=DEFAULT_CELL_TIMEOUT_S, help="Seconds that one cell may take."
)
@runs_dir
@click.option("--sweep", type=PATH, help="A YAML file of parameter sets: one run for each, in one folder.")
@click.option("--resume", type=PATH, metavar="RUN", help="Go on with a run or sweep that was stopped, by its name.")
@click.pass_context
def run(
    context: click.Context,
    /,
    given: dict[str, str],
    container_engine: str | None,
    only: tuple[str, ...],
    **options: Any,
) -> None:
    """Execute the lessons in order and write a report; exit code 0 only if every one did what it should."""
    from ensemblekit.cli.run_progress import execute
    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    context.exit(execute(only, given, **options))
