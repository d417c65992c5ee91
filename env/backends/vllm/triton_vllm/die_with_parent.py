#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs Python with the given arguments, in a process that is told to end when the one that started it dies.

vLLM's engine is started through this file. If Triton's stub is killed, it cannot stop the engine any more;
the kernel then sends the signal in its place.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept across exec

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606 - multiprocessing gave the arguments
