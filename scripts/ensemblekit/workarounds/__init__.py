# SPDX-License-Identifier: Apache-2.0
"""Workaround 1 with containers: the base image plus a vLLM backend, built, probed and removed again."""
