"""Requests as they are traced: the span around an answer.

Owns where a robot's traceparent is found and what is inside a request's span. Does not own how spans are sent
(observability/tracing.py), nor the stages within (answers.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from premotor.v1 import policy_pb2
from service.gateway.answers import Answer, ChunkAnswerer
from service.gateway.authentication import AuthorizedAnswerer
from service.observability.tracing import Tracing

_HEADER = "traceparent"


def traceparent_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Empty when none came."""
    return next((value for key, value in metadata or () if key == _HEADER and isinstance(value, str)), "")


class TracedAnswerer:
    """An answerer each of whose requests is a span, below `traceparent` where one came."""

    def __init__(
        self,
        answerer: ChunkAnswerer | AuthorizedAnswerer,
        tracing: Tracing,
        *,
        method: str,
        traceparent: str = "",
    ) -> None:
        self._answerer = answerer
        self._tracing = tracing
        self._method = method
        self._traceparent = traceparent
        self.draining = answerer.draining
        self.refuse = answerer.refuse

    async def answer(self, request: policy_pb2.PredictChunkRequest | None, **options: Any) -> Answer:
        """As that of the answerer."""
        with self._tracing.request(self._method, self._traceparent) as span:
            answer = await self._answerer.answer(request, **options)
            span.describe(request, answer)
            return answer
