# SPDX-License-Identifier: Apache-2.0
"""The exercises' checks: one module an exercise, one function a task, and a hint for each mistake that is known."""
