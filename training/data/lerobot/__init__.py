"""LeRobot datasets on disk, read (v2.0, v2.1, v3.0) and written (v3.0) with pyarrow and PyAV, without lerobot."""

from training.data.lerobot.layout import DatasetError
from training.data.lerobot.reader import Episode, LeRobotReader
from training.data.lerobot.writer import LeRobotWriter

__all__ = ["DatasetError", "Episode", "LeRobotReader", "LeRobotWriter"]
