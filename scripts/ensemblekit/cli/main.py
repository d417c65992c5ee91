# SPDX-License-Identifier: Apache-2.0
"""The command `ensemblekit`: finds the file of a command, and turns errors and signals into one message each."""

import os
import re
import resource
import signal
import sys
from importlib import import_module
from types import FrameType

import click

from ensemblekit.cli.options import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNUSABLE, disk_error
from ensemblekit.errors import KitError, ParameterError

__all__ = ["app", "main"]

LONGEST_WORD = 1 << 15  # characters of an argument; no path, name or request is longer
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # an error quotes what it found; a terminal would obey it
# the commands in the order of the help, and the module that holds the function of that name
COMMANDS = {
    "run": "run",
    "runs": "machine",
    "weights": "machine",
    "exercises": "lessons",
    "preflight": "machine",
    "releases": "machine",
    "lab": "lessons",
    "serve": "serve",
    "matrix": "measure",
    "bench": "measure",
    "probe": "diagnose",
    "lint": "lint",
    "explain": "diagnose",
    "doctor": "diagnose",
    "alive": "diagnose",
    "fit": "fit",
    "build-plan": "images",
    "bundle": "bundle",
    "workaround": "images",
    "workshop": "workshop",
}


class _Program(click.Group):
    """Imports a command when it is asked for: what all of them import costs a probe more than the probe."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"ensemblekit.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group(cls=_Program, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def app(debug: bool) -> None:
    """Reproduce Triton 24.08's ensemble failure, work around it, and infer through the ensemble."""


def main() -> None:
    """Run the command line; an error ends it with one message and no traceback."""
    words = sys.argv[1:]
    _listen_to_signals()
    try:
        if any(len(word) > LONGEST_WORD for word in words):
            raise click.UsageError(f"an argument is longer than {LONGEST_WORD} characters.")
        code = app.main(words, prog_name="ensemblekit", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KitError, OSError) as error:
        if words[:1] == ["--debug"]:
            raise
        told = error if isinstance(error, KitError) else disk_error(error)
        click.echo(CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(told)), err=True)
        code = EXIT_UNUSABLE if isinstance(error, ParameterError | OSError) else EXIT_FAILED
    except Exception as error:
        # libraries for which no memory is left: what they raise under a limit is of any kind
        limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        if words[:1] == ["--debug"] or not (limited or isinstance(error, MemoryError | ImportError)):
            raise
        hint = "is the memory limited (`ulimit -v`, a container's limit)? If not, scripts/run mends the environment"
        click.echo(KitError("load or do all of it", found=str(error) or "no memory is left", hint=hint), err=True)
        sys.stdout.flush()
        os._exit(EXIT_FAILED)  # the end of a library that is there in part can wait for ever
    sys.exit(code)


def _listen_to_signals() -> None:
    """Let INT, TERM and HUP stop kernels and servers, each once: the next ones must not break the tidying up.

    HUP stays ignored if it is (nohup).
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in listened:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    listened = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    listened = [one for one in listened if one == signal.SIGTERM or signal.getsignal(one) is not signal.SIG_IGN]
    for one in listened:
        signal.signal(one, interrupt)


if __name__ == "__main__":
    main()
