"""One training loop for both stages: schedule, clipping, averaging of weights, logs, and exact resume.

Everything random is a function of (seed, step), so a run that is killed and resumed sees the same batches and noise and
prints the same losses. Owns the training state on disk: one safetensors file of weights, moments and averages, so that
not even a resume runs foreign code, and that holds whole tensors, so that any number of processes may resume it. Knows
no model: a stage hands it modules, batches and a loss.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from policy.bounds import check_number, check_positive, check_whole
from policy.durable import rename_durably
from training.json_file import read_lines, write_json, write_text
from training.parallel import ALONE, Processes
from training.prefetch import Prefetch
from training.time_spent import time_of_log

_Batch = TypeVar("_Batch")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up to `learning_rate`, then cosine to `final_fraction` of it."""

    num_steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_fraction: float = 0.02
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    save_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 0), ("warmup_steps", 0), ("save_every", 1), ("log_every", 1)):
            check_whole(f"schedule.{name}", getattr(self, name), least)
        for name in ("learning_rate", "clip_norm"):
            check_positive(f"schedule.{name}", getattr(self, name))
        check_number("schedule.weight_decay", self.weight_decay, 0)
        for name in ("final_fraction", "ema_decay"):
            check_number(f"schedule.{name}", getattr(self, name), 0, 1)

    def rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)


class AveragedWeights:
    """Exponential moving average of a module's parameters that train; early steps average over fewer."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._module = module
        self.values = {name: value.detach().clone() for name, value in _training(module)}

    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        current = [value.detach() for _, value in _training(self._module)]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def copy_to(self, module: nn.Module) -> None:
        with torch.no_grad():
            for name, value in _training(module):
                value.copy_(self.values[name])


class MetricsLog:
    """`metrics.jsonl` always, TensorBoard where installed, progress on stderr. Resuming drops lines past its step."""

    def __init__(self, directory: Path, first_step: int) -> None:
        path = directory / "metrics.jsonl"
        kept = [row for row in read_lines(path) if row["step"] < first_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file: TextIO = path.open("a")
        self._board = _tensorboard(directory, first_step)

    def write(self, step: int, values: Mapping[str, float], num_steps: int) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"step {step}/{num_steps}  {shown}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def run(
    *,
    directory: Path,
    modules: nn.ModuleDict,
    averaged: str,
    schedule: Schedule,
    seed: int,
    batch: Callable[[int], _Batch],
    loss: Callable[[int, _Batch, torch.Generator], Mapping[str, Tensor]],
    identity: Mapping[str, Any],
    device: torch.device | str = "cpu",
    autocast: bool = False,
    until: int | None = None,
    processes: Processes = ALONE,
    rate_scales: Mapping[str, float] | None = None,
) -> AveragedWeights:
    """Train `modules` from where `directory` stopped, to the end or to step `until`; past that it only reads.

    `batch` makes a step's rows of this process, in another thread; `loss` gets them with the step and a generator. The
    module named `averaged` has its weights averaged; they are returned, sharded if `processes` shards. `identity`
    describes the run (recipe, data); resuming with another one is refused. `rate_scales` has a factor of the learning
    rate for parameters by the prefix of their names. A parameter that needs no gradient is neither trained nor saved.
    Raises FloatingPointError when the loss or a weight is no longer finite: what was saved before stays.
    """
    if processes.writes:
        directory.mkdir(parents=True, exist_ok=True)
        _check_identity(directory, {**identity, "schedule": asdict(schedule), "seed": seed})
    processes.wait()
    objective = processes.share(modules, loss)
    optimizer = torch.optim.AdamW(
        _groups(modules, rate_scales or {}),
        lr=schedule.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=schedule.weight_decay,
    )
    ema = AveragedWeights(modules[averaged], schedule.ema_decay)
    first_step = restore(directory, modules, optimizer, ema, processes)
    processes.check_same("first step", first_step, device)
    last_step = schedule.num_steps if until is None else min(until, schedule.num_steps)
    modules.train()
    if first_step >= last_step:
        return ema  # and no log is opened: others that share what is trained may be here too
    log = MetricsLog(directory, first_step) if processes.writes else None
    generator = torch.Generator(device=device)
    with closing(log) if log else nullcontext(), Prefetch(batch, first=first_step, last=last_step) as batches:
        logged_at, seen, waited_s = time.monotonic(), 0, 0.0
        for step in range(first_step, last_step):
            rows = batches.take(step)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step) * group["rate_scale"]
            generator.manual_seed(step_seed(seed, step))
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
                losses = objective(step, rows, generator)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            norm = nn.utils.clip_grad_norm_(modules.parameters(), schedule.clip_norm)
            optimizer.step()
            ema.update(step)
            seen += 1
            logs = step % schedule.log_every == 0 or step + 1 == last_step
            saves = (step + 1) % schedule.save_every == 0 or step + 1 == last_step
            if not (logs or saves):
                continue
            values = processes.average(losses)
            if not math.isfinite(values["loss"]):
                raise _diverged(directory, step, f"loss is {values['loss']}")
            if logs:
                seconds = time.monotonic() - logged_at
                measured = {"gradient_norm": processes.full(norm).item(), "learning_rate": schedule.rate(step)}
                speed = {"steps_per_s": seen / seconds, "seconds": seconds}
                waiting = {"loader_seconds": batches.waited_s - waited_s}
                if log is not None:
                    log.write(step, {**values, **measured, **speed, **waiting}, schedule.num_steps)
                logged_at, seen, waited_s = time.monotonic(), 0, batches.waited_s
            if saves:
                save(directory, step + 1, modules, optimizer, ema, processes)
    return ema


def _groups(modules: nn.Module, rate_scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The optimizer's groups: what trains, by the factor of its learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in _training(modules):
        scale = next((scale for prefix, scale in rate_scales.items() if name.startswith(prefix)), 1.0)
        groups.setdefault(scale, []).append(parameter)
    return [{"params": parameters, "rate_scale": scale} for scale, parameters in groups.items()]


def _training(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def _frozen(module: nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if not value.requires_grad}


def step_seed(seed: int, step: int) -> int:
    """One seed per (seed, step); a fixed mix, so that runs with near seeds share no noise."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    mixed ^= mixed >> 31
    return mixed % 2**63


def save(
    directory: Path,
    step: int,
    modules: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    ema: AveragedWeights,
    processes: Processes = ALONE,
) -> None:
    """Write `state/step_NNNNNNNN.safetensors` beside the old one, point `state/latest` at it, then drop the old.

    Leaves the old one where it raises: OSError for a state that cannot be written, FloatingPointError for one that is
    not finite, as a step may spoil the weights while its own loss, which was computed before, is a number.
    """
    whole: dict[str, Tensor] = {}
    for name, value in _state(modules, optimizer, ema).items():
        gathered = processes.full(value.detach())
        # In every process, which all hold the same: one that went on alone would wait for the others.
        if not torch.isfinite(gathered).all():
            raise _diverged(directory, step - 1, f"{name} holds NaN or infinity")
        if processes.writes:
            whole[name] = gathered.cpu().contiguous()
    if processes.writes:
        _write_state(directory / "state", step, whole)
    processes.wait()


def _state(modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, ema: AveragedWeights) -> dict[str, Tensor]:
    frozen = _frozen(modules)
    tensors = {f"weights/{name}": value for name, value in modules.state_dict().items() if name not in frozen}
    tensors |= {f"averaged/{name}": value for name, value in ema.values.items()}
    for name, parameter in modules.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value
    return tensors


def _write_state(state_root: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    state_root.mkdir(exist_ok=True)
    target = state_root / f"step_{step:08d}.safetensors"
    staged = target.with_suffix(".tmp")
    try:
        save_file(dict(tensors), staged, {"step": str(step)})
    except SafetensorError as error:  # which is no OSError, though a full disk is what it says
        raise OSError(f"{target} cannot be written: {error}") from None
    rename_durably(staged, target)
    write_text(state_root / "latest", target.name)
    for old in state_root.glob("step_*"):
        if old != target:
            old.unlink()


def restore(
    directory: Path,
    modules: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    ema: AveragedWeights,
    processes: Processes = ALONE,
) -> int:
    """The step to go on from: 0 when nothing was saved. Raises as saved_step does."""
    path = _latest(directory)
    if path is None:
        return 0
    with _opened(path) as file:
        step = int(file.metadata()["step"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    weights = modules.state_dict()
    kept = {name: weights[name] for name in _frozen(modules)}
    saved = {name: processes.placed_like(weights[name], value) for name, value in _under("weights/", tensors).items()}
    modules.load_state_dict(kept | saved)
    for name, value in _under("averaged/", tensors).items():
        ema.values[name].copy_(processes.placed_like(ema.values[name], value))
    parameters = dict(modules.named_parameters())
    for name, value in _under("optimizer/", tensors).items():
        key, parameter_name = name.split("/", 1)
        parameter = parameters[parameter_name]
        # AdamW keeps its step counter on the CPU and the moments beside the weights.
        optimizer.state[parameter][key] = value if key == "step" else processes.placed_like(parameter, value)
    return step


def saved_step(directory: Path) -> int:
    """The step that a resumed run goes on from: 0 when nothing was saved.

    Raises OSError for a training state that is not there or not whole.
    """
    path = _latest(directory)
    if path is None:
        return 0
    with _opened(path) as file:
        return int(file.metadata()["step"])


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"training state {path} cannot be read: {error}; bring it back, or delete {path.parent} to train anew"
        ) from None


def _latest(directory: Path) -> Path | None:
    pointer = directory / "state" / "latest"
    return directory / "state" / pointer.read_text().strip() if pointer.exists() else None


def _diverged(directory: Path, step: int, what: str) -> FloatingPointError:
    return FloatingPointError(
        f"{what} at step {step} and is not saved: a resume goes on from step {saved_step(directory)}, with the same "
        "batches and noise. Check the data; another learning rate is another run, and needs another --run"
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_identity(directory: Path, identity: Mapping[str, Any]) -> None:
    path = directory / "run.json"
    wanted = json.loads(json.dumps(identity))
    if not path.exists():
        write_json(path, wanted)
        return
    found = json.loads(path.read_text())
    different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if different:
        raise ValueError(
            f"{directory} holds another run: {', '.join(different)} differ; choose another directory or delete it"
        )


def _tensorboard(directory: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)


def seconds_spent(directory: Path) -> float:
    """Wall-clock seconds of all sittings of a run so far, by its log, without what the machine stood still."""
    return time_of_log(directory / "metrics.jsonl").seconds
