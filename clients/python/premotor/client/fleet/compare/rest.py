"""Until no server works any more: what one is still busy with would be another's block.

Owns the wait and how often it was in vain. Does not own which blocks there are.
"""

from __future__ import annotations

import asyncio

from premotor.client.fleet.machine import tree_cpu_s

# Longer than a fleet that asks for more than it gets leaves behind in a block.
_TIMEOUT_S = 60.0
# CPU time counts in steps of 10 ms.
_LOOK_S = 0.3
_BUSY_SHARE = 0.1


class Rest:
    """Called before every block. `pids` are the servers', each with what it started."""

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.pids: set[int] = set()
        # Blocks that began beside a server that was still busy.
        self.num_in_vain = 0
        self._timeout_s = timeout_s

    async def __call__(self) -> None:
        if not self.pids:
            return
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._timeout_s
        while await self._busy_share() > _BUSY_SHARE:
            if loop.time() >= end_s:
                self.num_in_vain += 1
                return

    async def _busy_share(self) -> float:
        """Of one CPU, by all of them; 0 where nothing can be known."""
        before_s = await asyncio.to_thread(self._spent_s)
        await asyncio.sleep(_LOOK_S)
        return (await asyncio.to_thread(self._spent_s) - before_s) / _LOOK_S

    def _spent_s(self) -> float:
        return tree_cpu_s(*self.pids) or 0.0
