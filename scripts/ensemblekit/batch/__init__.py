# SPDX-License-Identifier: Apache-2.0
"""Executing all lessons without a browser, and the report about it."""
