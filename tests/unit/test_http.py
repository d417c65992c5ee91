# SPDX-License-Identifier: Apache-2.0
"""The generate endpoint's request, as data and as a command."""

import json
import shlex

from ensemblekit.clients.grpc import request_body
from ensemblekit.clients.http import LoadAnswer, curl_command
from ensemblekit.servers.attach import AttachedServer

SERVER = AttachedServer.at("127.0.0.1:8000")


def test_request_body_of_llm_asks_for_the_answer_alone() -> None:
    assert request_body("Hi", model="llm") == {
        "text_input": "Hi", "stream": False, "exclude_input_in_output": True
    }  # fmt: skip


def test_curl_command_with_quotes_stays_one_argument() -> None:
    words = shlex.split(curl_command(SERVER, 'it\'s "so"', sampling_parameters={"max_tokens": 1}))

    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v2/models/ensemble/generate"]
    assert json.loads(words[4])["chat_input"] == 'it\'s "so"'


def test_load_answer_without_body_is_the_status_alone() -> None:
    assert str(LoadAnswer(200, "")) == "HTTP 200"
