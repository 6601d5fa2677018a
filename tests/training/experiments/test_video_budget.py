"""A budget on video refuses what no run's name would tell apart, and warms up before its distillation ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.experiments.video.budget import VideoBudget
from training.experiments.video.experiment import PolicyTraining
from training.recipe import BackboneRecipe


@pytest.fixture
def budget() -> VideoBudget:
    return VideoBudget.load("cpu")


@pytest.mark.parametrize(
    ("field", "value"), [("backbone", BackboneRecipe(directory="build/vlm")), ("layers_from", "build/qwen3")]
)
def test_a_pretrained_model_that_no_digest_has_is_refused_by_its_field(
    field: str, value: object, budget: VideoBudget
) -> None:
    base = replace(budget.recipe.base, **{field: value})
    with pytest.raises(ValueError, match=rf"budget cpu: recipe has base\.{field}, expected none"):
        replace(budget, recipe=replace(budget.recipe, base=base))


def test_other_eyes_that_no_digest_has_are_refused_by_their_fields(budget: VideoBudget) -> None:
    for changes, named in (
        ({"eyes_directory": "build/eyes"}, "eyes_directory"),
        ({"eyes_directory": "build/eyes", "eyes_image_size": 64}, "eyes_directory and eyes_image_size"),
    ):
        with pytest.raises(ValueError, match=f"budget cpu: recipe has {named}, expected none"):
            replace(budget, recipe=replace(budget.recipe, **changes))


def test_most_of_the_distillation_comes_after_the_warm_up(budget: VideoBudget) -> None:
    policy = PolicyTraining(demonstrations=10, head="motion", state_prior=True)
    clips = dict.fromkeys(("hands-training", "robots-training"), "build/clips")
    stage2 = budget.policy_recipe(policy, 0, clips).base.stage2
    assert stage2.decay_steps is not None
    assert 0 < stage2.schedule.warmup_steps <= stage2.decay_steps / 4
