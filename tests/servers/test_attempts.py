# SPDX-License-Identifier: Apache-2.0
"""No configuration replaces the flag: tried on a server without ensembles, and on its twin with them."""

from pathlib import Path

import pytest

from ensemblekit.faults.poll import GENUINE_REFUSAL
from ensemblekit.servers import emulation
from ensemblekit.workarounds.attempts import try_configurations

pytestmark = pytest.mark.server


def test_attempts_none_gives_an_ensemble_without_the_flag(tmp_path: Path) -> None:
    attempts = {attempt.name: attempt for attempt in try_configurations(folder=tmp_path)}

    assert not [attempt.name for attempt in attempts.values() if attempt.is_ensemble]
    assert [attempt.name for attempt in attempts.values() if attempt.loaded] == ["folder_no_steps"]
    assert attempts["as_it_should_be"].reason == "unexpected platform type 'ensemble'"
    assert attempts["folder_platform"].reason == "unexpected platform type 'ensemble'"
    assert "Could not determine backend" in attempts["no_platform"].reason
    assert {attempts[name].reason for name in ("as_backend", "in_python", "folder_backend")} == {GENUINE_REFUSAL}
    assert GENUINE_REFUSAL in (emulation.__doc__ or "").replace("\n", " ")


def test_attempts_only_the_right_config_gives_an_ensemble_with_the_flag(tmp_path: Path) -> None:
    attempts = try_configurations(ensembles=True, folder=tmp_path)

    assert [attempt.name for attempt in attempts if attempt.is_ensemble] == ["as_it_should_be", "folder_platform"]
    assert all("no-ens" not in attempt.reason for attempt in attempts)
