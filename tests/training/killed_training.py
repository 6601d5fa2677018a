"""A stage on two toy bodies, for test_stages.py: as a program it is ended by SIGKILL before a step is computed.

As a program its arguments say: STAGE DIRECTORY STEP, where STAGE is stage1 or stage2.
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
from torch import Tensor, nn

import training.stage1
import training.stage2
from tests.training import shared_training
from training.corpus import Corpus
from training.loop import Schedule

SCHEDULE = Schedule(num_steps=12, warmup_steps=2, save_every=4, log_every=1)


def corpus() -> Corpus:
    shared = shared_training.corpus()
    stage1, stage2 = (replace(stage, schedule=SCHEDULE) for stage in (shared.recipe.stage1, shared.recipe.stage2))
    return replace(shared, recipe=replace(shared.recipe, stage1=stage1, stage2=stage2))


def train(stage: str, directory: Path) -> nn.Module:
    if stage == "stage1":
        return training.stage1.train_stage1(corpus(), directory)
    return training.stage2.train_stage2(corpus(), None, directory)


def main(stage: str, directory: str, last: str) -> None:
    torch.set_num_threads(1)
    module, name = (training.stage1 if stage == "stage1" else training.stage2), f"{stage}_losses"
    real, steps_left = getattr(module, name), int(last)

    def losses(*arguments: Any, **options: Any) -> Mapping[str, Tensor]:
        nonlocal steps_left
        if not steps_left:
            os.kill(os.getpid(), signal.SIGKILL)
        steps_left -= 1
        return real(*arguments, **options)

    setattr(module, name, losses)
    train(stage, Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
