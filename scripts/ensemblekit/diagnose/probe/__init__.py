# SPDX-License-Identifier: Apache-2.0
"""Does this server know ensembles? One question, asked of whatever is there."""
