"""How a revision runs, whichever backend runs it: device, precision, threads, batches. Owns these numbers' sanity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BackendKind = Literal["triton", "local"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The same for every revision of a service."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"
    # torch's intra-op threads.
    threads: int = 1
    batching: bool = True
    max_batch_size: int = 8
    # How long Triton holds a request back for company; 0 only joins what waits while a batch runs. In process it is
    # always 0.
    max_queue_delay_us: int = 0
    # Gateway processes that give it requests, each without knowing of the others'.
    num_gateways: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1 or self.max_batch_size < 1:
            raise ValueError(
                f"threads is {self.threads} and max_batch_size {self.max_batch_size}, expected at least 1 of each"
            )
        if self.num_gateways < 1:
            raise ValueError(f"num_gateways is {self.num_gateways}, expected at least 1")
        if self.max_queue_delay_us < 0:
            raise ValueError(f"max_queue_delay_us is {self.max_queue_delay_us}, expected 0 or more")

    @property
    def largest_batch(self) -> int:
        """Most requests that run together."""
        return self.max_batch_size if self.batching else 1

    @property
    def capacity(self) -> int:
        """Requests of a revision that its backend is given at a time: what runs now and what forms the next batch.

        What is inside Triton can no longer be superseded nor put in order, so of several gateways each gives one batch.
        """
        return self.largest_batch * (2 if self.num_gateways == 1 else 1)


def openmp_environment(threads: int) -> dict[str, str]:
    """What OpenMP must find in the environment before torch is imported.

    Threads that spin at a barrier beside a busy neighbour cost many times the work itself: 6 s against 0.1 s, measured.
    """
    return {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}
