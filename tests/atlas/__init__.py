# SPDX-License-Identifier: Apache-2.0
"""The fault atlas: one small repository per fault, and what real servers say of it."""
