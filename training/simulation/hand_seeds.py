"""Which seeds of hand_clips.py are for training and which for testing. Films nothing, so needs no simulator."""

from __future__ import annotations

TRAINING_SEEDS = range(1_000_000)
TESTING_SEEDS = range(1_000_000, 2_000_000)
