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

URL = "http://127.0.0.1:8000/v2/models/%s/generate"
QUESTION = {"chat_input": "Say yes.", "sampling_parameters": '{"max_tokens": 1, "temperature": 0}'}


def main(model: str, deadline_s: int) -> str:
    """Return what is wrong, empty if nothing is."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # one deadline for all of it, however slowly it arrives
    signal.alarm(deadline_s)
    request = urllib.request.Request(URL % model, json.dumps(QUESTION).encode(), {"Content-Type": "application/json"})
    open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # never by way of a proxy
    try:
        answer = json.load(open_url(request, timeout=deadline_s))
    except KeyboardInterrupt:
        return "gave no answer within %d s" % deadline_s
    except (OSError, ValueError, http.client.HTTPException) as error:
        return "failed: %s" % error
    return "" if "text_output" in answer else "failed: %s" % str(answer)[:300]  # 200 with an error: a late failure


if __name__ == "__main__":
    began = time.monotonic()
    wrong = main(sys.argv[1], int(sys.argv[2]))
    if wrong:
        sys.exit("not alive: %s %s after %.2f s" % (sys.argv[1], wrong, time.monotonic() - began))
