# SPDX-License-Identifier: Apache-2.0
"""`python -m ensemblekit.cli`."""

from ensemblekit.cli.main import main

main()
