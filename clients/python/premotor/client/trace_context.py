"""The trace a robot's process is working on, told to the gateway: W3C's traceparent.

Owns its form. Needs no tracing library: a process that has not imported OpenTelemetry has no current span.
"""

from __future__ import annotations

import sys

from premotor.client.identity import Metadata

# Where OpenTelemetry keeps its current span; imported by whoever began one.
_TRACE_API = "opentelemetry.trace"


def trace_metadata() -> Metadata:
    """What a call made now carries of the current span; nothing when there is none."""
    api = sys.modules.get(_TRACE_API)
    if api is None:
        return ()
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return ()
    return (("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"),)
