# SPDX-License-Identifier: Apache-2.0
"""The kit with everything it needs, in parts that can be carried to a host without a network."""
