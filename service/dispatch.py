"""Who goes next when a model is full.

Owns the line in front of one model: how many requests are inside, who follows, and when waiting has become pointless.
Does not own the batch (Triton forms it) or the gateway's cap on requests in flight.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools

from service.backend import BackendDeadlineError, BackendError


class DispatchLine:
    """Lets `capacity` requests into a model; the rest wait, earliest deadline first, and leave when theirs has passed.

    Triton takes requests in the order of arrival and ignores deadlines, so it is given only what runs now and what
    forms the next batch. For one event loop.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected at least 1")
        self._capacity = capacity
        self._num_inside = 0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()

    @property
    def num_waiting(self) -> int:
        return sum(not place.done() for _, _, place in self._waiting)

    async def enter(self, deadline_s: float) -> None:
        """Returns once the request may go in; `leave` must follow. `deadline_s` is on the event loop's clock.

        Raises BackendDeadlineError when it passes first, and whatever `dismiss` was given.
        """
        loop = asyncio.get_running_loop()
        if deadline_s <= loop.time():
            raise BackendDeadlineError("the deadline passed before the request was sent to the model")
        if self._num_inside < self._capacity:
            self._num_inside += 1
            return
        place = loop.create_future()
        heapq.heappush(self._waiting, (deadline_s, next(self._arrivals), place))
        timer = loop.call_at(deadline_s, _expire, place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.exception() is None:
                self.leave()
            raise
        finally:
            timer.cancel()
            self._forget_settled()

    def leave(self) -> None:
        """Gives the place to the next in line."""
        while self._waiting:
            _, _, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._num_inside -= 1

    def dismiss(self, error: BackendError) -> None:
        """Ends every wait with `error`."""
        for _, _, place in self._waiting:
            if not place.done():
                place.set_exception(error)
        self._waiting.clear()

    def _forget_settled(self) -> None:
        while self._waiting and self._waiting[0][2].done():
            heapq.heappop(self._waiting)


def _expire(place: asyncio.Future[None]) -> None:
    if not place.done():
        place.set_exception(BackendDeadlineError("the deadline passed while the request waited for the model"))
