"""Where clips, parts, policies and outcomes lie, named by their content: what two arms share is made once.

Owns digests, paths and the small JSON files that say what is done. Weights may be deleted; what is done stays done. An
outcome with a `key` was told by finished_jobs.py: nothing that its job made is here, and a policy's holds its tests.
Layout below `build/experiments/video-<budget>/`: `clips/<name>-<digest>/`, `parts/` (training/video_prior's and codes
that only probes read), `runs/<digest>/` and `outcomes/<job>.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from training.experiments.store import CARRIES_OUT, DataIdentity, Evaluation, digest_of, explicit, read_json
from training.experiments.video.budget import CLIPS, TRAINING_CLIPS, VideoBudget
from training.experiments.video.experiment import CodesTraining, PolicyTraining
from training.json_file import write_json
from training.latent_actions.settings import LatentActionSettings
from training.locked import locked
from training.recipe import RunDirectory
from training.video_prior.recipe import VideoPriorRecipe, VideoPriorRun


@dataclass(frozen=True, kw_only=True)
class CodesRun:
    """Latent actions of one seed: `recipe` says eyes and clips, `settings` what they are trained with."""

    recipe: VideoPriorRecipe
    settings: LatentActionSettings
    eyes_digest: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """One policy of one seed. Digests of parts are empty where it has none; `codes` are what it learns, if any."""

    recipe: VideoPriorRecipe
    digest: str
    eyes_digest: str
    codes: CodesRun | None
    pretraining_digest: str
    stage1_digest: str
    labels_digest: str
    alignment_digest: str

    @property
    def key(self) -> str:
        """Of its outcome."""
        return f"policy {self.digest}"

    @property
    def first_seed(self) -> int:
        """Of the scenes it is tested on."""
        return self.recipe.base.evaluation.first_seed


@dataclass(frozen=True, kw_only=True)
class VideoStore:
    root: Path
    budget: VideoBudget
    data_identity: DataIdentity

    @cached_property
    def clips(self) -> Mapping[str, str]:
        """The directory of each of CLIPS."""
        return {name: str(self.root / "clips" / f"{name}-{self.clips_digest(name)}") for name in CLIPS}

    def clips_digest(self, name: str) -> str:
        kind, purpose = name.split("-")
        other = "testing" if purpose == "training" else "training"
        filmed = {
            key: value
            for key, value in asdict(self.budget.clips).items()
            if (kind[:-1] in key or key in ("image_size", "rate_hz")) and other not in key
        }
        return digest_of({"name": name, **filmed})

    def codes_run(self, training: CodesTraining, seed: int) -> CodesRun:
        recipe = self.budget.codes_recipe(seed, self.clips, hands_only=training.hands_only)
        settings, eyes = self.budget.latent_actions(training), self._eyes_digest(recipe)
        clips = {"clips": [self.clips_digest(TRAINING_CLIPS[0])]} if training.hands_only else {}
        return CodesRun(
            recipe=recipe,
            settings=settings,
            eyes_digest=eyes,
            digest=digest_of({"eyes": eyes, "latent_actions": explicit(settings), **clips}),
        )

    def policy_run(self, training: PolicyTraining, seed: int) -> PolicyRun:
        recipe = self.budget.policy_recipe(training, seed, self.clips)
        base, joint = recipe.base, recipe.joint
        codes = self.codes_run(CodesTraining(hands_only=training.hands_only), seed) if recipe.needs_codes else None
        data = {
            "size": base.size,
            "seed": base.seed,
            "autocast": base.autocast,
            "data": explicit(replace(base.data, root="")),
            "recordings": dict(self.data_identity(base)),
            "words": self._clip_digests,
        }
        learned = codes.digest if codes else ""
        has_stage1 = bool(base.stage1.schedule.num_steps)
        stage1 = digest_of({**data, "stage1": explicit(base.stage1)}) if has_stage1 else ""
        pretraining = {**data, "data": base.data.tasks, "codes": learned, "pretraining": explicit(recipe.pretraining)}
        sees_clips = joint is not None and joint.sees_clips
        alignment = {"stage1": stage1, "codes": learned, "alignment": explicit(joint.alignment) if joint else None}
        trained = {
            **data,
            **{name: explicit(getattr(recipe, name)) for name in ("intent", "pretraining", "adaptation")},
            "joint": explicit(joint) if joint else None,
            "stage1": stage1,
            "stage2": explicit(base.stage2),
            "eyes": self._eyes_digest(recipe),
            "codes": learned,
        }
        return PolicyRun(
            recipe=recipe,
            digest=digest_of(trained),
            eyes_digest=self._eyes_digest(recipe),
            codes=codes,
            pretraining_digest=digest_of(pretraining) if recipe.pretraining.schedule.num_steps else "",
            stage1_digest=stage1,
            labels_digest=digest_of({**data, "codes": learned}) if recipe.has_intent_loss or sees_clips else "",
            alignment_digest=digest_of(alignment) if sees_clips else "",
        )

    @property
    def _clip_digests(self) -> list[str]:
        return [self.clips_digest(name) for name in TRAINING_CLIPS]

    def _eyes_digest(self, recipe: VideoPriorRecipe) -> str:
        return digest_of({"eyes": explicit(recipe.eyes), "clips": self._clip_digests, "seed": recipe.video_seed})

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    def prior_run(self, recipe: VideoPriorRecipe, name: str) -> VideoPriorRun:
        """Where training/video_prior works: what is not shared goes to runs/`name`."""
        return VideoPriorRun(robots=RunDirectory.of(recipe.base, self.root / "runs" / name), shared=self.parts)

    def checkpoint(self, run: PolicyRun) -> Path:
        return self.prior_run(run.recipe, run.digest).robots.checkpoint

    def outcome(self, key: str) -> Mapping[str, Any] | None:
        """What is kept of a job that is done; None before."""
        return read_json(self._outcome_path(key))

    def write_outcome(self, key: str, values: Mapping[str, Any]) -> None:
        write_json(self._outcome_path(key), values)

    def is_told(self, key: str) -> bool:
        """Whether what is kept of a job was told, and nothing that it made is here."""
        return self._told(key) is not None

    def key_where_done(self, key: str) -> str:
        """A job's own where it was done: another one where recordings are others."""
        return (self._told(key) or {}).get("key", key)

    def trained_digest(self, run: PolicyRun) -> str:
        """Of the training that is known of."""
        return self.key_where_done(run.key).rpartition(" ")[2]

    def config(self, run: PolicyRun) -> Mapping[str, Any] | None:
        """The checkpoint's, or as much of it as was told."""
        told = self._told(run.key)
        return read_json(self.checkpoint(run) / "config.json") if told is None else told.get("config")

    def alignment_scores(self, run: PolicyRun) -> Mapping[str, Any]:
        """Of the alignment that the policy has: a told one's is not the one that may be here. Empty where none is."""
        aligned = self._told(run.key)
        if aligned is None and run.alignment_digest:
            aligned = self.outcome(f"alignment {run.alignment_digest}")
        return (aligned or {}).get("scores", {})

    def evaluation(self, run: PolicyRun, task: str) -> Evaluation:
        """Of a told policy those told with it: when it is trained here, they are gone with it.

        Empty where other scenes than the run's were tried: no digest has their first seed.
        """
        told = self._told(run.key)
        values = read_json(self._evaluation_path(run, task)) if told is None else told["tests"].get(task)
        evaluation = Evaluation.from_json(values or {})
        return evaluation if evaluation.seeds[:1] == (run.first_seed,) else Evaluation()

    def write_evaluation(self, run: PolicyRun, task: str, evaluation: Evaluation) -> None:
        write_json(self._evaluation_path(run, task), evaluation.to_json())

    def _told(self, key: str) -> Mapping[str, Any] | None:
        outcome = self.outcome(key)
        return outcome if outcome is not None and "key" in outcome else None

    def _outcome_path(self, key: str) -> Path:
        return self.root / "outcomes" / f"{key.replace(' ', '-')}.json"

    def _evaluation_path(self, run: PolicyRun, task: str) -> Path:
        return self.root / "runs" / run.digest / "evaluations" / f"{task}.json"

    def locked(self) -> AbstractContextManager[None]:
        """One process at a time carries out jobs here; raises BusyError."""
        return locked(self.root, CARRIES_OUT)
