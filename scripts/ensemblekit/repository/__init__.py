# SPDX-License-Identifier: Apache-2.0
"""The Triton model repository: its config.pbtxt files, and staged copies with the overrides of a run."""
