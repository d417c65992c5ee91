# SPDX-License-Identifier: Apache-2.0
"""A Triton request, read and checked, as the engine needs it."""

import itertools
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from triton_vllm.responses import send_error
from triton_vllm.sampling import BadRequest, make_sampling_params, parse_json

if TYPE_CHECKING:
    from triton_vllm.engine import Engine


MOST_KNOWN = 64  # sampling parameters that are remembered; making them costs as much as tokenising a prompt


@dataclass(eq=False)
class Job:
    """One request on its way through the engine.

    Attributes:
        id: Its name in the engine.
        prompt: The text before tokenisation.
        token_ids: The prompt's tokens.
        params: vLLM's sampling parameters.
        stream: Whether pieces are sent as they come.
        echo: Whether the prompt is put in front of the answer.
        own_text: Whether the engine leaves the text to us.
        sampling_key: The same for all requests with the same sampling parameters.
        sender: Triton's response sender; None after the last response, with which Triton frees the request.
        lock: Held while `sender` is used.
    """

    id: str
    prompt: str
    token_ids: list[int]
    params: Any
    stream: bool
    echo: bool
    own_text: bool
    sampling_key: str
    sender: Any
    lock: threading.Lock = field(default_factory=threading.Lock)


class JobReader:
    """Reads requests; what cannot be served gets its one error response here."""

    def __init__(self, engine: "Engine") -> None:
        """Read for this engine."""
        self._engine = engine
        self._numbers = itertools.count()
        self._known: dict[str, Any] = {}

    def read(self, request: Any) -> Job | None:
        """Return the job of a request, or None if it was refused and the client told why."""
        sender = request.get_response_sender()
        try:
            return self._read(request, sender)
        except BadRequest as error:
            send_error(sender, str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # a request must never be left without an answer
            pb_utils.Logger.log_error(f"[vllm] reading a request failed: {error!r}")
            send_error(sender, f"the request could not be read: {error!r}", pb_utils.TritonError.INTERNAL)
        return None

    def _read(self, request: Any, sender: Any) -> Job:
        prompt = _text(request, "text_input")
        if not prompt:
            raise BadRequest("text_input is empty: there is nothing to continue")
        stream = bool(_flag(request, "stream"))
        exclude = _flag(request, "exclude_input_in_output")
        if stream and exclude is False:
            raise BadRequest(
                "stream with exclude_input_in_output=false is not supported: a stream never repeats the prompt"
            )
        given = _sampling_parameters(request)
        token_ids = self._engine.tokenize(prompt)
        sampling_key = json.dumps(given, sort_keys=True)
        own_text = self._engine.text.can_decode(given, stream=stream)
        params = self._params(sampling_key, given, own_text=own_text, stream=stream)
        return Job(
            id=f"triton-{next(self._numbers)}",
            prompt=prompt,
            token_ids=token_ids,
            params=params,
            stream=stream,
            echo=not stream and not exclude,
            own_text=own_text,
            sampling_key=sampling_key,
            sender=sender,
        )

    def _params(self, key: str, given: dict[str, Any], *, own_text: bool, stream: bool) -> Any:
        """Return SamplingParams; where the text is ours they are only read from here on, and equal ones are shared."""
        known = self._known.get(key) if own_text else None
        if known is not None:
            return known
        params = make_sampling_params(
            SamplingParams,
            given,
            output_kind=RequestOutputKind.DELTA if stream and not own_text else RequestOutputKind.FINAL_ONLY,
            detokenize=not own_text,
        )
        if not own_text:
            params.skip_clone = True  # used for this request only
        elif len(self._known) < MOST_KNOWN:
            self._known[key] = params
        return params


def _sampling_parameters(request: Any) -> dict[str, Any]:
    """As r24.08: the tensor if there is one, else the request's own parameters."""
    text = _text(request, "sampling_parameters")
    if text is not None:
        return parse_json(text, "sampling_parameters")
    return dict(json.loads(request.parameters() or "{}"))


def _text(request: Any, name: str) -> str | None:
    value = _first(request, name)
    if value is None:
        return None
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise BadRequest(f"{name} is not UTF-8: {error}") from error


def _flag(request: Any, name: str) -> bool | None:
    value = _first(request, name)
    return None if value is None else bool(value)


def _first(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise BadRequest(f"{name} must hold exactly one value, not {len(values)}")
    return values[0]
