# SPDX-License-Identifier: Apache-2.0
"""An outcome's text says how a start ended, without anything that varies."""

from pathlib import Path

from ensemblekit.servers.outcome import outcome_of

STAMP = "1124 01:19:21.672113 29385"


def test_outcome_stuck_names_the_missing_library(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("stub: error while loading shared libraries: libb64.so.0: cannot open shared object file\n")

    outcome = outcome_of("stuck", None, 1.0, log)

    assert "stuck: no libb64.so.0" in str(outcome)
    assert not outcome.ready


def test_outcome_without_a_log_has_no_models(tmp_path: Path) -> None:
    assert "loaded:     no model" in str(outcome_of("timeout", None, 1.0, tmp_path / "none"))


def test_outcome_failed_model_is_named_with_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        f'I{STAMP} m.cc:1] "loading: x:1"\nE{STAMP} m.cc:2] "failed to load \'x\' version 1: Internal: no"\n'
    )

    assert "failed:     x: Internal: no" in str(outcome_of("exited", 1, 1.0, log))
