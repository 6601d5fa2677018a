"""How much of its data a budget's stage 1 sees: its windows, how many of them are drawn, how many different ones.

Follows how training/data/sampler.py walks packs, and draws nothing itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.recipe import Recipe, RunDirectory


def stage1_windows(recipe: Recipe) -> dict[str, Any] | None:
    """`windows` that there are, `drawn` by all steps together, `distinct` among these; None without stage 1 or packs.

    A window begins at every frame. Each task is drawn as often as its weight says, and none of its windows a second
    time before all of them were drawn once.
    """
    from training.data.pack import MANIFEST, Pack

    stage1, run = recipe.stage1, RunDirectory.of(recipe, Path())
    if not stage1.schedule.num_steps:
        return None
    tasks = stage1.tasks or recipe.data.tasks
    wanted = {task: [(run.packs / task, recipe.data.num_episodes(task))] for task in tasks}
    if stage1.motion_episodes:
        for task in tasks:
            wanted[task].append((run.motion_packs / task, stage1.motion_episodes))
    if not all((pack / MANIFEST).is_file() for packs in wanted.values() for pack, _ in packs):
        return None
    windows = {task: sum(Pack.open(pack).first(n).num_frames for pack, n in packs) for task, packs in wanted.items()}
    drawn, weights = stage1.schedule.num_steps * stage1.batch_size, sum(map(recipe.data.weight, tasks))
    return {
        "motion_episodes": stage1.motion_episodes,
        "windows": sum(windows.values()),
        "drawn": drawn,
        "distinct": round(sum(min(drawn * recipe.data.weight(task) / weights, windows[task]) for task in tasks)),
    }
