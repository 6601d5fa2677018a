"""Writes a checkpoint of random weights of another size for the bodies of a given one: what a size costs untrained.

Owns the command alone (service/bench/untrained.py writes).
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--size", choices=("tiny", "small"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    from service.bench.untrained import write_untrained

    write_untrained(arguments.checkpoint, arguments.size, arguments.out)


if __name__ == "__main__":
    main()
