"""`make torture`: real daemons that are killed, stopped, damaged and short of disk for an hour, while clients read.

python -m tests.torture [--seed N] [--duration 1h] [--rounds N]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from p2p.config import format_duration, parse_duration
from tests.torture.field import Score, torture


def summary(score: Score) -> str:
    """Return the score as lines of text."""
    counts = {"seconds": round(score.seconds), **score.done, **score.bad}
    lines = [f"{name:32}{count:>16,}" for name, count in sorted(counts.items(), key=lambda item: item[0] in score.bad)]
    return "\n".join([f"seed {score.seed}", *lines, *score.stories[:50]])


def main() -> int:
    """Torture a cluster, say what came of it, and return 1 unless it is flawless."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description="Torture a cluster.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="to see a run again")
    parser.add_argument("--duration", type=parse_duration, default=3600.0, help="for example 10m (default: an hour)")
    parser.add_argument("--rounds", type=int, help="end after so many kills of peers")
    chosen = parser.parse_args()
    length = format_duration(chosen.duration)
    print(f"seed {chosen.seed}, for {length}; again: make torture SEED={chosen.seed} DURATION={length}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="damselfly-torture-"))
    print(f"data and logs: {directory}", flush=True)
    score = torture(directory, seed=chosen.seed, seconds=chosen.duration, rounds=chosen.rounds)
    print(summary(score))
    return 0 if score.flawless else 1


if __name__ == "__main__":
    raise SystemExit(main())
