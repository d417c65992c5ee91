# SPDX-License-Identifier: Apache-2.0
"""The command line `ensemblekit`: one file a command; nothing else of the package parses arguments."""
