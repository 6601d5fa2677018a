"""Structured logs: one JSON object a line on stderr, an event and its fields.

Owns the format and where it goes. Does not own what is logged; callers pass fields as `extra={"fields": {...}}` and
never pass images, states or instructions.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from service.observability.request_trace import current_trace

# Libraries that report every call they make.
_CHATTY_BELOW_WARNING = ("httpx", "httpcore", "alembic")


class JsonFormatter(logging.Formatter):
    """{"time", "level", "logger", "event", ...fields, "trace_id", "exception"}; no field replaces a fixed key.

    What is logged for a request whose trace is recorded has its id. `process` numbers the gateway processes of a
    service.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            **getattr(record, "fields", {}),
            **self._process,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if (trace := current_trace()) is not None:
            line["trace_id"] = trace.trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: int = logging.INFO, *, process: int | None = None) -> None:
    """Sends everything at `level` and above to stderr as JSON lines. For an entry point to call, once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in _CHATTY_BELOW_WARNING:
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
