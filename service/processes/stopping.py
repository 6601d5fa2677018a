"""How a process of the service is told to end: by a signal, also while it starts.

Owns the event and cutting work short. Does not own what is done then.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def stops_on_signals() -> asyncio.Event:
    """Set by SIGTERM and SIGINT, from now on."""
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _on_signal(loop, number, stopping.set)
    return stopping


async def unless(stopping: asyncio.Event, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """What `work` returns, or None when it was cut short because the process is to end."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, stopped):
            pending.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


def _on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, act: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, act)
    except NotImplementedError:  # Windows, whose event loops know no signals
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))
