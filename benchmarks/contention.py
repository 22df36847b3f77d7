"""How many tries publishers need who come at the same moment, by the pauses of sagewheels/store/contention.py.

    python benchmarks/contention.py [--publishers 1,8,32,100] [--runs 30]

Simulated, without waiting: a Hub whose commit takes 1 to 2 s and holds the branch (409 to others), which refuses stale
parents (412), and shows a new commit to readers up to 2 s late. A try reads for 0.5 s and prepares for 0.6 s; the first
one uploads the wheel for 1 s.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sagewheels.store import contention

_READ, _PREPARE, _UPLOAD, _REFUSAL = 0.5, 0.6, 1.0, 0.1
_COMMIT, _LAG = (1.0, 2.0), 2.0


def simulate(publishers: int) -> tuple[list[int], float]:
    """The tries of each publisher, and the seconds until the last one is done."""
    events = [(random.uniform(0.01, 1.0), one, -1) for one in range(publishers)]
    heapq.heapify(events)
    tries, head, free = [0] * publishers, 0, 0.0
    shown = [(0.0, 0)]
    while events:
        now, one, parent = heapq.heappop(events)
        if parent < 0:
            tries[one] += 1
            seen = max(number for moment, number in shown if moment <= now + _READ)
            ready = now + _READ + _PREPARE + (_UPLOAD if tries[one] == 1 else 0)
            heapq.heappush(events, (ready, one, seen))
        elif now < free or parent != head:
            heapq.heappush(events, (now + _REFUSAL + contention.wait_after(tries[one]), one, -1))
        else:
            head, free = head + 1, now + random.uniform(*_COMMIT)
            shown.append((free + random.uniform(0.01, _LAG), head))
    return tries, free


def main(publishers: str, runs: int) -> None:
    """One row for each number of publishers."""
    print("| publishers | tries, mean | 99 % | most | the last is done after | lost after", contention.TRIES, "tries |")
    print("|---|---|---|---|---|---|")
    for number in map(int, publishers.split(",")):
        random.seed(number)
        found = [simulate(number) for _ in range(runs)]
        tries = sorted(one for run, _ in found for one in run)
        lost = sum(one > contention.TRIES for one in tries)
        row = [number, f"{statistics.mean(tries):.1f}", tries[int(len(tries) * 0.99)], tries[-1]]
        print("|", *(f"{cell} |" for cell in (*row, f"{statistics.mean(end for _, end in found):.0f} s", lost)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publishers", default="1,8,32,100")
    parser.add_argument("--runs", type=int, default=30)
    main(**vars(parser.parse_args()))
