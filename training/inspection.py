"""Is the policy looking? Chunk error with true inputs, with images and with states shuffled within the task.

A policy can explain most of its loss by state and task alone and stay blind; then shuffled images cost it nothing. Owns
that measurement and on whose frames it is made: those of the training's demonstrations, or of a few that are recorded
for it on scenes that no training sees. Success in closed loop is evaluate.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policy.backbone import ObservationBatch
from policy.intent_vla import IntentVLA
from policy.models import Model
from policy.vla import HistoryBatch
from training.batches import Mixture
from training.corpus import Corpus
from training.data.pack import Pack, build_packs
from training.objective import MotionBatch, to_device
from training.record import record
from training.simulation.registry import TASK_NAMES
from training.suite import Suite

NUM_FRAMES = 384
_WITH_HISTORY = "_history"
TRAINING, HELD_OUT, OTHER = "training", "held-out", "other"
_ROWS = 64
# Whose tuning scenes are held out: those of every suite that is shipped.
_SCENES_OF = "cross13"
_HELD_OUT_EPISODES = 2
Scenes = Mapping[str, Collection[int]]
_FRAMES_ARE = {
    TRAINING: "of demonstrations that it was trained on; --held-out has others",
    HELD_OUT: f"of {_HELD_OUT_EPISODES} demonstrations a task on tuning scenes, which no training sees",
    OTHER: "of demonstrations that its training does not name",
}


def inspect(
    vla: Model, mixture: Mixture, *, num_frames: int = NUM_FRAMES, seed: int = 0, device: str | torch.device = "cpu"
) -> list[dict[str, Any]]:
    """Per pack: mean |error| of sampled chunks, model units, over real steps and dimensions; ratios to the true one.

    Each without history, and under names that end in `_history` with the true history given, whatever is shuffled: a
    policy that copies its history is blind only there. Of a model whose decoder reads intent and frozen eyes, pictures
    are also shuffled for one of the two alone: `intent`, which the backbone takes from them, and `sight`.
    """
    vla = vla.to(device).eval()
    reads_both = isinstance(vla, IntentVLA) and vla.uses_intent and vla.eyes is not None
    rows = []
    for index, pack in enumerate(mixture.packs):
        generator = np.random.default_rng([seed, index])
        frames = generator.choice(pack.num_frames, min(num_frames, pack.num_frames), replace=False)
        batch = to_device(mixture.vla([(index, frames)], torch.ones(len(frames), dtype=torch.bool)), device)
        shuffled = torch.from_numpy(_derangement(len(frames), generator)).to(device)
        observation, motion = batch.observation, batch.motion
        row: dict[str, Any] = {"task": pack.task, "num_frames": len(frames)}
        for told, history in (("", None), (_WITH_HISTORY, batch.history)):
            true = chunk_error(vla, observation, history, motion)
            others = replace(observation, images=observation.images[shuffled])
            images = chunk_error(vla, others, history, motion)
            state = chunk_error(vla, replace(observation, state=observation.state[shuffled]), history, motion)
            row |= {
                f"error{told}": true,
                f"error_images_shuffled{told}": images,
                f"error_state_shuffled{told}": state,
                f"images_ratio{told}": images / true,
                f"state_ratio{told}": state / true,
            }
            if reads_both:
                intent = chunk_error(vla, observation, history, motion, foreseen_in=others)
                sight = chunk_error(vla, others, history, motion, foreseen_in=observation)
                row |= {
                    f"error_intent_shuffled{told}": intent,
                    f"error_sight_shuffled{told}": sight,
                    f"intent_ratio{told}": intent / true,
                    f"sight_ratio{told}": sight / true,
                }
        rows.append(row)
    return rows


def frames_of_run(corpus: Corpus) -> dict[str, str]:
    """By task, what the frames of a run's packs were to it."""
    trained = {pack.task for pack in corpus.stage2_packs}
    return {pack.task: TRAINING if pack.task in trained else OTHER for pack in corpus.packs}


def frames_of_checkpoint(corpus: Corpus, manifest: Mapping[str, Any]) -> dict[str, str]:
    """By task, what the frames of packs were to a checkpoint: the same recordings, and no more of them, or others."""

    def is_known(pack: Pack) -> bool:
        known = manifest["data"].get(pack.task)
        return (
            known is not None
            and known["dataset_sha256"] == pack.source_sha256
            and known["num_episodes"] >= pack.num_episodes
        )

    trained = {pack.task for pack in corpus.stage2_packs if is_known(pack)}
    return {pack.task: TRAINING if pack.task in trained else OTHER for pack in corpus.packs}


def scenes_of_run(corpus: Corpus) -> Scenes:
    """By task, the seeds of a run's recordings."""
    return {pack.task: pack.episode_seed.tolist() for pack in corpus.packs}


def scenes_of_checkpoint(manifest: Mapping[str, Any]) -> Scenes:
    """By task, the seeds that a checkpoint's recordings were of, those of failed attempts between them included."""
    return {task: range(data["first_seed"], data["last_seed"] + 1) for task, data in manifest["data"].items()}


def held_out_packs(corpus: Corpus, trained_on: Scenes, directory: Path, *, num_workers: int) -> Sequence[Pack]:
    """A few demonstrations of each task on tuning scenes, recorded by the experts into `directory`; again at once.

    Needs no recording of the training. Raises ValueError for a task that no simulator here plays, for a body that is
    not the one it was trained on, and for scenes that it was trained on after all.
    """
    tasks = list(trained_on)
    if unknown := [task for task in tasks if task not in TASK_NAMES]:
        raise ValueError(f"no simulator here plays {', '.join(unknown)}, so no scene of it can be held out")
    first_seed = Suite.load(_SCENES_OF).seeds.tuning.first
    for task in tasks:
        record(
            task=task,
            directory=directory / "data" / task,
            num_episodes=_HELD_OUT_EPISODES,
            first_seed=first_seed,
            disturbed_fraction=corpus.recipe.data.disturbed_fraction,
            num_workers=num_workers,
        )
    size, interpolation = corpus.config.image_size, corpus.config.interpolation
    packs = build_packs(
        [directory / "data" / task for task in tasks],
        directory / f"packs-{size}px-{interpolation}",
        image_size=size,
        interpolation=interpolation,
    )
    corpus.check_bodies(packs, "held-out scenes")
    for pack in packs:
        if seen := sorted(set(trained_on[pack.task]) & set(pack.episode_seed.tolist())):
            raise ValueError(f"scenes {seen} of {pack.task!r} are among its demonstrations, expected none")
    return packs


def chunk_error(
    vla: Model,
    observation: ObservationBatch,
    history: HistoryBatch | None,
    motion: MotionBatch,
    foreseen_in: ObservationBatch | None = None,
) -> float:
    """Mean |sampled - recorded| in model units, the same noise whatever the inputs.

    Intent is that of the observation `foreseen_in`, where one is given; this is for an IntentVLA alone.
    """
    noise = torch.randn(motion.actions.shape, generator=torch.Generator().manual_seed(0)).to(motion.actions.device)
    total = count = 0.0
    for start in range(0, len(noise), _ROWS):
        rows = slice(start, start + _ROWS)
        with torch.inference_mode():
            seen, past = _rows(observation, rows), None if history is None else _rows(history, rows)
            asked = noise[rows], motion.action_mask[rows], [vla.config.num_inference_steps] * len(noise[rows])
            if foreseen_in is None:
                chunk = vla.sample(seen, past, *asked)
            else:
                assert isinstance(vla, IntentVLA)
                chunk = vla.act(seen, vla.foresee(_rows(foreseen_in, rows), past), *asked)
        real = motion.step_mask[rows, :, None] & motion.action_mask[rows, None]
        error = torch.where(real, (chunk - motion.actions[rows]).abs(), 0)
        total, count = total + error.sum().item(), count + real.sum().item()
    return total / count


def format_inspection(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table, under it whether the policy looks, and what the rows' key `frames` says.

    Their key `trained_with_history` says how it is judged: as it is asked where it serves.
    """
    history = rows[0]["trained_with_history"]
    lines = [
        f"{'task':<14} {'history':<8} {'error':>8} {'images shuffled':>16} {'state shuffled':>15} "
        f"{'images ratio':>13} {'state ratio':>12}"
    ]
    for row in rows:
        for told, kind in ((_WITH_HISTORY, "true"), ("", "none")) if history else (("", "none"),):
            lines.append(
                f"{row['task']:<14} {kind:<8} {row[f'error{told}']:>8.4f} {row[f'error_images_shuffled{told}']:>16.4f} "
                f"{row[f'error_state_shuffled{told}']:>15.4f} {row[f'images_ratio{told}']:>13.2f} "
                f"{row[f'state_ratio{told}']:>12.2f}"
            )
    judged = _WITH_HISTORY if history else ""
    lines.append(
        f"with {'the true' if history else 'no'} history, shuffled images cost {_range(rows, f'images_ratio{judged}')} "
        "times the true error, by task; 1 is blind"
    )
    if f"intent_ratio{judged}" in rows[0]:
        lines.append(
            f"shuffled for intent alone {_range(rows, f'intent_ratio{judged}')} times, for sight alone "
            f"{_range(rows, f'sight_ratio{judged}')}; 1 is not read"
        )
    for kind, said in _FRAMES_ARE.items():
        if tasks := [row["task"] for row in rows if row["frames"] == kind]:
            of_whom = "all tasks" if len(tasks) == len(rows) else ", ".join(tasks)
            lines.append(f"frames of {of_whom}: {said}")
    return "\n".join(lines)


def _range(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    ratios = [row[name] for row in rows]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _rows(batch: Any, rows: slice) -> Any:
    return type(batch)(**{name: values[rows] for name, values in vars(batch).items()})


def _derangement(count: int, generator: np.random.Generator) -> np.ndarray:
    """A shuffle that leaves nothing in its place."""
    order = generator.permutation(count)
    shuffled = np.empty(count, dtype=np.int64)
    shuffled[order] = np.roll(order, 1)
    return shuffled
