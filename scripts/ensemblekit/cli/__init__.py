# SPDX-License-Identifier: Apache-2.0
"""The command line `ensemblekit`: a file for each theme, see `main`; nothing else of the package parses arguments."""
