# SPDX-License-Identifier: Apache-2.0
"""What has come of one answer so far: filled on the engine's loop, emptied by the thread that sends."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import RequestStateStats

    from triton_vllm.detokenizer import IncrementalDetokenizer
    from triton_vllm.request import GenerationRequest


@dataclass
class OutputBuffer:
    """A request in the engine, and what has come of it.

    The loop adds tokens, the thread that sends takes them; each reads what the other writes in the order in which it
    was written.

    Attributes:
        request: The request.
        text: Its text, as far as it was taken.
        stats: vLLM's statistics of it.
        token_ids: The tokens.
        visible: How many of them are text; not the one that ended the answer.
        finish_reason: Why the answer ended; None while it goes on.
    """

    request: "GenerationRequest"
    text: "IncrementalDetokenizer"
    stats: "RequestStateStats"
    token_ids: list[int] = field(default_factory=list)
    visible: int = 0
    finish_reason: str | None = None
    _offered: bool = False
    _taken: int = 0

    def append(self, ids: list[int], reason: "FinishReason | None") -> bool:
        """Add tokens; return whether there is something to send that was not offered before."""
        self.token_ids += ids
        ended = None if reason is None else str(reason)
        self.visible = len(self.token_ids) - (ended == "stop")
        self.finish_reason = ended
        if ended:
            return True
        offer = self.request.stream and not self._offered
        self._offered = self._offered or offer
        return offer

    def drain(self, *, last: bool) -> str:
        """Return the text of the tokens that have come since it was last asked for.

        Args:
            last: Whether it is asked for the last time: then the answer has ended, and the reason is told.
        """
        self._offered = False
        reason, visible = self.finish_reason if last else None, self.visible
        ids, self._taken = self.token_ids[self._taken : visible], visible
        if self.request.additional:
            self.request.additional.count(len(ids) + (reason == "stop"), reason)
        return self.text.add(ids, last=last)
