# SPDX-License-Identifier: Apache-2.0
"""Read any Triton log: what happened, the root cause first, consequences marked as such, the unknown said to be so."""
