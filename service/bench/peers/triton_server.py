"""Triton around a checkpoint with nothing before it: the model that the service would load, open to whoever asks.

Owns the process. The model, its configuration and its supervision are the service's own.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from service.bench.peers.served_model import announce
from service.model_settings import ModelSettings
from service.revision import read_revision
from service.triton.backend import SupervisionSettings, TritonBackend
from service.triton.installation import find_installation
from service.triton.repository import model_name
from service.triton.server import TritonProcess, TritonProcessSettings


async def serve(checkpoint: Path, settings: ModelSettings) -> None:
    """Until SIGTERM."""
    revision = read_revision(checkpoint, policy="measured")
    server = TritonProcess(find_installation(), TritonProcessSettings(threads=settings.threads))
    # None in the blocks of others.
    backend = TritonBackend(server, settings, SupervisionSettings(heartbeat_interval_s=3600.0))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await backend.start()
    try:
        await backend.load(revision)
        announce(sys.stdout, addresses=[server.address], model=model_name(revision.revision))
        await stop.wait()
    finally:
        await backend.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--max-batch-size", type=int, default=8)
    arguments = parser.parse_args()
    settings = ModelSettings(threads=arguments.threads, dtype=arguments.dtype, max_batch_size=arguments.max_batch_size)
    asyncio.run(serve(arguments.checkpoint, settings))


if __name__ == "__main__":
    main()
