"""The processes that train one model together: one, or as many as torchrun starts.

A step's batch, noise and losses are those of the whole batch however many processes share it: each holds every n-th
row, draws what is random for all rows and keeps its own, and divides by counts of all. So the number of processes and
the way they share a model (DDP copies it, FSDP2 shards it) change no loss, and a run may go on with another. Owns the
process group; knows no model, and writes no file.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from policy.flow import masked_mean

Sharing = Literal["ddp", "fsdp"]
_Module = TypeVar("_Module", bound=nn.Module)

# Packing a large dataset keeps the other processes waiting for the first one.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together; `ALONE` without torchrun.

    Every method but `rows` and `writes` is called by all of them at the same point, or they wait for one another.
    """

    rank: int = 0
    world_size: int = 1
    sharing: Sharing | None = None  # None: one process, nothing shared

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and results."""
        return self.rank == 0

    def rows(self, whole: Tensor, dim: int = 0) -> Tensor:
        """This process's rows of what was made for the whole batch, as the sampler hands out samples."""
        if self.world_size == 1:
            return whole
        return whole.index_select(dim, torch.arange(self.rank, whole.shape[dim], self.world_size, device=whole.device))

    def mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """This process's part of the mean over the whole batch's real entries: the parts' average is that mean."""
        if self.world_size == 1:
            return masked_mean(values, mask)
        count = mask.sum()
        dist.all_reduce(count)
        return torch.where(mask, values, 0).sum() * self.world_size / count.clamp(min=1)

    def average(self, parts: Mapping[str, Tensor]) -> dict[str, float]:
        """Each value averaged over processes, as a number."""
        if self.world_size == 1:
            return {name: value.item() for name, value in parts.items()}
        stacked = torch.stack([value.detach().double() for value in parts.values()])
        dist.all_reduce(stacked)
        return dict(zip(parts, (stacked / self.world_size).tolist(), strict=True))

    def share(self, modules: nn.ModuleDict, loss: Callable[..., Mapping[str, Tensor]]) -> Callable[..., Any]:
        """`loss`, such that its gradients are those of the whole batch; shards `modules` in place under FSDP2."""
        if self.sharing is None:
            return loss
        objective = _Objective(modules, loss)
        if self.sharing == "ddp":
            # Without history or distillation some steps leave the encoder out.
            return nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # takes a second to import; only this kind pays

        mesh = init_device_mesh(next(modules.parameters()).device.type, (self.world_size,))
        for block in _blocks(modules):
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective

    def whole(self, module: _Module, build: Callable[[], _Module]) -> _Module:
        """`module`, or where it is sharded one that `build` makes with its weights: only training knows shards."""
        if self.sharing != "fsdp":
            return module
        weights = {name: self.full(value) for name, value in module.state_dict().items()}
        fresh = build()
        fresh.load_state_dict(weights)
        return fresh

    def full(self, value: Tensor) -> Tensor:
        """A sharded tensor gathered, any other as it is."""
        if self.sharing != "fsdp":
            return value
        from torch.distributed.tensor import DTensor

        return value.full_tensor() if isinstance(value, DTensor) else value

    def placed_like(self, reference: Tensor, value: Tensor) -> Tensor:
        """`value`, which every process holds in full, on the device of `reference` and sharded as it is."""
        value = value.to(reference.device)
        if self.sharing != "fsdp":
            return value
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(reference, DTensor):
            return value
        return distribute_tensor(value, reference.device_mesh, reference.placements, src_data_rank=None)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def first_writes(self) -> Iterator[None]:
        """The block runs in the process that writes, then in the others, which find its files."""
        if not self.writes:
            self.wait()
        yield
        if self.writes:
            self.wait()

    def check_same(self, what: str, value: int, device: torch.device | str) -> None:
        """Raises ValueError when processes disagree, as they do when one cannot read what another wrote."""
        if self.world_size == 1:
            return
        bounds = torch.tensor([value, -value], device=device)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        highest, lowest = bounds[0].item(), -bounds[1].item()
        if highest != lowest:
            raise ValueError(
                f"{what} is {lowest} to {highest} over {self.world_size} processes, expected one value; "
                "do all of them see the same run directory?"
            )


ALONE = Processes()


class _Objective(nn.Module):
    """A loss as a module's forward: what DDP and FSDP2 act around."""

    def __init__(self, modules: nn.ModuleDict, loss: Callable[..., Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.trained = modules
        self._loss = loss

    def forward(self, *arguments: Any) -> Mapping[str, Tensor]:
        return self._loss(*arguments)


def _blocks(modules: nn.Module) -> list[nn.Module]:
    """The layers of every stack, inner ones first: what FSDP2 gathers one at a time."""
    stacks = [module for module in modules.modules() if isinstance(module, nn.ModuleList)]
    return [block for stack in reversed(stacks) for block in stack]


@contextmanager
def processes(sharing: Sharing, device: str) -> Iterator[tuple[Processes, str]]:
    """The processes that torchrun started, and this one's device; alone on `device` where it started none."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE, device
        return
    accelerated = torch.device(device).type == "cuda"
    if accelerated:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if accelerated else "gloo", timeout=_PATIENCE, device_id=torch.device(device) if accelerated else None
    )
    try:
        yield Processes(rank=dist.get_rank(), world_size=dist.get_world_size(), sharing=sharing), device
        # A process that leaves while another still holds shards may abort it.
        gc.collect()
        dist.barrier()
    finally:
        dist.destroy_process_group()
