# SPDX-License-Identifier: Apache-2.0
"""Liveness: ask a model for one token, as `ensemblekit alive` does, with the image's Python alone.

    python3 alive.py MODEL SECONDS

Exit code 0 if it answered in time, else 1 and one line that says what was found.
"""

import http.client
import json
import signal
import sys
import time
import urllib.request

URL = "http://127.0.0.1:8000/v2/models/{}/generate"
QUESTION = {"chat_input": "Say yes.", "sampling_parameters": '{"max_tokens": 1, "temperature": 0}'}


def what_is_wrong(model: str, deadline_s: int) -> str:
    """Return it in words, empty if the model answered."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # one deadline for all of it, however slowly it arrives
    signal.alarm(deadline_s)
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(URL.format(model), json.dumps(QUESTION).encode(), headers)  # noqa: S310 - http
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        answer = json.load(without_proxy.open(request, timeout=deadline_s))
    except (KeyboardInterrupt, TimeoutError):
        return f"gave no answer within {deadline_s} s"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"failed: {error}"
    return "" if "text_output" in answer else f"failed: {str(answer)[:300]}"  # 200 with an error: a late failure


if __name__ == "__main__":
    began = time.monotonic()
    wrong = what_is_wrong(sys.argv[1], int(sys.argv[2]))
    if wrong:
        sys.exit(f"not alive: {sys.argv[1]} {wrong} after {time.monotonic() - began:.2f} s")
