# SPDX-License-Identifier: Apache-2.0
"""The fault catalogue: what can be wrong with an ensemble, in Triton's words and in plain ones."""
