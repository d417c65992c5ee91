# SPDX-License-Identifier: Apache-2.0
"""Triton servers: found or made (providers), started, watched, stopped and never orphaned."""
