# SPDX-License-Identifier: Apache-2.0
"""Make the environment that the lessons need, then start what was asked for in it.

    python3 scripts/bootstrap.py [--quick] [--device auto|cpu|cuda] [--lab] [--dev] [--here]
                                 [--openai] [--exec PROGRAM ARG...]

Only the standard library, and only syntax of Python 3.6: an old Python can start this, and a fitting one is found
or fetched. When everything is in place this costs a few hash sums; otherwise it holds a lock, so that two set-ups at
once wait for each other, and a set-up that was killed is noticed and made anew.
"""

import os
import sys

from setup.environment import set_up
from setup.messages import SetupError, say
from setup.options import parse


def main() -> int:
    """Set up, then become the command asked for."""
    try:
        options, command = parse(sys.argv[1:])
        if options["help"]:
            print(__doc__)
            return 0
        folder = set_up(options)
    except SetupError as error:
        say(str(error))
        return 1
    except OSError as error:
        hint = "is the disk full or read-only? The checkout must be writable; ENSEMBLEKIT_VENV may be on another disk"
        say(str(SetupError("set up the environment", str(error), hint)))
        return 1
    except KeyboardInterrupt:
        say("\nSet-up stopped. Run the same command again; what is half-made will be made anew.")
        return 130
    return start(folder, command) if command else 0


def start(folder: str, command: list) -> int:
    """Become a program of the environment."""
    program = os.path.join(folder, "bin", command[0])
    os.environ["PATH"] = os.path.join(folder, "bin") + os.pathsep + os.environ.get("PATH", "")
    os.environ["VIRTUAL_ENV"] = folder
    os.environ.pop("PYTHONHOME", None)
    return os.execv(program, [program] + command[1:])


if __name__ == "__main__":
    sys.exit(main())
