"""A further process answers the first one whatever its other threads do."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from service.processes.further import FirstProcess, FurtherGateway
from tests.service.processes.test_further_lines import CONFIG


async def test_the_first_process_is_answered_while_every_other_thread_is_busy() -> None:
    loop, goes_on, ended = asyncio.get_running_loop(), threading.Event(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, goes_on.wait, 20)
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb") as heard, os.fdopen(writes, "wb", buffering=0) as answers:
        first = FirstProcess(answers, FurtherGateway(CONFIG), ended=ended.set)
        first._hear({"ask": "alive", "id": 7})
        answered = asyncio.Event()
        loop.add_reader(reads, answered.set)
        async with asyncio.timeout(5):
            await answered.wait()
        loop.remove_reader(reads)
        assert json.loads(heard.readline()) == {"id": 7}
        goes_on.set()
        await busy
        # Once the first process is gone, that is told.
        heard.close()
        first._hear({"ask": "alive", "id": 8})
        async with asyncio.timeout(5):
            await ended.wait()
        first.close()
