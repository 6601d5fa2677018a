"""Stage 1 on two toy bodies, for test_stages.py: as a program it is ended by SIGKILL before a step is computed.

As a program its arguments say: DIRECTORY STEP.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import training.stage1
from tests.training import shared_training
from training.corpus import Corpus
from training.loop import Schedule

SCHEDULE = Schedule(num_steps=12, warmup_steps=2, save_every=4, log_every=1)


def corpus() -> Corpus:
    shared = shared_training.corpus()
    recipe = replace(shared.recipe, stage1=replace(shared.recipe.stage1, schedule=SCHEDULE))
    return replace(shared, recipe=recipe)


def main(directory: str, last: str) -> None:
    torch.set_num_threads(1)
    real, steps_left = training.stage1.stage1_losses, int(last)

    def losses(*arguments: Any) -> Mapping[str, Tensor]:
        nonlocal steps_left
        if not steps_left:
            os.kill(os.getpid(), signal.SIGKILL)
        steps_left -= 1
        return real(*arguments)

    training.stage1.stage1_losses = losses
    training.stage1.train_stage1(corpus(), Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
