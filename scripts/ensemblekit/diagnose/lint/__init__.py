# SPDX-License-Identifier: Apache-2.0
"""Lint: what a model repository will do when a server loads it, said before any server starts."""

from ensemblekit.diagnose.lint.findings import Finding, LintReport
from ensemblekit.diagnose.lint.run import lint_repository

__all__ = ["Finding", "LintReport", "lint_repository"]
