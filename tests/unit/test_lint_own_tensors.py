# SPDX-License-Identifier: Apache-2.0
"""Tensors that a Python model adds itself: what is written out is known, anything else is not guessed."""

from pathlib import Path

import pytest

from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.diagnose.lint.autocomplete import OwnTensors, own_tensors
from tests.atlas.cases import ATLAS

IN = {"name": "IN", "data_type": "TYPE_STRING", "dims": [1]}
OUT = {"name": "OUT", "data_type": "TYPE_STRING", "dims": [-1]}
HEAD = "class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config):\n"


def read(body: str, folder: Path, before: str = "") -> OwnTensors:
    """Return what a model with this function body adds."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    (folder / "model.py").write_text(f"{before}{HEAD}{lines}        return config\n")
    return own_tensors(folder / "model.py")


@pytest.mark.parametrize(
    ("before", "body"),
    [
        ("", f"config.add_input({IN})\nconfig.add_output({OUT})\nconfig.set_max_batch_size(0)"),
        ("", f"i = {IN}\no = {OUT}\nconfig.add_input(i)\nconfig.add_output(o)\nconfig.set_max_batch_size(0)"),
        (
            f"INPUTS = [{IN}]\nOUTPUTS = ({OUT},)\n",
            "for entry in INPUTS:\n    config.add_input(entry)\nfor entry in OUTPUTS:\n    config.add_output(entry)\n"
            "config.set_max_batch_size(0)\nconfig.set_dynamic_batching()",
        ),
    ],
    ids=["given", "named", "in-a-loop"],
)
def test_tensors_that_are_written_out_are_known(before: str, body: str, tmp_path: Path) -> None:
    assert read(body, tmp_path, before) == OwnTensors([IN], [OUT], 0, whole=True)


@pytest.mark.parametrize(
    "body",
    [
        f"if condition():\n    config.add_input({IN})",
        "config.add_input(make())",
        "for entry in read_file():\n    config.add_input(entry)",
        "complete(config)",
        "contract.complete(config)",
        f"config = add(config)\nconfig.add_input({IN})",
        "return contract.complete(config)",
    ],
)
def test_anything_else_is_left_open(body: str, tmp_path: Path) -> None:
    assert not read(body, tmp_path).whole


def test_model_without_the_function_adds_nothing() -> None:
    assert own_tensors(ATLAS / "good" / "batching" / "batching_step" / "1" / "model.py") == OwnTensors()


def test_ensemble_is_compared_with_what_its_step_adds(tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(ATLAS / "good" / "completed", tmp_path / "copy"))
    config = copy / "completed" / "config.pbtxt"
    config.write_text(config.read_text().replace('key: "IN"', 'key: "INPUT"'))

    assert [finding.code for finding in lint_repository(copy).errors] == ["E202"]
