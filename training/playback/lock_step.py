"""One cell in lock step: time stands still while a chunk is computed, and its delay is exactly what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from training.evaluate import Job, Target, open_source
from training.playback.cells import Cell
from training.playback.scenes import PlayedScene, Row
from training.rollout import RULES, run_episode
from training.seams import SeamMeter
from training.simulation.registry import make_simulation


def play_in_lock_step(cell: Cell, *, checkpoint: Path, history: bool, seeds: Sequence[int]) -> Row:
    """Every scene once. Jumps are those of the planned actions, before a simulator clips them."""
    torch.set_num_threads(1)
    target = Target(checkpoint=checkpoint, history=history, inference_delay=cell.delay_steps, rule=cell.rule)
    scenes = []
    simulation = make_simulation(cell.task)
    try:
        with open_source(Job(target=target, task=cell.task, seeds=tuple(seeds), video=None)) as source:
            for seed in seeds:
                meter = SeamMeter(simulation.spec.action)
                episode = run_episode(
                    simulation,
                    source,
                    seed,
                    inference_delay=cell.delay_steps,
                    rule=RULES[cell.rule],
                    seams=meter,
                )
                scenes.append(
                    PlayedScene(
                        seed=seed,
                        succeeded=episode.succeeded,
                        num_steps=episode.num_steps,
                        latencies_s=episode.latencies_s,
                        seams=meter.figures(),
                    )
                )
    finally:
        simulation.close()
    return Row(cell=cell, scenes=scenes)
