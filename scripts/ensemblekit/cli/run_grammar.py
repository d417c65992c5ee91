# SPDX-License-Identifier: Apache-2.0
"""The words behind `ensemblekit run`, read once for two readers: the set-up and the command itself.

The set-up must know the device and the engine before there is an environment, so this file is of the standard library
alone and of Python 3.6, imports nothing of the kit, and is loaded by its path (scripts/setup/options.py).
Nothing is refused here: what is incomplete or unknown stays in `rest`, for the command to say so.
"""

from typing import Any, Dict, List, NamedTuple, Tuple

PAIR_OPTIONS = ("-p", "--parameter")
SHORTCUTS = {"--release": "RELEASE", "--provider": "PROVIDER", "--device": "DEVICE", "--model": "MODEL"}
OTHER_OPTIONS_WITH_VALUE = ("--only", "--container-engine", "--timeout", "--runs-dir", "--sweep", "--resume")
HELP = ("--help", "-h")
STAND_IN = "stand-in"


class RunWords(NamedTuple):
    """What stands behind `ensemblekit run`.

    Attributes:
        parameters: Name and value of each parameter: those of -p in order, then those of shortcuts such as --device.
        quick: Whether --quick is given.
        help: Whether the help is asked for.
        rest: All other words in order, --quick included.
    """

    parameters: List[Tuple[str, str]]
    quick: bool
    help: bool
    rest: List[str]


class GivenTwiceError(ValueError):
    """A parameter has two different values."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__("%s is given twice, as %r and as %r" % (name, first, second))
        self.name, self.first, self.second = name, first, second


def read_run(words: List[str]) -> RunWords:
    """Read every legal spelling of a parameter: `-p NAME VALUE`, `-p NAME=VALUE`, `-pNAME=VALUE`, `--device cpu` ...

    >>> read_run(["-p", "ENGINE=stand-in", "--parameter", "RELEASE", "24.08", "--only", "01", "--device=cpu"])
    RunWords(parameters=[('ENGINE', 'stand-in'), ('RELEASE', '24.08'), ('DEVICE', 'cpu')], quick=False, \
help=False, rest=['--only', '01'])
    """
    pairs = []  # type: List[Tuple[str, str]]
    shortcuts = []  # type: List[Tuple[str, str]]
    flags = []  # type: List[str]
    rest = []  # type: List[str]
    todo = list(words)
    while todo and todo[0] != "--":
        option, ahead = _open(todo)
        if option in PAIR_OPTIONS and "=" in "".join(ahead[:1]):
            name, _, value = ahead[0].partition("=")
            pairs.append((name, value))
            todo = ahead[1:]
        elif option in PAIR_OPTIONS and len(ahead) > 1:
            pairs.append((ahead[0], ahead[1]))
            todo = ahead[2:]
        elif option in SHORTCUTS and ahead:
            shortcuts.append((SHORTCUTS[option], ahead[0]))
            todo = ahead[1:]
        else:
            length = 2 if option in OTHER_OPTIONS_WITH_VALUE and todo[0] == option else 1
            flags += todo[:1]
            rest, todo = rest + todo[:length], todo[length:]
    return RunWords(pairs + shortcuts, "--quick" in flags, bool(set(HELP) & set(flags)), rest + todo)


def _open(todo: List[str]) -> Tuple[str, List[str]]:
    """Return the first word's option, and what follows it: a value in the same word, then the other words."""
    name, separator, value = todo[0].partition("=")
    if todo[0].startswith("--") and separator:
        return name, [value] + todo[1:]
    if todo[0].startswith("-p") and len(todo[0]) > 2:
        return "-p", [todo[0][2:]] + todo[1:]
    return todo[0], todo[1:]


def merged(parameters: List[Tuple[str, str]]) -> Dict[str, str]:
    """Return the parameters by name.

    Raises:
        GivenTwiceError: One has two different values.
    """
    given = {}  # type: Dict[str, str]
    for name, value in parameters:
        if given.setdefault(name, value) != value:
            raise GivenTwiceError(name, given[name], value)
    return given


def needs_vllm(words: RunWords) -> bool:
    """Return whether the run wants the real vLLM: neither its help, nor --quick, nor the stand-in engine."""
    return not words.help and not words.quick and ("ENGINE", STAND_IN) not in words.parameters


def value_of(words: RunWords, option: str) -> str:
    """Return the value of an option such as --resume, empty if it is not given."""
    found = ""
    for at, word in enumerate(words.rest):
        name, _, value = word.partition("=")
        if name == option:
            found = value or "".join(words.rest[at + 1 : at + 2])
    return found


def planned(plan: Dict[str, Any]) -> List[RunWords]:
    """Return what a run was asked for, and each set of a sweep, from the plan that its folder keeps."""
    given, quick = dict(plan["given"]), bool(plan["quick"])
    return [RunWords(list(dict(given, **one).items()), quick, False, []) for one in plan["sets"] or [{}]]


def device_of(words: RunWords, default: str = "auto") -> str:
    """Return the device asked for; the first, where the command will refuse a second."""
    return next((value for name, value in words.parameters if name == "DEVICE"), default)
