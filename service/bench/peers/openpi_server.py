"""openpi's server around a checkpoint: the handler loop of the PyPI port `policy-websocket`, unchanged.

Owns the policy object that it calls. Runs in an environment of its own (`make peers`).
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from service.bench.peers.served_model import ServedModel, announce, model_parser, model_settings


class CheckpointPolicy:
    """What the server wants of a policy: `infer` and `reset`."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """A dict of its own each time: the server writes its timing into it."""
        cameras = self._model.spec.camera_names
        actions = self._model.chunk(
            {camera: obs[f"observation/{camera}"] for camera in cameras},
            obs["observation/state"],
            obs["prompt"],
            obs.get("seed", 0),
        )
        return {"actions": actions}

    def reset(self) -> None:
        """There is nothing to forget."""


def main() -> None:
    from policy_websocket import (  # pyright: ignore[reportMissingImports]  # in its own environment
        WebsocketPolicyServer,
    )

    parser = model_parser(__doc__ or "")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    arguments = parser.parse_args()
    model = ServedModel(model_settings(arguments))
    model.warm_up()
    port = arguments.port or _free_port()
    # It has no word for being ready: the client's connect waits.
    announce(sys.stdout, addresses=[f"127.0.0.1:{port}"])
    WebsocketPolicyServer(CheckpointPolicy(model), host="127.0.0.1", port=port, metadata={}).serve_forever()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
