from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from training.data.lerobot import LeRobotWriter

HEIGHT, WIDTH = 48, 80
MILLISECOND = Fraction(1, 1000)


def numbered(num_frames: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frame k is grey of brightness 4 k, so that a decoded frame says which one it is."""
    grey = (4 * np.arange(num_frames) % 256).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (num_frames, height, width, 3)).copy()


def number_of(frames: np.ndarray) -> list[int]:
    """Which of `numbered` each frame is."""
    return np.rint(frames.mean((1, 2, 3)) / 4).astype(int).tolist()


def quadrants(num_frames: int, size: int = 64) -> np.ndarray:
    """Upright: red and green above, blue and black below."""
    frame = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    frame[:half, :half, 0] = frame[:half, half:, 1] = frame[half:, :half, 2] = 255
    return np.broadcast_to(frame, (num_frames, size, size, 3)).copy()


def write_video(
    path: Path,
    frames: np.ndarray,
    rate_hz: float = 30,
    *,
    times_ms: Sequence[int] | None = None,
    faststart: bool = False,
) -> Path:
    """H.264 with B-frames. With `times_ms` each frame is shown when it says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000))
        stream.options = {"g": "8", "bf": "2", "crf": "12", "preset": "veryfast"}
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        if times_ms is not None:
            stream.codec_context.time_base = MILLISECOND
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[index], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, *, cosine: float, sine: float) -> Path:
    """Say in an MP4 file's track header that its picture is to be turned clockwise by that angle when it is shown."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO 14496-12, 8.3.2: after the version, times, identifiers and volume
    a, b = round(cosine * 65536), round(sine * 65536)
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.fixture
def write_dataset() -> Callable[..., Path]:
    """A LeRobot data set of two cameras at 20 Hz, whose frames are `numbered`, with a body that is called slider."""

    def write(root: Path, lengths: Sequence[int] = (24, 30)) -> Path:
        cameras = {f"observation.images.{name}": (32, 48, 3) for name in ("front", "wrist")}
        names = {"names": ["height", "width", "channels"]}
        features = {key: {"dtype": "video", "shape": list(shape), **names} for key, shape in cameras.items()}
        features["action"] = {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
        with LeRobotWriter(root, fps=20.0, features=features, robot_type="slider") as writer:
            for seed, length in enumerate(lengths):
                arrays = {key: numbered(length, *shape[:2]) for key, shape in cameras.items()}
                writer.add_episode({**arrays, "action": np.zeros((length, 2), np.float32)}, "slide it", seed=seed)
        return root

    return write


@pytest.fixture
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture
def make_frames() -> Callable[..., np.ndarray]:
    return numbered


@pytest.fixture
def numbers() -> Callable[[np.ndarray], list[int]]:
    return number_of


@pytest.fixture
def turned_quadrants() -> Callable[..., Path]:
    """A video of `quadrants` stored turned counterclockwise by quarter turns, that says how to undo it."""

    def write(path: Path, quarters: int) -> Path:
        write_video(path, np.rot90(quadrants(20), quarters, axes=(1, 2)))
        return turn(path, cosine=[1, 0, -1, 0][quarters], sine=[0, 1, 0, -1][quarters])

    return write


@pytest.fixture
def half_turned() -> Callable[[Path], Path]:
    """A video that is to be turned by 45 degrees."""

    def write(path: Path) -> Path:
        return turn(write_video(path, quadrants(20)), cosine=0.7071, sine=0.7071)

    return write


@pytest.fixture
def sound_alone() -> Callable[[Path], Path]:
    """An MP4 file without any video."""

    def write(path: Path) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux(stream.encode(silence))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def scatter_damage() -> Callable[[Path], None]:
    """Change a byte here and there, which loses no frame and spoils many."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        for place in range(len(content) // 3, len(content), 997):
            content[place] ^= 255
        path.write_bytes(content)

    return damage
