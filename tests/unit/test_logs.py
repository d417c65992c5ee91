# SPDX-License-Identifier: Apache-2.0
"""A genuine log as data."""

from pathlib import Path

import psutil
import pytest

from ensemblekit.faults.log import (
    LONGEST_LINE,
    LogReader,
    dead_process,
    missing_library,
    model_loads,
    parse_log,
    poll_errors,
    read_log,
    stub_without_library,
    tail,
)
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.servers.outcome import outcome_of
from tests.conftest import DATA
from tests.normal_log import normalise

GENUINE = DATA / "logs" / "genuine-24.08-ensemble-off.log"
STAMP = "1124 01:19:21.672113 29385"


def test_poll_errors_genuine_log_hold_the_line_of_the_report() -> None:
    assert poll_errors(parse_log(GENUINE.read_text())) == (ENSEMBLE_REFUSED,)


def test_model_loads_genuine_log_loaded_and_unloaded_both_models() -> None:
    loads = {load.model: load for load in model_loads(parse_log(GENUINE.read_text()))}

    assert sorted(loads) == ["main_app", "pre"]
    assert all(load.loading_s <= (load.loaded_s or 0) <= (load.unloaded_s or 0) for load in loads.values())


def test_outcome_genuine_log_text_is_stable() -> None:
    outcome = outcome_of("exited", 1, 88.0, GENUINE)

    assert str(outcome).splitlines()[:3] == [
        "server:     exited with code 1",
        f"poll error: {ENSEMBLE_REFUSED}",
        "loaded:     main_app, pre",
    ]
    assert "88" not in str(outcome)


def test_parse_log_message_over_two_lines_is_one_entry() -> None:
    (entry,) = parse_log(f"E{STAMP} model.cc:9] \"failed to load 'x' version 1: first\nsecond\"\nprinted by a model\n")

    assert entry.message == "failed to load 'x' version 1: first\nsecond"


def test_model_loads_failure_is_kept_with_its_reason() -> None:
    text = f'I{STAMP} m.cc:1] "loading: x:1"\nE{STAMP} m.cc:2] "failed to load \'x\' version 1: Internal: no"\n'

    (load,) = model_loads(parse_log(text))

    assert load.failure == "Internal: no"


def test_parse_log_of_leap_day_is_a_date() -> None:
    assert parse_log('I0229 01:19:21.672113 29385 server.cc:1] "x"')[0].message == "x"


def test_normalise_two_runs_of_one_line_are_equal() -> None:
    one = f'I{STAMP} grpc_server.cc:2463] "Started GRPCInferenceService at 127.0.0.1:20001"'
    two = 'I0131 23:00:00.000001 7 grpc_server.cc:2463] "Started GRPCInferenceService at 127.0.0.1:31000"'

    assert normalise(one) == normalise(two)


LINKER = "error while loading shared libraries: libb64.so.0: cannot open shared object file"


@pytest.mark.parametrize(
    ("text", "stuck"),
    [
        (f"I1124 loading\n/b/python/triton_python_backend_stub: {LINKER}\n", True),
        (f"/opt/bin/tritonserver: {LINKER}\n", False),
        ("", False),
    ],
    ids=["stub-makes-triton-wait", "server-exits-by-itself", "empty"],
)
def test_stub_without_library(text: str, stuck: bool) -> None:
    assert stub_without_library(text) is stuck


def test_missing_library_none_missing_is_none() -> None:
    assert missing_library(GENUINE.read_text()) is None


@pytest.mark.parametrize("content", [b"\xff\xfe broken\n", b"\x1b[31mred\x1b[0m\n"], ids=["bytes", "colours"])
def test_read_log_odd_content_is_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)

    assert "\x1b" not in read_log(tmp_path / "log")
    assert tail(tmp_path / "log", 1)


def test_read_log_missing_file_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none") == ""


def test_log_reader_gives_each_line_once_and_only_when_it_is_complete(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "log")

    assert reader.read_new() == []  # the file is not there yet
    with (tmp_path / "log").open("w") as log:
        log.write("one\ntw")
        log.flush()
        assert reader.read_new() == ["one"]
        assert reader.read_new() == []
        log.write("o\n\x1b[31mred\x1b[0m\n")
        log.flush()
        assert reader.read_new() == ["two", "red"]
    reader.close()


def test_log_reader_of_a_log_that_was_replaced_or_cut_begins_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\n")
    reader = LogReader(log)
    assert reader.read_new() == ["one"]
    log.rename(tmp_path / "log.1")
    log.write_text("two\n")
    assert reader.read_new() == ["two"]
    log.write_text("")
    assert reader.read_new() == []
    log.write_text("3\n")

    assert reader.read_new() == ["3"]
    reader.close()


def test_log_reader_keeps_no_file_open_after_its_block(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\n")
    with LogReader(log) as reader:
        assert reader.read_new() == ["one"]
        assert str(log) in {file.path for file in psutil.Process().open_files()}

    assert str(log) not in {file.path for file in psutil.Process().open_files()}


def test_log_reader_of_a_line_without_an_end_gives_it_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * (LONGEST_LINE + 1))
    reader = LogReader(tmp_path / "log")

    assert reader.read_new() == ["x" * (LONGEST_LINE + 1)]
    reader.close()


def test_log_reader_reads_what_is_new_and_not_the_whole_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a line of a log\n" * 100_000)
    reader = LogReader(log)
    assert len(reader.read_new()) == 100_000
    assert reader._file is not None
    before = reader._file.tell()
    with log.open("a") as more:
        more.write("last\n")

    assert reader.read_new() == ["last"]
    assert reader._file.tell() - before == len("last\n")
    reader.close()


@pytest.mark.parametrize(
    "line",
    [
        "(MainProcess pid=23764) WARNING 11-27 09:41:29 [core_client.py:817] [shutdown] MPClient: engine core exited "
        "unexpectedly; starting cleanup",  # vLLM 0.25 to 0.32
        "ERROR 08-02 10:11:12 [core_client.py:562] Engine core proc EngineCore_DP0 died unexpectedly, shutting down "
        "client.",  # vLLM 0.9
    ],
)
def test_dead_process_engine_core_of_vllm_is_named(line: str) -> None:
    assert dead_process(f"before\n{line}\nafter") == "the process of vLLM's engine (EngineCore) ended"


def test_dead_process_engine_core_that_was_killed_while_it_loaded_is_named_with_its_signal() -> None:
    line = (
        f'I{STAMP} pb_stub.cc:366] "Failed to initialize Python stub: TritonModelException: vLLM did not start: '
        'RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {CODES}\\n"'
    )

    said = dead_process(line.replace("CODES", "'EngineCore': -9"))
    assert said == "the process of vLLM's engine (EngineCore) ended (signal 9)"
    assert dead_process(line.replace("CODES", "'EngineCore': 1")) is None
    assert dead_process(line.replace("CODES", "")) is None


def test_dead_process_in_what_a_model_prints_is_none() -> None:
    said = "Engine core proc EngineCore_DP0 died unexpectedly, shutting down client."

    assert dead_process(f'I{STAMP} model.py:1] "asked: {said}"\n{said}\nprompt: core_client.py:1] {said}\n') is None
