"""`make fuzz`: hostile conversations without end, a seed a round; a failure prints its input and how to see it again.

python -m tests.fuzz [--seed N] [--rounds N] [--examples N]
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz.clock import VirtualLoop
from tests.fuzz.field import Field, field
from tests.fuzz.grammar import Case, cases

_GROWTH_BYTES = 64 * 1024 * 1024
"""How far anonymous memory may grow after the first round, whose caches fill."""


def _round(number: int, examples: int) -> None:
    """Run one seed's examples against a proxy of their own; raises what the first failing one raised, shrunk."""
    loop = VirtualLoop()
    stack = AsyncExitStack()

    async def start() -> Field:
        return await stack.enter_async_context(field(loop))

    async def finish() -> None:
        await found.settled()
        await stack.aclose()

    found = loop.run_until_complete(start())

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def hostile(case: Case) -> None:
        loop.run_until_complete(found.check(case))

    hostile()
    loop.run_until_complete(finish())
    loop.close()


def _rss_anon_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main() -> int:
    """Run rounds until told to stop (Ctrl-C), or `--rounds` of them; return 1 after a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the proxy's front.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="of the first round")
    parser.add_argument("--rounds", type=int, default=0, help="how many; 0 goes on until Ctrl-C")
    parser.add_argument("--examples", type=int, default=300, help="inputs a round")
    options = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("peer.proxy.parser").propagate = False
    first = 0
    rounds = itertools.count(options.seed) if not options.rounds else range(options.seed, options.seed + options.rounds)
    try:
        for number in rounds:
            started = time.monotonic()
            try:
                _round(number, options.examples)
            except Exception:  # whatever it is, it is what was looked for
                logging.getLogger(__name__).exception("seed %d failed", number)
                print(f"again: python -m tests.fuzz --seed {number} --rounds 1 --examples {options.examples}")
                return 1
            memory = _rss_anon_bytes()
            first = first or memory
            rate = options.examples / (time.monotonic() - started)
            print(
                f"seed {number}: {options.examples} inputs, {rate:.0f}/s, RssAnon {memory / 2**20:.1f} MiB", flush=True
            )
            if memory > first + _GROWTH_BYTES:
                print(f"memory has grown by {(memory - first) / 2**20:.1f} MiB since the first round")
                return 1
    except KeyboardInterrupt:
        print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
