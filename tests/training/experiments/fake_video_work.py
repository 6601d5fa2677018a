"""Filming, training, probing and testing in no time: figures and successes are functions of what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.training.experiments.fake_work import evaluated, recorded, run_part, uniform
from training.experiments.experiment import Condition
from training.experiments.video.budget import ClipBudget, VideoBudget
from training.experiments.video.plan import PartKind
from training.experiments.video.store import VideoStore
from training.json_file import write_json
from training.latent_actions.settings import LatentActionSettings
from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun

NUM_CLIPS, NUM_ROBOT_CLIPS, BODIES, NUM_BOOTSTRAPS = 12, 6, ["panda", "sawyer"], 50
SCORES = {"num_pairs": 512, "num_candidates": 64, "distance": 0.8, "constant_distance": 1.2, "retrieval": 0.47}


@dataclass
class FakeVideoWork:
    """`fails_at` is the number of the call that raises, as a kill would."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    fails_at: int | None = None

    def film(self, name: str, clips: ClipBudget, directory: Path) -> Mapping[str, Any]:
        self._note("clips", name, str(directory))
        return {}

    def train_eyes(self, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]:
        self._note("eyes", str(recipe.video_seed), str(recipe.eyes.schedule.num_steps))
        return {}

    def train_codes(
        self, recipe: VideoPriorRecipe, settings: LatentActionSettings, run: VideoPriorRun
    ) -> Mapping[str, Any]:
        self._note("codes", settings.masks, str(settings.num_codes), str(recipe.video_seed))
        return {}

    def probe(
        self, recipe: VideoPriorRecipe, settings: LatentActionSettings, run: VideoPriorRun, hands: Path, robots: Path
    ) -> Mapping[str, Any]:
        self._note("probe", settings.masks, str(settings.num_codes), str(recipe.video_seed))
        return fake_probe(settings, recipe.video_seed)

    def make_part(self, kind: PartKind, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]:
        self._note(kind, run.robots.root.name)
        return {"scores": SCORES} if kind == "alignment" else {}

    def train_policy(self, recipe: VideoPriorRecipe, run: VideoPriorRun) -> Mapping[str, Any]:
        self._note("policy", recipe.name)
        write_json(run.robots.checkpoint / "config.json", {"execution_horizon": 8, "action_horizon": 16})
        return {"revision": f"of-{run.robots.root.name}"}

    def evaluate(
        self, checkpoint: Path, condition: Condition, task: str, first_seed: int, num_episodes: int
    ) -> Mapping[str, Any]:
        self._note("test", str(checkpoint), task, str(first_seed), str(num_episodes))
        seeds = range(first_seed, first_seed + num_episodes)
        solved = [seed for seed in seeds if uniform(f"{run_part(checkpoint)} {task} {seed}") < 0.5]
        return evaluated(checkpoint, seeds, solved)

    def _note(self, *call: str) -> None:
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt(f"killed in {call}")
        self.calls.append(call)


def fake_probe(settings: LatentActionSettings, seed: int) -> dict[str, Any]:
    """With masks the action code knows the hand and not the scenery; without them it knows half of both. Of the hand's
    motion it knows less without the motion loss.

    CKA is another with every seed, for all arms alike.
    """
    generator = np.random.default_rng(seed)
    masked = settings.masks != "none"
    effector = 0.5 if not masked else 0.9 if settings.motion_weight else 0.8
    known = {
        "effector.action": effector,
        "effector.action_latents": effector + 0.05,
        "effector.background": 0.1,
        "effector.place": 0.4,
        "effector_given_place.action": 0.6,
        "effector_given_place.background": 0.05,
        "effector_place.action": 0.3,
        "effector_place.background": 0.5,
        "effector_in_scene.action": 0.9 if masked else 0.4,
        "effector_in_scene.background": 0.0,
        "scenery.action": 0.1 if masked else 0.5,
        "scenery.background": 0.8,
    }
    total = generator.uniform(0.5, 1.5, NUM_CLIPS)
    sums: dict[str, Any] = {name: np.stack([(1 - r2) * total, total], 1).tolist() for name, r2 in known.items()}
    if settings.num_codes:
        counts = np.tile(np.arange(settings.num_codes) < 0.9 * settings.num_codes, (NUM_CLIPS, 1))
        half = counts * (np.arange(settings.num_codes) < settings.num_codes / 2)
        sums |= {"action_codes": (10 * counts).tolist(), "background_codes": (10 * half).tolist()}
    for name, error in (("own", 0.3), ("transferred", 0.5), ("shuffled", 0.8), ("none", 0.9)):
        sums[f"transfer.{name}"] = np.full((len(BODIES), 1 + NUM_BOOTSTRAPS), error).tolist()
    for name, cka in (("as_is", 0.5), ("without_body", 0.9)):
        level = (cka if masked else cka - 0.2) + 0.01 * seed
        sums[f"cka.{name}"] = (level + generator.uniform(-0.01, 0.01, (len(BODIES), 1 + NUM_BOOTSTRAPS))).tolist()
    sums["masks.hands"] = [[0.7, 1.0]] * NUM_CLIPS
    sums["masks.robots"] = [[0.8, 1.0]] * NUM_ROBOT_CLIPS
    matching = [
        {"num_pairs": 90 + index, "mismatch": 0.02 + index, "num_partner_pairs": 80 + index, "num_partner_clips": 9}
        for index in range(len(BODIES))
    ]
    return {
        "num_pairs": 100,
        "num_clips": NUM_CLIPS,
        "bodies": BODIES,
        "matching": matching,
        "num_directions_removed": [2, 2],
        "sums": sums,
    }


def video_store_of(budget: VideoBudget, root: Path) -> VideoStore:
    return VideoStore(root=root, budget=budget, data_identity=recorded)
