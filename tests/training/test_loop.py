"""The loop alone, on a model of five weights: what it computes, what it saves, and what it never saves."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import training.loop
from training.loop import AveragedWeights, Schedule, run, saved_step, step_seed

SCHEDULE = Schedule(num_steps=12, warmup_steps=2, save_every=3, log_every=5)
SEED = 4
Loss = Callable[[int, Tensor, torch.Generator], Mapping[str, Tensor]]


def model() -> nn.ModuleDict:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleDict({"line": nn.Linear(4, 1)})


def rows_of(step: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(step))


def loss_of(modules: nn.ModuleDict) -> Loss:
    def loss(step: int, rows: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        noise = torch.randn(len(rows), 1, generator=generator)
        return {"loss": (modules["line"](rows) - rows.sum(1, keepdim=True) - 0.1 * noise).square().mean()}

    return loss


def train(directory: Path, *, spoil: Callable[[int, nn.ModuleDict, Tensor], Tensor] | None = None) -> nn.ModuleDict:
    """The trained weights. `spoil` changes the loss of a step."""
    modules = model()
    clean = loss_of(modules)

    def loss(step: int, rows: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        value = clean(step, rows, generator)["loss"]
        return {"loss": value if spoil is None else spoil(step, modules, value)}

    run(
        directory=directory, modules=modules, averaged="line", schedule=SCHEDULE, seed=SEED, batch=rows_of, loss=loss,
        identity={"name": "line"},
    )  # fmt: skip
    return modules


def state_of(directory: Path) -> dict[str, Tensor]:
    (path,) = (directory / "state").glob("*.safetensors")
    return load_file(path)


def test_the_rate_warms_up_in_a_line_and_falls_by_a_cosine_to_its_last_fraction() -> None:
    schedule = Schedule(num_steps=110, learning_rate=2e-3, warmup_steps=10, final_fraction=0.1)
    assert [schedule.rate(step) for step in (0, 4, 9)] == pytest.approx([2e-4, 1e-3, 2e-3])
    # At a quarter, a half and the whole of the way down, and past it.
    for step, cosine in ((10, 1.0), (35, math.cos(math.pi / 4)), (60, 0.0), (110, -1.0), (500, -1.0)):
        assert schedule.rate(step) == pytest.approx(2e-3 * (0.1 + 0.9 * (1 + cosine) / 2)), step
    rising_only = replace(schedule, num_steps=5)
    assert [rising_only.rate(step) for step in range(5)] == [schedule.rate(step) for step in range(5)]


def test_weights_are_averaged_over_few_steps_at_first_and_by_the_decay_later() -> None:
    modules = model()
    weights, bias = modules.parameters()
    bias.requires_grad_(False)
    averaged = AveragedWeights(modules["line"], decay=0.5)
    assert averaged.values.keys() == {"weight"}, "what does not train is not averaged"
    start, decays = weights.detach().clone(), {0: 1 / 10, 1: 2 / 11, 2: 3 / 12, 1000: 0.5}
    expected = start
    for step, decay in decays.items():
        with torch.no_grad():
            weights.copy_(start + step + 1)
        averaged.update(step)
        expected = decay * expected + (1 - decay) * weights.detach()
        torch.testing.assert_close(averaged.values["weight"], expected)
    averaged.copy_to(modules["line"])
    torch.testing.assert_close(weights.detach(), expected)


class PlainTraining:
    """The same training written down once more, without files: what `run` must compute, bit for bit."""

    def __init__(self) -> None:
        self.modules = model()
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), lr=SCHEDULE.learning_rate, betas=(0.9, 0.95), weight_decay=SCHEDULE.weight_decay
        )
        self.averaged = AveragedWeights(self.modules["line"], SCHEDULE.ema_decay)
        self._loss = loss_of(self.modules)

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            for group in self.optimizer.param_groups:
                group["lr"] = SCHEDULE.rate(step)
            loss = self._loss(step, rows_of(step), torch.Generator().manual_seed(step_seed(SEED, step)))["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), SCHEDULE.clip_norm)
            self.optimizer.step()
            self.averaged.update(step)

    def state(self) -> dict[str, Tensor]:
        """As it lies on disk."""
        tensors = {f"weights/{name}": value.clone() for name, value in self.modules.state_dict().items()}
        tensors |= {f"averaged/{name}": value.clone() for name, value in self.averaged.values.items()}
        for name, parameter in self.modules.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{key}/{name}"] = value.clone()
        return tensors


def test_a_run_that_was_begun_elsewhere_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """The form of a state on disk and every number of a step: a run in progress must not notice new code."""
    plain = PlainTraining()
    plain.steps(0, 6)
    (tmp_path / "state").mkdir()
    save_file(plain.state(), tmp_path / "state" / "step_00000006.safetensors", {"step": "6"})
    (tmp_path / "state" / "latest").write_text("step_00000006.safetensors")
    assert saved_step(tmp_path) == 6
    train(tmp_path)
    plain.steps(6, SCHEDULE.num_steps)
    found, expected = state_of(tmp_path), plain.state()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def at_step(step: int, spoiled: Callable[[nn.ModuleDict, Tensor], Tensor]) -> Any:
    return lambda now, modules, value: spoiled(modules, value) if now == step else value


def nan_loss(_modules: nn.ModuleDict, value: Tensor) -> Tensor:
    return value * torch.nan


def nan_gradient(modules: nn.ModuleDict, value: Tensor) -> Tensor:
    """The same value, for the root of zero is zero, and a gradient of zero times infinity."""
    return value + sum((weights * 0).sqrt().sum() for weights in modules.parameters())


# States are saved after steps 2, 5, 8 and 11; lines are written at 0, 5, 10 and 11.
@pytest.mark.parametrize(
    ("step", "spoiled", "said"),
    [
        (6, nan_loss, "loss is nan at step 8"),
        (8, nan_loss, "loss is nan at step 8"),
        (8, nan_gradient, "weights/line.weight holds NaN or infinity at step 8"),
        (9, nan_gradient, "loss is nan at step 10"),
    ],
)
def test_nothing_that_is_not_finite_is_saved_and_the_error_says_where_a_resume_goes_on(
    tmp_path: Path, step: int, spoiled: Callable[[nn.ModuleDict, Tensor], Tensor], said: str
) -> None:
    expected_step = step // SCHEDULE.save_every * SCHEDULE.save_every
    with pytest.raises(FloatingPointError) as raised:
        train(tmp_path / "run", spoil=at_step(step, spoiled))
    message = str(raised.value)
    assert message.startswith(f"{said} and is not saved: a resume goes on from step {expected_step}, ")
    assert "another learning rate is another run, and needs another --run" in message
    assert saved_step(tmp_path / "run") == expected_step
    assert all(torch.isfinite(value).all() for value in state_of(tmp_path / "run").values())
    train(tmp_path / "run")
    train(tmp_path / "unbroken")
    for name, value in state_of(tmp_path / "unbroken").items():
        assert torch.equal(state_of(tmp_path / "run")[name], value), name


def test_a_run_that_breaks_before_it_saved_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 0 .* goes on from step 0,"):
        train(tmp_path, spoil=at_step(0, nan_loss))
    assert not (tmp_path / "state").exists()


def test_another_learning_rate_is_refused_in_the_same_directory(tmp_path: Path) -> None:
    train(tmp_path)
    identity = json.loads((tmp_path / "run.json").read_text())
    identity["schedule"]["learning_rate"] /= 2
    (tmp_path / "run.json").write_text(json.dumps(identity))
    with pytest.raises(ValueError, match="schedule differ; choose another directory"):
        train(tmp_path)


def test_a_line_that_a_full_disk_cut_in_half_is_written_again(tmp_path: Path) -> None:
    train(tmp_path / "unbroken")
    with pytest.raises(FloatingPointError):
        train(tmp_path / "run", spoil=at_step(9, nan_loss))
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 8, "loss": 0.1, "gradi')
    train(tmp_path / "run")
    written = [json.loads(line) for line in log.read_text().splitlines()]
    unbroken = [json.loads(line) for line in (tmp_path / "unbroken" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in written] == [(row["step"], row["loss"]) for row in unbroken]


class KilledError(Exception):
    pass


def test_a_kill_in_the_middle_of_a_save_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.loop.save_file

    def dies(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        real(tensors, path, metadata)
        if metadata["step"] == "9":
            path.write_bytes(path.read_bytes()[:100])
            raise KilledError

    monkeypatch.setattr(training.loop, "save_file", dies)
    with pytest.raises(KilledError):
        train(tmp_path / "killed")
    monkeypatch.setattr(training.loop, "save_file", real)
    assert saved_step(tmp_path / "killed") == 6
    train(tmp_path / "killed")
    train(tmp_path / "unbroken")
    for name, value in state_of(tmp_path / "unbroken").items():
        assert torch.equal(state_of(tmp_path / "killed")[name], value), name
    assert not list((tmp_path / "killed" / "state").glob("*.tmp"))


def test_a_state_that_does_not_fit_on_the_disk_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 if metadata["step"] == "6" else soft, hard))
        try:
            save_file(tensors, path, metadata)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(training.loop, "save_file", fills)
    # The limit is the whole process's, and TensorBoard writes from a thread of its own.
    monkeypatch.setattr(training.loop, "_tensorboard", lambda *_: None)
    with pytest.raises(OSError, match=r"step_00000006.safetensors cannot be written: .*File too large"):
        train(tmp_path)
    assert saved_step(tmp_path) == 3
    (left,) = (tmp_path / "state").glob("step_*")
    assert left.name == "step_00000003.safetensors"


@pytest.mark.parametrize("damage", ["cut", "deleted"])
def test_a_training_state_that_is_not_whole_is_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    train(tmp_path)
    (path,) = (tmp_path / "state").glob("*.safetensors")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.unlink()
    for read in (train, saved_step):
        with pytest.raises(OSError, match=rf"training state {path} cannot be read: .* delete {path.parent} to train"):
            read(tmp_path)
