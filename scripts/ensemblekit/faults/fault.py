# SPDX-License-Identifier: Apache-2.0
"""One fault as a record: what a server says of it, why, and what to do. The single source of these texts."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Literal, NamedTuple

__all__ = ["NO_CONTEXT", "Also", "Context", "Detail", "Doc", "Fault", "Phase", "Recognised", "Severity"]

_GITHUB = "https://github.com/triton-inference-server"
_SERVER = f"{_GITHUB}/server/blob/r24.08/docs"
_CORE = f"{_GITHUB}/core/blob/r24.08/src"


class Doc(StrEnum):
    """Where upstream documents what faults are about, at release 24.08."""

    REPORT = f"{_GITHUB}/server/issues/7632"
    ISSUES = f"{_GITHUB}/server/issues"
    ENSEMBLES = f"{_SERVER}/user_guide/architecture.md#ensemble-models"
    CONFIGURATION = f"{_SERVER}/user_guide/model_configuration.md"
    BATCHING = f"{_SERVER}/user_guide/model_configuration.md#maximum-batch-size"
    VERSION_POLICY = f"{_SERVER}/user_guide/model_configuration.md#version-policy"
    REPOSITORY = f"{_SERVER}/user_guide/model_repository.md#repository-layout"
    STORES = f"{_SERVER}/user_guide/model_repository.md#cloud-storage-with-credential-as-environment-variables"
    DECOUPLED = f"{_SERVER}/user_guide/decoupled_models.md"
    GENERATE = f"{_SERVER}/protocol/extension_generate.md"
    SERVER_OPTIONS = f"{_SERVER}/user_guide/model_management.md"
    CORE_CHECKS = f"{_CORE}/model_config_utils.cc"
    ENSEMBLE_CHECKS = f"{_CORE}/ensemble_scheduler/ensemble_utils.cc"
    PYTHON_BACKEND = f"{_GITHUB}/python_backend/blob/r24.08/README.md"
    VLLM_BACKEND = f"{_GITHUB}/vllm_backend/blob/r24.08/README.md"
    ONNX_BACKEND = f"{_GITHUB}/onnxruntime_backend/blob/r24.08/README.md"
    PYTORCH_BACKEND = f"{_GITHUB}/pytorch_backend/blob/r24.08/README.md"
    TENSORRT_BACKEND = f"{_GITHUB}/tensorrt_backend/blob/r24.08/README.md"
    DALI_BACKEND = f"{_GITHUB}/dali_backend/blob/r24.08/README.md"
    TRTLLM_BACKEND = f"{_GITHUB}/tensorrtllm_backend/blob/r24.08/README.md"
    SUPPORT = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"
    IMAGES = "https://catalog.ngc.nvidia.com/orgs/nvidia/containers/tritonserver"
    PODMAN = "https://github.com/containers/podman/blob/main/troubleshooting.md"
    TOOLKIT = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"


Severity = Literal["error", "warning", "note"]
# poll: refused when its config is read; load: refused when it is loaded; serve: loads, and breaks later;
# start: of the server or its machine; container: of the container engine, a registry or a build
Phase = Literal["poll", "load", "serve", "start", "container"]
PHASES: dict[str, Phase] = {"E1": "poll", "E2": "load", "T3": "serve", "S4": "start", "C5": "container"}
STATUS: dict[Phase, int] = {"poll": 500, "load": 400}
PAGES = {"poll": Doc.CONFIGURATION, "load": Doc.ENSEMBLE_CHECKS, "container": Doc.IMAGES}
NO_STATUS = -1
# a field of a message: within quotation marks anything but them, else one word
_FIELDS = re.compile(r"'\{(\w+)\}'|\{(\w+)\}")
_TEMPLATE_FIELDS = re.compile(r"\{(\w+)")


@dataclass(frozen=True)
class Context:
    """What is at hand beside the words, and may decide which of several causes it is."""

    engines: int | None = None  # how many vLLM engines the log shows; None if that cannot be seen
    # the rows of the server's backend table, by backend: its path and its config
    backends: Mapping[str, str] = field(default_factory=dict)
    findings: frozenset[tuple[str, str]] = frozenset()  # model and code of what lint found in the repository at hand
    release: str = ""  # the server's release, such as `24.08`; empty if it is not known
    # whether the server runs on this machine, so that its GPUs can be asked and the kit's options help
    here: bool = False


NO_CONTEXT = Context()
Values = Mapping[str, str]  # what stands in the fields of a message


class Detail(NamedTuple):
    """What this one message says: the numbers and names in it, and what to do with them, empty for the entry's fix."""

    found: str
    hint: str = ""


class Also(NamedTuple):
    """The words of other releases for the same fault, and which releases those are."""

    pattern: str
    releases: str


@dataclass(frozen=True)
class Fault:
    """A fault. Codes are stable: E1xx at poll, E2xx at load, T3xx when serving, S4xx of the start, C5xx of containers.

    Attributes:
        code: For example `E102`.
        title: A few words.
        cause: Why, in plain words.
        fix: What to change.
        link: Upstream's issue, documentation or source; by default the phase's own page.
        message: What the server says: in the log, and unless `hidden` in the answer of its load API. A template
            whose fields are the named groups of `pattern`; empty if it says nothing, or not always the same.
        pattern: A regular expression for those words, to be searched in a log message or an answer's body; made from
            the message if empty, unless `silent`.
        also: The words of other releases.
        severity: `error` if it stops the server or breaks every request, else `warning` or `note`.
        status: HTTP status: of the load API for E faults, of the request for T faults; None if there is none.
        same_words: Codes of faults of which the server says the same, the likeliest first.
        holds: Whether it is this one of them, from the values and the context; None if that does not decide it.
        found: What one message says, with its values in it; the first of these whose fields are all there counts.
        hint: What to do about it, as the end of a sentence.
        detail: The same where it must be reckoned, from the values, the whole text and the context.
        silent: Whether the words of `message` belong to another fault, so that they are not looked for.
        consequence: Whether this only follows from another model's fault, which is the root cause.
        general: Whether its words are true of other faults as well, which say more.
    """

    code: str
    title: str
    cause: str
    fix: str
    link: str = ""
    message: str = ""
    pattern: str = ""
    also: tuple[Also, ...] = ()
    severity: Severity = "error"
    status: int | None = NO_STATUS
    same_words: tuple[str, ...] = ()
    holds: Callable[[Values, Context], bool | None] | None = None
    found: tuple[str, ...] = ()
    hint: str = ""
    detail: Callable[[Values, str, Context], Detail | None] | None = None
    silent: bool = False
    consequence: bool = False
    general: bool = False

    def __post_init__(self) -> None:
        """Fill in what follows from the rest."""
        if not self.pattern and not self.silent:
            object.__setattr__(self, "pattern", _pattern_of(self.message))
        if not self.link:
            object.__setattr__(self, "link", PAGES[self.phase])
        if self.status == NO_STATUS:
            object.__setattr__(self, "status", STATUS.get(self.phase))

    @property
    def phase(self) -> Phase:
        """When it shows, see `Phase`."""
        return PHASES[self.code[:2]]

    @property
    def hidden(self) -> bool:
        """Whether the load API's answer leaves the reason out (it says only "failed to poll")."""
        return self.phase == "poll"

    @cached_property
    def expressions(self) -> tuple[re.Pattern[str], ...]:
        """The compiled patterns, of this release's words first."""
        patterns = (self.pattern, *(old.pattern for old in self.also))
        return tuple(re.compile(each, re.MULTILINE) for each in patterns if each)

    def match(self, text: str) -> re.Match[str] | None:
        """Return where a text says this fault, None if it does not."""
        return next((match for each in self.expressions if (match := each.search(text))), None)

    def tell(self, values: Values, text: str, context: Context) -> Detail | None:
        """Return what is special in one message, None if nothing is."""
        if self.detail:
            return self.detail(values, text, context)
        for template in self.found:
            if set(_TEMPLATE_FIELDS.findall(template)) <= set(values):
                return Detail(template.format(**values), self.hint)
        return None

    def says(self, **values: object) -> str:
        """Return the server's words with these values; a value that is not given stands as `…`."""
        return self.message.format(**{name: values.get(name, "…") for name in _TEMPLATE_FIELDS.findall(self.message)})


@dataclass(frozen=True)
class Recognised:
    """A fault that was recognised in a text, with what that text and the context say about it."""

    fault: Fault
    values: dict[str, str]  # the names and numbers in the words, by the entry's fields
    title: str  # a few words; "one of" if nothing decides between several causes
    found: str  # what this message says, with its numbers; the title if it says no more
    hint: str  # what to do, as the end of a sentence
    cause: str  # why, in plain words
    fix: str  # what to change, as a sentence
    link: str  # where upstream documents it, for the release at hand
    note: str = ""  # how sure this is, where that is not plain

    @property
    def code(self) -> str:
        """The fault's code."""
        return self.fault.code

    @property
    def model(self) -> str:
        """The model that the words name, empty if they name none."""
        return self.values.get("model", "")


def _pattern_of(message: str) -> str:
    """Return the expression that finds a message and its fields.

    >>> re.search(_pattern_of("'{model}' has no '{model}' (1)"), "'a b' has no 'a b' (1)")["model"]
    'a b'
    """
    parts, end, known = list[str](), 0, set[str]()
    for each in _FIELDS.finditer(message):
        quoted, plain = each.groups()
        name, quote = quoted or plain, "'" if quoted else ""
        inner = "[^']*" if quoted else r"[^\s\"\\;]+"
        group = f"(?P={name})" if name in known else f"(?P<{name}>{inner})"
        known.add(name)
        parts += [re.escape(message[end : each.start()]).replace(r"\ ", " "), quote, group, quote]
        end = each.end()
    return "".join([*parts, re.escape(message[end:]).replace(r"\ ", " ")])
