# SPDX-License-Identifier: Apache-2.0
"""What the ensemble costs: one load generator, all targets in the same run, in turn."""
