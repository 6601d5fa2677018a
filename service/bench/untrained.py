"""A checkpoint of random weights for the bodies of a given one: what a size costs untrained, or another answer.

Owns nothing that is kept. Imports torch, and so only inside a bench that measures the model in its own process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from policy.checkpoint import load_probe, read_checkpoint, write_checkpoint
from policy.policy import Policy
from policy.sizes import SIZES
from policy.vla import build_vla


def write_untrained(checkpoint: Path, size: Literal["tiny", "small"] | None, directory: Path) -> None:
    """Writes it to `directory`, with the checkpoint's tokenizer, statistics and probe requests; None keeps its size."""
    parts = read_checkpoint(checkpoint)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = SIZES[size](parts.specs, parts.tokenizer.get_vocab_size()) if size else parts.vla.config
        vla = build_vla(config, parts.tokenizer)
        # The decoder starts at zero velocity; chunks must still depend on what is asked.
        torch.nn.init.normal_(vla.prior.decoder.velocity_out.weight, std=0.1)
    policy = Policy(vla=vla, specs=parts.specs, statistics=parts.statistics, manifest={}, revision="")
    requests = [request for request, _ in load_probe(checkpoint)]
    write_checkpoint(
        directory,
        vla=vla,
        specs=parts.specs,
        statistics=parts.statistics,
        probe=list(zip(requests, policy.predict_chunk(requests), strict=True)),
        manifest={"method": "none", "variant": "history", "data": {}, "training": {}, "metrics": {}, "git_commit": ""},
    )
