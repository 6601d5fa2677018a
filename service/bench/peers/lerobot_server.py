"""LeRobot's PolicyServer around a checkpoint, one server a robot, none of its code changed.

Owns the policy object that it calls, and the processes. Its server answers whoever asks first, so each robot has one;
they are forked from a process that has loaded everything, so that the weights are in memory once. Runs in LeRobot's own
environment (`make peers`). `SendPolicyInstructions` is not used: with it a client would name a checkpoint to download.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from concurrent import futures
from types import SimpleNamespace
from typing import Any, TextIO

from service.bench.peers.served_model import ServedModel, announce, model_parser, model_settings

# Its own default, in its command line.
_WORKERS = 4


class CheckpointPolicy:
    """What PolicyServer wants of a policy. Frames come as it prepares them: float32 [1, 3, height, width] in 0 to 1."""

    def __init__(self, model: ServedModel, features: dict[str, Any]) -> None:
        self._model = model
        self.config = SimpleNamespace(image_features=features)

    def predict_action_chunk(self, observation: dict[str, Any]) -> Any:
        """[1, action_horizon, action_dim]. There is no seed on this wire: always 0."""
        import torch

        images = {}
        for camera in self._model.spec.camera_names:
            frame = observation[f"observation.images.{camera}"][0].permute(1, 2, 0)
            images[camera] = (frame * 255).round().to(torch.uint8).numpy()
        state = observation["observation.state"][0].numpy()
        return torch.from_numpy(self._model.chunk(images, state, observation["task"], seed=0))[None]


def main() -> None:
    parser = model_parser(__doc__ or "")
    parser.add_argument("--robots", type=int, default=1, help="servers (default %(default)s)")
    parser.add_argument("--height", type=int, default=0, help="of the frames that come (default: the embodiment's)")
    parser.add_argument("--width", type=int, default=0, help="of the frames that come (default: the embodiment's)")
    arguments = parser.parse_args()
    model = ServedModel(model_settings(arguments))
    model.warm_up()
    ready = os.fdopen(os.dup(1), "w")
    sizes = {c.name: (arguments.height or c.height, arguments.width or c.width) for c in model.spec.cameras}
    # Its logger makes a folder where it runs, and logs where its reader expects one line.
    with tempfile.TemporaryDirectory(prefix="premotor-lerobot-", ignore_cleanup_errors=True) as directory:
        os.chdir(directory)
        os.dup2(2, 1)
        _import_lerobot()
        _serve_robots(model, sizes, arguments.robots, ready)
        os.chdir(os.sep)


def _serve_robots(model: ServedModel, sizes: Mapping[str, tuple[int, int]], num_robots: int, ready: TextIO) -> None:
    """Until SIGTERM, which every server then gets: all of the group are of this process."""
    addresses = []
    for read in [_fork(model, sizes) for _ in range(num_robots)]:
        with os.fdopen(read) as told:
            addresses.append(told.readline().strip())
    announce(ready, addresses=addresses)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    for _ in range(num_robots):
        os.wait()


def _fork(model: ServedModel, sizes: Mapping[str, tuple[int, int]]) -> int:
    """Where the child writes its address once it listens."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        _serve(model, sizes, write)
    os.close(write)
    return read


def _serve(model: ServedModel, sizes: Mapping[str, tuple[int, int]], told: int) -> None:
    import grpc
    from lerobot.async_inference.configs import PolicyServerConfig  # pyright: ignore[reportMissingImports]
    from lerobot.async_inference.policy_server import PolicyServer  # pyright: ignore[reportMissingImports]
    from lerobot.configs.types import FeatureType, PolicyFeature  # pyright: ignore[reportMissingImports]
    from lerobot.transport import services_pb2_grpc  # pyright: ignore[reportMissingImports]

    servicer = PolicyServer(PolicyServerConfig(host="127.0.0.1", port=1, inference_latency=0.0))
    servicer.policy = CheckpointPolicy(
        model,
        {
            f"observation.images.{name}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, *size))
            for name, size in sizes.items()
        },
    )
    servicer.actions_per_chunk, servicer.device = model.action_horizon, "cpu"
    servicer.preprocessor = servicer.postprocessor = lambda value: value
    names = [f"state_{i}" for i in range(model.spec.state_dim)]
    servicer.lerobot_features = {
        "observation.state": {"dtype": "float32", "shape": [len(names)], "names": names},
        **{
            f"observation.images.{name}": {
                "dtype": "image",
                "shape": [*size, 3],
                "names": ["height", "width", "channels"],
            }
            for name, size in sizes.items()
        },
    }
    server = grpc.server(futures.ThreadPoolExecutor(_WORKERS))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    os.write(told, f"127.0.0.1:{port}\n".encode())
    os.close(told)
    while True:
        time.sleep(3600.0)


def _import_lerobot() -> None:
    """Before the fork, so that it is paid for once."""
    import torch

    # The torchvision of the registries is built for a GPU's torch. Beside a CPU's its compiled operators do not load,
    # and it then fails on the names of two of them; no policy here uses either.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import lerobot.async_inference.policy_server  # noqa: F401  # pyright: ignore[reportMissingImports]


if __name__ == "__main__":
    # sigwait needs them blocked, also in threads that imports start.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    os.setpgrp()
    main()
