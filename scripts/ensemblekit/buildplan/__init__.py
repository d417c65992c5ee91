# SPDX-License-Identifier: Apache-2.0
"""Workaround 2: upstream's own build with ensembles: its command lines, prerequisites, run, meter and resume."""
