# SPDX-License-Identifier: Apache-2.0
"""Probe a server, and examine a repository on it: from the cheapest question to a request through the ensemble."""
