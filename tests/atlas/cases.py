# SPDX-License-Identifier: Apache-2.0
"""Which repository of `faults/` shows which fault, and how a real server is brought to show it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ensemblekit.faults.catalogue import fault
from ensemblekit.faults.fault import Fault

__all__ = ["ATLAS", "CASES", "RELEASES", "Case"]

ATLAS = Path(__file__).parent
RELEASES = ("24.08", "24.10")
# load: asked for in explicit mode. start: a start of its own, which must fail. ask: a request to a loaded model.
# lint: no engine here can show it (it takes a GPU, or vLLM itself), so only lint is tested.
How = Literal["load", "start", "ask", "lint"]


@dataclass(frozen=True)
class Case:
    """One repository of the atlas.

    Attributes:
        folder: Its name under `faults/`: the fault's code and what was done.
        how: How a real server shows it.
        root: The fault that is the root cause, if it is another than the folder's.
        why: Why there is only lint, or what is special.
    """

    folder: str
    how: How = "load"
    root: str = ""
    why: str = ""

    @property
    def code(self) -> str:
        """The fault's code."""
        return self.folder.split("-")[0]

    @property
    def fault(self) -> Fault:
        """The fault's record."""
        return fault(self.code)

    @property
    def path(self) -> Path:
        """The repository."""
        return ATLAS / "faults" / self.folder

    def stage(self, target: Path) -> Path:
        """Return a copy of the repository under `target`, with the link that git and archives would not keep."""
        shutil.copytree(self.path, target)
        if self.code == "E121":
            (target / "llama").symlink_to("moved_away")
        return target

    @property
    def model(self) -> str:
        """The model that is asked for: named as what was done."""
        return self.folder.partition("-")[2].replace("-", "_")


CASES = (
    Case("E101-no-ensembles", "start", why="flavour vllm-image of 24.08; 24.10 has ensembles"),
    Case("E102-platform-typo"),
    Case("E103-platform-python"),
    Case("E104-backend-ensemble"),
    Case("E105-platform-and-backend"),
    Case("E106-no-platform"),
    Case("E107-empty-steps"),
    Case("E107-no-steps"),
    Case("E108-step-without-map"),
    Case("E109-instance-group"),
    Case("E109-warmup"),
    Case("E110-output-never-produced"),
    Case("E111-input-never-taken"),
    Case("E112-tensor-not-written"),
    Case("E113-tensor-not-taken"),
    Case("E114-tensor-written-twice"),
    Case("E115-name-and-folder"),
    Case("E116-two-schedulers"),
    Case("E116-unknown-field"),
    Case("E117-template"),
    Case("E118-negative-batch"),
    Case("E119-too-deep"),
    Case("E120-not-a-model"),
    Case("E121-broken-link", "start", why="it takes down the whole repository; the link is made by the test"),
    Case("E201-absent-model"),
    Case("E202-bad-input-key"),
    Case("E203-bad-output-key"),
    Case("E204-unmapped-input"),
    Case("E205-types-differ"),
    Case("E206-shapes-differ"),
    Case("E207-no-version-folder"),
    Case("E207-step-without-version"),
    Case("E208-prompt-and-generation"),
    Case("E209-step-failed-first", root="E216"),
    Case("E210-circle"),
    Case("E211-batch-too-large"),
    Case("E212-version-left-out"),
    Case("E212-version-not-loaded"),
    Case("E213-tensor-incomplete"),
    Case("E214-no-such-backend"),
    Case("E215-no-model-py", "start", why="the start hangs for ever"),
    Case("E216-model-py-fails"),
    Case("E217-no-gpu"),
    Case("E218-parallel-on-one-gpu", "lint", why="needs vLLM and a GPU"),
    Case("E219-no-model-json"),
    Case("E220-vllm-batches"),
    Case("E220-vllm-not-decoupled"),
    Case("E221-output-twice"),
    Case("T301-input-not-declared", "ask", why="a Python stand-in for vLLM shows what reaches it"),
    Case("T302-decoupled", "ask", why="T303 too"),
    Case("T304-numpy-2", "ask", why="in an environment with numpy 2"),
    Case("T305-batches-over-none", "ask"),
    Case("T306-half-ready", "ask", root="E201"),
    Case("T308-two-engines", "lint", why="needs vLLM and a GPU"),
    Case("T309-two-small-engines", "lint", why="needs vLLM and a GPU"),
    Case("T310-half-metrics", "lint", why="needs vLLM"),
    Case("T311-template-in-a-string", "lint", why="Triton says nothing; what happens is the model's own"),
    Case("T312-version-v2", "ask"),
    Case("T313-onnx-in-the-vllm-image", "lint", why="the embedded servers have no more backends in any flavour"),
    Case("T314-config-in-the-root", "lint", why="Triton says nothing of it"),
    Case("T315-code-outside", "ask"),
    Case("T316-key-twice", "ask"),
    Case("T317-none-over-batches", "ask"),
)
