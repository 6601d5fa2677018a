"""A store that gives its bytes slowly: a checkpoint over HTTP, a few blocks a second.

Owns one server on loopback for as long as a block lasts.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

_BLOCK_BYTES = 64 * 1024


class _SlowHandler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, bytes_per_s: float, **named: Any) -> None:
        self._bytes_per_s = bytes_per_s
        super().__init__(*arguments, **named)

    def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        with contextlib.suppress(ConnectionError):
            while block := source.read(_BLOCK_BYTES):
                outputfile.write(block)
                time.sleep(len(block) / self._bytes_per_s)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def slow_disk(directory: Path, *, bytes_per_s: float) -> Iterator[str]:
    """The URL of what lies in `directory`."""
    handler = partial(_SlowHandler, directory=str(directory), bytes_per_s=bytes_per_s)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10.0)
