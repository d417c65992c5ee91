# SPDX-License-Identifier: Apache-2.0
"""`pytest --nbval-lax notebooks`: cells show no progress, which nbval would compare."""

import os

from ensemblekit.paths import BATCH_VARIABLE

os.environ.setdefault(BATCH_VARIABLE, "1")
