"""The admin plane's HTTP server: what it does while nobody asks, and its end."""

import asyncio
import logging
import urllib.request

import pytest
from fastapi import FastAPI

from service.admin import server as admin_server
from service.admin.server import AdminServer


async def test_it_stops_when_told_to_and_needs_no_tick_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin_server, "_TICK_S", 3600.0)
    caplog.set_level(logging.INFO, "uvicorn")
    app = FastAPI()
    app.get("/there")(lambda: "here")
    server = AdminServer(app, "127.0.0.1", 0, None)

    def ask() -> tuple[int, str | None]:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/there", timeout=10) as answer:
            return answer.status, answer.headers["date"]

    status, date = await asyncio.to_thread(ask)
    assert (status, bool(date)) == (200, True)
    await server.stop()

    # One that had to be cancelled says nothing.
    assert any("Finished server process" in record.getMessage() for record in caplog.records)
    with pytest.raises(OSError):
        await asyncio.to_thread(ask)
