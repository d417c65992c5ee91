# SPDX-License-Identifier: Apache-2.0
"""config.pbtxt, read and written with Triton's own schema."""

from pathlib import Path

import pytest

from ensemblekit.errors import RepositoryError
from ensemblekit.repository.config import set_parameter, who_writes, write_config
from ensemblekit.repository.read import read_config
from tests.conftest import DATA


def test_ensemble_steps_of_the_report_are_in_order() -> None:
    steps = read_config(DATA / "report_repository" / "ensemble").ensemble_scheduling.step

    assert [(step.model_name, dict(step.input_map)) for step in steps] == [
        ("pre", {"chat_input": "chat_input"}),
        ("main_app", {"text_input": "text_input"}),
    ]


def test_who_writes_names_the_step_or_the_client(tmp_path: Path) -> None:
    tensor = '%s [ { name: "%s" data_type: TYPE_FP32 dims: [ 3, 224 ] } ]\n'
    step = '{ model_name: "%s" input_map { key: "IN" value: "%s" } output_map { key: "OUT" value: "%s" } }'
    steps = f"ensemble_scheduling {{ step [ {step % ('resize', 'RAW', 'IMAGE')}, {step % ('net', 'IMAGE', 'Y')} ] }}\n"
    configs = {"pipe": tensor % ("input", "RAW") + steps, "resize": tensor % ("output", "OUT"), "bad": "{"}
    for name, text in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(text)

    writer = "step 1 of pipe wrote it: resize, as its output OUT, whose config says [3, 224]"
    assert who_writes(tmp_path, "net", "IN") == writer
    assert (
        who_writes(tmp_path, "resize", "IN") == "no step wrote it: it is the input RAW of pipe, as the client sent it"
    )
    assert who_writes(tmp_path, "net", "OTHER") == ""


def test_write_config_read_again_is_equal(tmp_path: Path) -> None:
    config = read_config(DATA / "decoupled_repository" / "words")
    set_parameter(config, "tokenizer", "folder with spaces")

    write_config(config, tmp_path / "config.pbtxt")

    assert read_config(tmp_path) == config


def test_read_config_with_an_unknown_field_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "x"\nplatfrom: "ensemble"\n')

    with pytest.raises(RepositoryError, match=r"2:1[\s\S]*platfrom"):
        read_config(tmp_path)


def test_read_config_missing_says_what_a_model_folder_holds(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"No such file[\s\S]*Hint: a model folder holds config\.pbtxt"):
        read_config(tmp_path)
