# SPDX-License-Identifier: Apache-2.0
"""A Triton request, read and checked, as the engine needs it."""

import itertools
import json
import threading
import traceback
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from triton_vllm.contract import ADDITIONAL, SWITCH
from triton_vllm.responses import ERROR_PREFIX, AdditionalOutputs, send_error
from triton_vllm.sampling import BadRequest, UnknownAdapter, make_sampling_params, parse_json

if TYPE_CHECKING:
    from triton_vllm.engine import Engine

MOST_KNOWN = 64  # sampling parameters that are remembered; making them costs as much as tokenising a prompt


class Route(Enum):
    """The way of an answer from the engine to its client."""

    FAST_PATH = "its tokens past vLLM's output processor, its text made here"
    TEXT_AT_END = "through vLLM's generate(), its text made here when it is whole"
    VLLM = "through vLLM's generate(), its text made by vLLM"


def choose_route(params: Any, *, stream: bool, own_text: bool, fast_path: bool) -> Route:
    """Return the quickest way that an answer can take.

    Args:
        params: vLLM's sampling parameters.
        stream: Whether pieces are sent as they come.
        own_text: Whether its text can be made here.
        fast_path: Whether there is a fast path.
    """
    if not own_text:
        return Route.VLLM
    one_sequence = params.n == 1 and params.logprobs is None and params.prompt_logprobs is None
    if one_sequence and fast_path:
        return Route.FAST_PATH
    return Route.VLLM if stream else Route.TEXT_AT_END


@dataclass(eq=False)
class GenerationRequest:
    """One request on its way through the engine.

    Attributes:
        id: Its name in the engine.
        prompt: The text before tokenisation.
        token_ids: The prompt's tokens.
        params: vLLM's sampling parameters.
        stream: Whether pieces are sent as they come.
        echo: Whether the prompt is put in front of the answer.
        route: The way that the answer takes.
        sampling_key: The same for all requests with the same sampling parameters, adapter and priority.
        lora: vLLM's LoRARequest; None asks the model as it is.
        priority: vLLM's priority; the lower, the earlier.
        additional: What the answer tells besides its text; None if nothing else is asked for.
        sender: Triton's response sender; None after the last response, with which Triton frees the request.
        lock: Held while `sender` is used.
    """

    id: str
    prompt: str
    token_ids: list[int]
    params: Any
    stream: bool
    echo: bool
    route: Route
    sampling_key: str
    lora: Any
    priority: int
    additional: AdditionalOutputs | None
    sender: Any
    lock: threading.Lock = field(default_factory=threading.Lock)


class RequestParser:
    """Reads requests; what cannot be served gets its one error response here."""

    def __init__(self, engine: "Engine") -> None:
        """Read for this engine."""
        self._engine = engine
        self._numbers = itertools.count()
        self._known: dict[tuple[str, bool], tuple[Any, Route]] = {}

    def parse(self, request: Any) -> GenerationRequest | None:
        """Return a request as the engine needs it, or None if it was refused and the client told why."""
        sender = request.get_response_sender()
        try:
            return self._parse(request, sender)
        except UnknownAdapter as error:
            send_error(sender, str(error), pb_utils.TritonError.INVALID_ARG)
        except BadRequest as error:
            self._refuse(sender, str(error))
        except RecursionError:
            self._refuse(sender, "sampling_parameters is nested too deeply")
        except ValueError as error:  # vLLM's own, about what the client sent
            self._refuse(sender, str(error))
        except Exception as error:  # a request must never be left without an answer
            pb_utils.Logger.log_error(f"[vllm] {ERROR_PREFIX}{traceback.format_exc()}")
            message = f"{ERROR_PREFIX}reading the request failed ({type(error).__name__}); see the server's log"
            send_error(sender, message, pb_utils.TritonError.INTERNAL)
        return None

    @staticmethod
    def refuse_unhealthy(request: Any) -> None:
        """Tell a client that the engine is dead."""
        message = "Model is unavailable due to unhealthy vLLM engine"
        send_error(request.get_response_sender(), message, pb_utils.TritonError.UNAVAILABLE)

    @staticmethod
    def _refuse(sender: Any, reason: str) -> None:
        pb_utils.Logger.log_error(f"[vllm] {ERROR_PREFIX}{reason}")
        send_error(sender, ERROR_PREFIX + reason, pb_utils.TritonError.INVALID_ARG)

    def _parse(self, request: Any, sender: Any) -> GenerationRequest:
        tensors = {tensor.name(): tensor for tensor in request.inputs()}  # one walk: each is a call into Triton's stub
        prompt = _text(tensors, "text_input")
        if not prompt:
            raise BadRequest("text_input is empty: there is nothing to continue")
        stream = bool(_flag(tensors, "stream"))
        exclude = _flag(tensors, "exclude_input_in_output")
        if stream and exclude is False:
            raise BadRequest("When streaming, `exclude_input_in_output` = False is not allowed.")
        given = _sampling_parameters(request, tensors)
        wanted = frozenset(name for name in ADDITIONAL if _flag(tensors, SWITCH + name))
        with_logprobs = given.get("logprobs") is not None
        if "cumulative_logprob" in wanted and not with_logprobs:
            given["logprobs"] = 0  # those of the answer's own tokens, to add them up
        sampling_key = json.dumps(given, sort_keys=True)
        lora = self._engine.lora(given.pop("lora_name", None))
        priority = self._engine.priority(given.pop("priority", 0))
        token_ids = self._engine.tokenize(prompt)
        params, route = self._params(sampling_key, given, stream=stream, by_vllm="logprobs" in wanted)
        additional = None
        if wanted:
            additional = AdditionalOutputs(wanted, params, prompt_tokens=len(token_ids), with_logprobs=with_logprobs)
        return GenerationRequest(
            id=f"triton-{next(self._numbers)}",
            prompt=prompt,
            token_ids=token_ids,
            params=params,
            stream=stream,
            echo=not stream and not exclude,
            route=route,
            sampling_key=sampling_key,
            lora=lora,
            priority=priority,
            additional=additional,
            sender=sender,
        )

    def _params(self, key: str, given: dict[str, Any], *, stream: bool, by_vllm: bool) -> tuple[Any, Route]:
        """Return SamplingParams and the way of the answer.

        Where the text is ours the parameters are only read from here on, and requests with equal ones share them.
        Outputs of the tokens' own texts, `by_vllm`, are vLLM's to make.
        """
        known = None if by_vllm else self._known.get((key, stream))
        if known is not None:
            return known
        params = make_sampling_params(SamplingParams, given)
        route = Route.VLLM if by_vllm else self._engine.route(params, stream=stream)
        params.detokenize = route is Route.VLLM
        params.output_kind = RequestOutputKind.FINAL_ONLY
        if route is Route.VLLM:
            params.skip_clone = True  # used for this request only
            if stream:
                params.output_kind = RequestOutputKind.DELTA
        elif len(self._known) < MOST_KNOWN:
            self._known[key, stream] = params, route
        return params, route


def _sampling_parameters(request: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """As r24.08: the tensor if there is one, else the request's own parameters."""
    text = _text(tensors, "sampling_parameters")
    if text is not None:
        return parse_json(text, "sampling_parameters")
    return parse_json(request.parameters() or "", "request parameters")


def _text(tensors: dict[str, Any], name: str) -> str | None:
    value = _first(tensors, name)
    if value is None:
        return None
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise BadRequest(f"{name} is not UTF-8: {error}") from error


def _flag(tensors: dict[str, Any], name: str) -> bool | None:
    value = _first(tensors, name)
    return None if value is None else bool(value)


def _first(tensors: dict[str, Any], name: str) -> Any:
    tensor = tensors.get(name)
    if tensor is None:
        return None
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise BadRequest(f"{name} must hold exactly one value, not {len(values)}")
    return values[0]
