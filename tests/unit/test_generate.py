# SPDX-License-Identifier: Apache-2.0
"""The tensors of a request are those of the model it goes to."""

import pytest

from ensemblekit.clients.grpc import Answer, request_inputs


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("ensemble", ["chat_input", "stream", "sampling_parameters"]),
        ("llm", ["text_input", "stream", "sampling_parameters", "exclude_input_in_output"]),
    ],
)
def test_request_inputs_are_those_of_the_model(model: str, names: list[str]) -> None:
    inputs = request_inputs("Hi", model=model, sampling_parameters={"max_tokens": 1})

    assert [tensor.name() for tensor in inputs] == names


def test_request_inputs_sampling_parameters_that_are_no_json_are_refused() -> None:
    with pytest.raises(TypeError):
        request_inputs("Hi", sampling_parameters={"stop": object()})


def test_answer_text_is_its_pieces_joined() -> None:
    answer = Answer("q", ("a ", "b"), (0.1, 0.3))

    assert (answer.text, str(answer), answer.first_token_s, answer.elapsed_s) == ("a b", "a b", 0.1, 0.3)
