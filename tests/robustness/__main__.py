"""Long rounds of the robustness campaigns; docs/RELIABILITY.md has their results.

Examples:
  python -m tests.robustness --count 250
  python -m tests.robustness damages --count 5000
  python -m tests.robustness kills --count 100
  python -m tests.robustness long --count 2000
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from detr_d2.engine import keep_freed_memory
from tests.robustness.campaign import Campaign, cases
from tests.robustness.damages import damage
from tests.robustness.kills import TASKS, KillCampaign
from tests.robustness.long_runs import POINTS, RUNS, Usage, growth


def bad_inputs(folder: Path, args: argparse.Namespace) -> Iterator[list[str]]:
    """Run commands on bad inputs; yield the problems of each."""
    campaign = Campaign(folder)
    for case in cases(args.count, args.seed):
        yield [f"{case}: {x}" for x in campaign.problems(case)]


def damages(folder: Path, args: argparse.Namespace) -> Iterator[list[str]]:
    """Read damaged files."""
    problems = damage(folder, args.count, args.seed)
    yield from [[x] for x in problems] + [[]] * (args.count - len(problems))


def kills(folder: Path, args: argparse.Namespace) -> Iterator[list[str]]:
    """Kill commands, each task equally often."""
    for i, name in enumerate(args.tasks):
        task = KillCampaign(folder / str(i), name, args.seed)
        for _ in range(args.count // len(args.tasks)):
            yield [f"{name}: {x}" for x in task.problems()]


def long_runs(folder: Path, args: argparse.Namespace) -> Iterator[list[str]]:
    """Train and predict for long, and print what that uses."""
    keep_freed_memory()
    for name, run in RUNS.items():
        usages = run(folder / name, args.count)
        rows = [(args.count * (i + 1) // POINTS, *x) for i, x in enumerate(usages)]
        print(tabulate(rows, (name, *Usage._fields), floatfmt=".1f"), flush=True)
        yield [f"{name}: {x}" for x in growth(usages)]


CAMPAIGNS = {"inputs": bad_inputs, "damages": damages, "kills": kills, "long": long_runs}


def main() -> int:
    """Run a campaign, print what went wrong, and return 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", nargs="?", choices=CAMPAIGNS, default="inputs")
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks to kill")
    args = parser.parse_args()
    count, failed, started = 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for problems in CAMPAIGNS[args.campaign](Path(folder), args):
            count, failed = count + 1, failed + bool(problems)
            if problems:
                print("\n".join(problems), flush=True)
    print(f"{args.campaign}: {count}, with problems: {failed}, in {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
