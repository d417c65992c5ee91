# SPDX-License-Identifier: Apache-2.0
"""The parts of the vLLM backend; `model.py` beside this folder says what each is for."""
