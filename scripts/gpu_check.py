"""Serves a checkpoint on a GPU, in process and through Triton, and prints what a chunk costs there.

`python scripts/gpu_check.py CHECKPOINT [--json FILE]`: bare forward and round trip, fp32 and bf16, batches and robots
of 1 and 8. Each service compares its values with the checkpoint's probe before it counts as ready. `--device cpu` runs
the same where there is no GPU. Knows the service by its command line alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--iterations", type=int, default=200, help="timed calls of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    command = [
        *(sys.executable, "-m", "service", "bench", "device", "--policy", str(options.checkpoint)),
        *("--device", options.device, "--iterations", str(options.iterations)),
        *(() if options.json is None else ("--json", str(options.json))),
    ]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
