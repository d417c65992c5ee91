# SPDX-License-Identifier: Apache-2.0
"""A workshop: seats that are prepared before, one server that many share, and who is how far."""
