# SPDX-License-Identifier: Apache-2.0
"""The release matrix: every release and flavour that this machine can run, each really run."""
