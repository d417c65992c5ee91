# SPDX-License-Identifier: Apache-2.0
"""The one config on which the emulation is known to say something else than a genuine build."""

from pathlib import Path

import pytest

from ensemblekit.servers import emulation
from ensemblekit.servers.emulation import REPLACED_CONSTANT
from tests.conftest import DATA, START_TIMEOUT_S, ServerMaker

pytestmark = pytest.mark.server


def test_emulation_config_with_a_backend_names_the_replaced_constant(make_server: ServerMaker, tmp_path: Path) -> None:
    model = tmp_path / "repository" / "ensemble"
    (model / "0").mkdir(parents=True)
    text = (DATA / "report_repository" / "ensemble" / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(text.replace('platform: "ensemble"', 'backend: "python"'))

    outcome = make_server(model.parent, flavour="vllm-image").attempt_start(START_TIMEOUT_S)

    assert outcome.kind == "exited"
    assert REPLACED_CONSTANT.strip(b"\0").decode() in outcome.log_path.read_text()
    assert "ensemble scheduling not supported" not in outcome.log_path.read_text()
    assert "names its replaced constant" in (emulation.__doc__ or "").replace("\n", " ")
