# SPDX-License-Identifier: Apache-2.0
"""What lint prints: text, JSON, SARIF, corrections as a diff; and its exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.diagnose.lint.output import as_json, as_sarif, show_report
from ensemblekit.faults.catalogue import FAULTS
from ensemblekit.repository.textproto import Source
from tests.atlas.cases import ATLAS
from tests.conftest import DATA

TYPO = ATLAS / "faults" / "E102-platform-typo"
# The part of the SARIF 2.1.0 schema that these logs use, with its required fields and its value lists.
SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"enum": ["2.1.0"]},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool"],
                "additionalProperties": False,
                "properties": {
                    "originalUriBaseIds": {
                        "type": "object",
                        "additionalProperties": {"properties": {"uri": {"pattern": "^file:///.*/$"}}},
                    },
                    "tool": {
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "required": ["name"],
                                "properties": {
                                    "rules": {
                                        "uniqueItems": True,
                                        "items": {
                                            "required": ["id"],
                                            "properties": {
                                                "shortDescription": {"$ref": "#/$defs/message"},
                                                "fullDescription": {"$ref": "#/$defs/message"},
                                                "help": {"$ref": "#/$defs/message"},
                                                "helpUri": {"type": "string", "format": "uri"},
                                                "defaultConfiguration": {
                                                    "properties": {"level": {"$ref": "#/$defs/level"}}
                                                },
                                            },
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "results": {
                        "items": {
                            "required": ["message"],
                            "additionalProperties": False,
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "level": {"$ref": "#/$defs/level"},
                                "message": {"$ref": "#/$defs/message"},
                                "locations": {
                                    "items": {
                                        "properties": {
                                            "physicalLocation": {
                                                "required": ["artifactLocation"],
                                                "properties": {
                                                    "artifactLocation": {
                                                        "properties": {
                                                            "uri": {"type": "string", "format": "uri-reference"},
                                                            "uriBaseId": {"type": "string"},
                                                        }
                                                    },
                                                    "region": {
                                                        "properties": {"startLine": {"type": "integer", "minimum": 1}}
                                                    },
                                                },
                                            }
                                        }
                                    }
                                },
                            },
                        }
                    },
                },
            },
        },
    },
    "$defs": {
        "level": {"enum": ["none", "note", "warning", "error"]},
        "message": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}},
    },
}


def lint(*words: str, answer: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command."""
    command = [sys.executable, "-m", "ensemblekit.cli.main", "lint", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=answer)


def test_text_says_place_words_reason_correction_and_link() -> None:
    done = lint(str(TYPO), "--no-notes")

    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout == (
        "error E102 unknown platform\n"
        f"    at      {TYPO}/platform_typo/config.pbtxt:2\n"
        "    Triton  unexpected platform type 'ensembel' for platform_typo\n"
        '    why     Did you mean "ensemble"? No platform has this name, and without a backend Triton has nothing else '
        "to go by.\n"
        '    fix     Write `platform: "ensemble"` for an ensemble; for any other model write `backend: "..."`.\n'
        "    see     https://github.com/triton-inference-server/server/blob/r24.08/docs/user_guide/"
        "model_configuration.md\n"
        "\n"
        "2 models read for Triton 24.08 (no flavour given)\n"
        "assumed: release 24.08 (--release)\n"
        "assumed: a server of 24.08 that was built with ensembles: NVIDIA's vLLM image of it was not "
        "(--flavour vllm-image; E101)\n"
        "assumed: a Python with numpy 1.x for the Python models (--python looks into it)\n"
        "1 error, 1 note: a server will refuse platform_typo, and exit unless told otherwise\n"
    )


def test_text_in_a_narrow_terminal_is_indented_and_cuts_nothing() -> None:
    console = Console(width=60, force_terminal=True, color_system=None, record=True)
    show_report(lint_repository(TYPO), console)
    text = console.export_text()

    rows = text.splitlines()
    start = next(i for i, row in enumerate(rows) if row.startswith("    why"))
    assert rows[start + 1].startswith("            ")
    assert "without a backend Triton has nothing else to go by." in " ".join(text.split())


def test_clean_repository_exits_0() -> None:
    done = lint(str(DATA / "report_repository"))

    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "nothing found: a server should load all of it"


def test_json_holds_every_field_of_a_finding() -> None:
    done = lint(str(TYPO), "--json")

    content = json.loads(done.stdout)
    assert done.returncode == 1
    assert content == as_json(lint_repository(TYPO))
    assert (content["release"], content["flavour"], content["loads"]) == ("24.08", None, False)
    first = content["findings"][0]
    assert (first["code"], first["line"], first["model"]) == ("E102", 2, "platform_typo")
    assert all(first[name] for name in ("file", "severity", "title", "says", "why", "fix", "link"))


@pytest.mark.parametrize("repository", sorted((ATLAS / "faults").iterdir()), ids=lambda path: path.name)
def test_sarif_log_is_valid(repository: Path) -> None:
    report = lint_repository(repository)
    log = as_sarif(report)

    jsonschema.validate(log, SARIF, format_checker=jsonschema.FormatChecker())
    results, rules = log["runs"][0]["results"], log["runs"][0]["tool"]["driver"]["rules"]
    assert len(rules) == len(FAULTS)
    assert [result["ruleId"] for result in results] == [finding.code for finding in report.findings]
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in results)
    for result in results:
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert not place["uri"].startswith("/")
        assert (repository / place["uri"]).exists()


def test_sarif_of_the_command_is_json() -> None:
    assert json.loads(lint(str(TYPO), "--sarif").stdout)["version"] == "2.1.0"


def test_fix_shows_a_diff_and_changes_nothing_without_a_yes(tmp_path: Path) -> None:
    copy = shutil.copytree(TYPO, tmp_path / "copy")
    before = (copy / "platform_typo" / "config.pbtxt").read_text()

    done = lint(str(copy), "--fix", answer="n\n")

    assert done.returncode == 1
    assert '-platform: "ensembel"\n+platform: "ensemble"\n' in done.stderr
    assert "Make this change?" in done.stdout
    assert (copy / "platform_typo" / "config.pbtxt").read_text() == before


def test_fix_with_yes_changes_that_line_only_and_reports_anew(tmp_path: Path) -> None:
    copy = shutil.copytree(TYPO, tmp_path / "copy")
    before = (copy / "platform_typo" / "config.pbtxt").read_text()

    done = lint(str(copy), "--fix", "--yes")

    assert done.returncode == 0
    assert (copy / "platform_typo" / "config.pbtxt").read_text() == before.replace("ensembel", "ensemble")
    assert done.stdout.splitlines()[-1].startswith("nothing found")


def test_fix_of_what_has_no_safe_correction_says_so() -> None:
    done = lint(str(ATLAS / "faults" / "E201-absent-model"), "--fix", "--yes")

    assert done.returncode == 1
    assert "Nothing here can be corrected without knowing what was meant." in done.stderr


TEXT = """# a comment { with [ brackets
name: "chat"  platform: 'ensemble'
input [
  { name: "A" dims: [ 1, -1 ] },
  {
    name: "B"
  }
]
input { name: "C" }
parameters { key: "text" value { string_value: "a \\"quoted\\" #1" " and more" } }
instance_group [ ]
"""


@pytest.mark.parametrize(
    ("keys", "line", "value"),
    [
        (("name",), 2, "chat"),
        (("platform",), 2, "ensemble"),
        (("input", 1, "name"), 6, "B"),
        (("input", ("name", "A"), "dims", 1), 4, "-1"),
        (("input", ("name", "C"), "name"), 9, "C"),
        (("parameters", ("key", "text"), "value", "string_value"), 10, 'a "quoted" #1 and more'),
        (("instance_group",), 11, ""),
    ],
    ids=lambda value: str(value),
)
def test_source_finds_a_field_with_its_line(keys: tuple[str, ...], line: int, value: str) -> None:
    found = Source(TEXT).find(*keys)

    assert found
    assert (found.line, found.value) == (line, value)


def test_source_of_an_absent_field_gives_the_nearest_line_above() -> None:
    source = Source(TEXT)

    assert source.find("input", 1, "dims") is None
    assert source.line("input", 1, "dims") == 5
    assert source.line("output") is None


@pytest.mark.parametrize("text", ["", "{", "]]]", 'name: "open', "a [ b", "a { b: ", "\0\1", "a: [ { ]"])
def test_source_of_broken_text_ends(text: str) -> None:
    assert isinstance(Source(text).fields, list)
