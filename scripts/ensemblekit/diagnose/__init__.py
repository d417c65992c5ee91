# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a server, a repository or a log: found before a start, or explained after one."""
