"""Paper B's model: intent from the backbone, sight and state straight to the decoder, a checkpoint like any other."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from policy.backbone import ObservationBatch
from policy.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from policy.config import IntentSettings, ModelConfig
from policy.embodiment import EmbodimentSpec
from policy.intent import IntentDecoder, fold_patches
from policy.intent_vla import IntentVLA, build_intent_vla
from policy.models import build_model
from policy.policy import Policy
from policy.prior import ActionPrior
from policy.real_time import Guidance, Prefix
from policy.request import ChunkRequest, RealTimeChunking
from policy.visual_features import VisualSettings
from policy.vla import VLA, HistoryBatch, prior_config

Observe = Callable[..., ObservationBatch]
MakeModel = Callable[..., IntentVLA]
EYES = VisualSettings(image_size=16, patch=4, width=32, num_layers=1).to_json()
INTENT = IntentSettings(num_codes=5, num_tokens=3, visual=EYES)


@pytest.fixture(scope="module")
def make_model(toy_config: Callable[[str], ModelConfig], tokenizer: Tokenizer) -> MakeModel:
    def build(kind: str = "convolutional", intent: IntentSettings = INTENT, **changes: object) -> IntentVLA:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_intent_vla(replace(toy_config(kind), intent=intent, **changes), tokenizer).eval()
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.data.normal_(std=0.2)  # what starts at zero hides what it is given
        return model

    return build


@pytest.fixture(params=["convolutional", "smolvlm"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> IntentVLA:
    return make_model(request.param)


def history(model: IntentVLA, lengths: tuple[int, ...]) -> HistoryBatch:
    config, draw = model.config, torch.Generator().manual_seed(1)
    shape = (len(lengths), config.history_steps)
    return HistoryBatch(
        states=torch.randn(*shape, config.max_state_dim, generator=draw),
        actions=torch.randn(*shape, config.max_action_dim, generator=draw),
        step_mask=torch.arange(config.history_steps) >= config.history_steps - torch.tensor(lengths)[:, None],
    )


def sample(model: IntentVLA, observation: ObservationBatch, past: HistoryBatch | None = None, **options: object):
    config, batch = model.config, len(observation.instructions)
    noise = torch.randn(config.action_horizon, config.max_action_dim, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(batch, config.max_action_dim, dtype=torch.bool)
    mask[observation.embodiment == 0, 2:] = False
    with torch.inference_mode():
        return model.sample(observation, past, noise.repeat(batch, 1, 1), mask, [2, 3, 4][:batch], **options)  # type: ignore[arg-type]


def row(observation: ObservationBatch, index: int) -> ObservationBatch:
    return ObservationBatch(**{name: value[index : index + 1] for name, value in vars(observation).items()})


def differ(one: Tensor, other: Tensor) -> list[bool]:
    return [bool((a - b).abs().max() > 1e-4) for a, b in zip(one, other, strict=True)]


def test_a_chunk_alone_equals_the_same_chunk_in_a_mixed_batch(model: IntentVLA, observe: Observe) -> None:
    observation = observe(model.config)
    past = history(model, (4, 0, 2))
    together = sample(model, observation, past)
    for index in range(3):
        alone = model.sample(
            row(observation, index),
            HistoryBatch(**{name: value[index : index + 1] for name, value in vars(past).items()}),
            torch.randn(*together.shape[1:], generator=torch.Generator().manual_seed(2))[None],
            torch.arange(model.config.max_action_dim)[None] < (2 if index == 0 else model.config.max_action_dim),
            [[2, 3, 4][index]],
        )
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)
    assert not together[0, :, 2:].any()
    torch.testing.assert_close(sample(model, observation, history(model, (0, 0, 0))), sample(model, observation))
    assert differ(together, sample(model, observation)) == [True, False, True]


def test_picture_words_state_and_body_are_in_the_chunk(model: IntentVLA, observe: Observe) -> None:
    observation = observe(model.config)
    chunk = sample(model, observation)
    for changed in (
        replace(observation, images=observation.images.flip(2)),
        replace(observation, instructions=observation.instructions[::-1]),
        replace(observation, state=observation.state + 0.5),
        replace(observation, embodiment=1 - observation.embodiment),
        replace(observation, state_mask=torch.zeros(3, dtype=torch.bool)),
    ):
        assert any(differ(sample(model, changed), chunk))
    hidden = replace(observation, images=observation.images.clone())
    hidden.images[~hidden.camera_mask] = 200
    torch.testing.assert_close(sample(model, hidden), chunk, atol=1e-5, rtol=1e-5)


def test_intent_does_not_know_the_state(model: IntentVLA, observe: Observe) -> None:
    observation = observe(model.config)
    query = model.observe(observation).without_history
    other = model.observe(replace(observation, state=observation.state + 1)).without_history
    assert torch.equal(query, other)
    intent = model.to_intent(query)
    assert intent.logits.shape == (3, 3, 5) and intent.tokens.shape == (3, 3, model.config.decoder.width)
    torch.testing.assert_close(intent.tokens.square().mean(-1), torch.ones(3, 3))


@pytest.mark.parametrize(
    ("intent", "instruction_matters", "eyes_matter"),
    [
        (INTENT, True, True),
        (replace(INTENT, visual=None), True, False),
        (replace(INTENT, use_intent=False), False, True),
    ],
)
def test_each_arm_reads_what_its_config_says(
    make_model: MakeModel, observe: Observe, intent: IntentSettings, instruction_matters: bool, eyes_matter: bool
) -> None:
    model = make_model(intent=intent)
    observation = observe(model.config)
    chunk = sample(model, observation)
    other_words = replace(observation, instructions=observation.instructions[::-1])
    assert any(differ(sample(model, other_words), chunk)) is instruction_matters
    assert (model.eyes is not None) is eyes_matter
    if model.eyes is not None:
        with torch.no_grad():
            for parameter in model.eyes.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        assert any(differ(sample(model, observation), chunk))


def test_gradients_reach_everything_but_the_eyes(make_model: MakeModel, observe: Observe) -> None:
    model = make_model().train()
    observation = observe(model.config)
    output = model.observe(observation, history(model, (4, 4, 4)))
    assert output.with_history is not None and model.eyes is not None and not model.eyes.training
    intent = model.to_intent(output.with_history)
    context = model.context(
        replace(observation, state_mask=torch.tensor([True, False, True])), model.look(observation), intent
    )
    noisy = torch.randn(3, model.config.action_horizon, model.config.max_action_dim)
    velocity = model.decoder(noisy, torch.full((3,), 0.5), context)
    (velocity.square().sum() + intent.logits.square().sum()).backward()
    assert all(parameter.grad is None for parameter in model.eyes.parameters())
    trained = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    silent = {name for name, _ in model.named_parameters()} - trained
    # The backbone never reads a state.
    assert {name for name in silent if not name.startswith("eyes.")} <= {
        "backbone.state_in.weight",
        "backbone.state_in.bias",
    }


def test_a_continued_chunk_keeps_its_prefix_or_is_pulled_towards_it(make_model: MakeModel, observe: Observe) -> None:
    model = make_model()
    observation, config = observe(model.config), model.config
    plain = sample(model, observation)
    previous = torch.full((1, config.action_horizon, config.max_action_dim), 0.7)
    prefix = Prefix(rows=(1,), previous=previous, mask=torch.arange(config.action_horizon)[None] < 2)
    guidance = Guidance(
        rows=(2,), previous=previous, weights=torch.ones(1, config.action_horizon), max_weight=torch.tensor([5.0])
    )
    continued = sample(model, observation, continuations=[prefix, guidance])
    torch.testing.assert_close(continued[0], plain[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(continued[1, :2], previous[0, :2])
    assert (continued[1, 2:] - plain[1, 2:]).abs().max() > 1e-4
    assert (continued[2] - previous[0]).abs().mean() < (plain[2] - previous[0]).abs().mean()


def test_stage_1s_prior_starts_encoder_and_decoder(make_model: MakeModel) -> None:
    model = make_model()
    torch.manual_seed(5)
    prior = ActionPrior(prior_config(model.config))
    own = {"visual_in.weight", "visual_in.bias", "view", "state_in.weight", "state_in.bias", "no_state"}
    own |= {"visual_mean", "visual_scale"}
    kept = {name: model.decoder.state_dict()[name].clone() for name in own}
    model.start_from_prior(prior)
    for name, value in prior.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name
    for name, value in model.decoder.state_dict().items():
        assert torch.equal(value, kept[name] if name in own else prior.decoder.state_dict()[name]), name
    assert isinstance(model.decoder, IntentDecoder)


def test_bodies_start_where_video_ended(make_model: MakeModel, observe: Observe) -> None:
    model = make_model()
    observation = observe(model.config)
    first_camera = torch.arange(observation.camera_mask.shape[1]) == 0
    observation = replace(observation, camera_mask=observation.camera_mask & first_camera)
    seen = replace(observation, embodiment=torch.full((3,), model.video_body))
    video = model.observe(seen).without_history
    assert differ(model.observe(observation).without_history, video) == [True] * 3
    model.start_bodies_from_video()
    torch.testing.assert_close(model.observe(observation).without_history, video)


def test_every_camera_of_a_body_starts_as_the_one_that_video_has(make_model: MakeModel) -> None:
    model = make_model()
    views = [model.backbone.get_parameter(name) for name in ("keypoint_view", "grid_view")]
    before = [view.detach().clone() for view in views]
    model.start_bodies_from_video()
    for view, own in zip(views, before, strict=True):
        assert view.shape[1] == 2 and not torch.equal(own[-1, 0], own[-1, 1])
        for body in range(model.config.num_embodiments):
            for camera in range(2):
                assert torch.equal(view[body, camera], own[-1, 0])
        assert torch.equal(view[-1], own[-1])


def test_sight_is_what_differs_from_a_cameras_mean(make_model: MakeModel, observe: Observe) -> None:
    model = make_model()
    decoder, observation = model.decoder, observe(model.config)
    before, visual = sample(model, observation), model.look(observation)
    assert visual is not None
    decoder.standardize_sight(torch.zeros_like(decoder.visual_mean), torch.ones_like(decoder.visual_scale))
    torch.testing.assert_close(sample(model, observation), before)
    mean = torch.randn(decoder.visual_mean.shape, generator=torch.Generator().manual_seed(4))
    spread = torch.tensor([[2.0, 0.0], [0.5, 4.0]])
    decoder.standardize_sight(mean, spread)
    again = make_model()
    # What a model that standardizes sees equals what one that does not is shown standardized.
    own = spread.where(spread > 0, 1.0)[observation.embodiment][..., None, None]
    shown = (visual - mean[observation.embodiment]) / own
    told = model.context(observation, visual, None)
    torch.testing.assert_close(told.tokens, again.context(observation, shown, None).tokens)
    assert any(differ(sample(model, observation), before))


def test_folded_patches_keep_where_something_is() -> None:
    features = torch.zeros(1, 64, 2)
    features[0, 3 * 8 + 5, 1] = 1.0  # row 3, column 5 of 8 x 8
    folded = fold_patches(features)
    assert folded.shape == (1, 16, 8)
    # Row 1, column 2 of 4 x 4; there the lower right of the second channel's quarters.
    assert folded.nonzero().tolist() == [[0, 1 * 4 + 2, 4 + 3]]
    assert fold_patches(torch.randn(2, 256, 3)).shape == (2, 16, 12)
    assert fold_patches(torch.randn(2, 9, 3)).shape == (2, 9, 3)
    with pytest.raises(ValueError, match="5 patches, expected a square"):
        fold_patches(torch.zeros(1, 5, 2))


def test_a_config_without_intent_stays_what_it_was(
    toy_config: Callable[[str], ModelConfig], tokenizer: Tokenizer
) -> None:
    config = toy_config("convolutional")
    assert "intent" not in config.to_json()
    assert isinstance(build_model(config, tokenizer), VLA)
    with_intent = replace(config, intent=INTENT)
    assert ModelConfig.from_json(json.loads(json.dumps(with_intent.to_json()))) == with_intent
    assert isinstance(build_model(with_intent, tokenizer), IntentVLA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_codes": 1}, "3 tokens of 1 codes"),
        ({"use_intent": False, "visual": None}, "would be blind"),
        ({"eyes": 1}, r"intent has unknown keys \['eyes'\]"),
    ],
)
def test_an_intent_that_cannot_be_is_refused(
    toy_config: Callable[[str], ModelConfig], change: dict[str, object], message: str
) -> None:
    values = replace(toy_config("convolutional"), intent=INTENT).to_json()
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json({**values, "intent": {**values["intent"], **change}})


@pytest.fixture(scope="module")
def checkpoint(
    make_model: MakeModel,
    toy_specs: tuple[EmbodimentSpec, ...],
    make_toy_request: Callable[..., ChunkRequest],
    toy_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """On the bodies of the toy checkpoint, whose statistics it shares."""
    parts = read_checkpoint(toy_checkpoint)
    config = replace(parts.vla.config, intent=INTENT, max_inference_delay=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_intent_vla(config, parts.tokenizer)
        torch.nn.init.normal_(model.decoder.velocity_out.weight, std=0.3)
    policy = Policy(vla=model, specs=parts.specs, statistics=parts.statistics, manifest={}, revision="")
    requests = [
        replace(make_toy_request(spec, seed=7, num_history_steps=2), num_inference_steps=2) for spec in toy_specs
    ]
    directory = tmp_path_factory.mktemp("intent") / "checkpoint"
    write_checkpoint(
        directory,
        vla=model,
        specs=parts.specs,
        statistics=parts.statistics,
        probe=list(zip(requests, policy.predict_chunk(requests), strict=True)),
        manifest={"variant": "video-prior"},
    )
    return directory


def test_a_checkpoint_brings_its_eyes_and_proves_itself(
    checkpoint: Path, make_toy_request: Callable[..., ChunkRequest], toy_specs: tuple[EmbodimentSpec, ...]
) -> None:
    policy = Policy.from_checkpoint(checkpoint)
    assert any(name.startswith("eyes.") for name in load_file(checkpoint / "model.safetensors"))
    batch = [make_toy_request(spec, seed=seed, num_history_steps=seed) for seed in range(3) for spec in toy_specs]
    chunking = RealTimeChunking(
        previous_actions=torch.zeros(3, 3), inference_delay=1, execution_horizon=1, method="prefix"
    )
    batch += [
        replace(batch[0], real_time_chunking=chunking),
        replace(batch[0], real_time_chunking=replace(chunking, method="guidance")),
    ]
    for request, chunk in zip(batch, policy.predict_chunk(batch), strict=True):
        torch.testing.assert_close(policy.predict_chunk([request])[0], chunk, atol=1e-5, rtol=1e-5)


def test_eyes_that_cannot_be_built_are_named(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    changed = (copy / "config.json").read_text().replace('"patch": 4', '"patch": 5')
    (copy / "config.json").write_text(changed)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["config.json"] = {
        "sha256": hashlib.sha256(changed.encode()).hexdigest(),
        "num_bytes": len(changed.encode()),
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"config\.json: visual\.image_size 16 is not a multiple of patch 5"):
        Policy.from_checkpoint(copy)
