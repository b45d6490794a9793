"""Proves that two revisions of this repository train bit-identically: ``python -m tests.golden BASE HEAD``.

The scripts of both are run on this machine, with one thread each and side by side, and the files that they leave are
compared: histories, weights and optimizer states, range tests, sweeps, evaluations and predictions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.golden.compare import first_difference
from tests.golden.results import Result, ScenarioError
from tests.golden.revision import WORKTREE, Revision, exists
from tests.golden.scenarios import SAME_AS, SCENARIOS


def main() -> int:
    """Returns 0 if everything is identical, 1 if anything is not or cannot be compared; bad usage exits with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("base", "head"):
        parser.add_argument(name, metavar=name.upper(), help=f"a git revision, or {WORKTREE} for the uncommitted tree")
    parser.add_argument(
        "--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME", help=", ".join(SCENARIOS)
    )
    arguments = parser.parse_args()
    for name in (arguments.base, arguments.head):
        if not exists(name):
            parser.error(f"{name}: must be a git revision, or {WORKTREE}")
    start, failures = time.monotonic(), 0
    print(line("scenario", "compared", "result"), flush=True)
    with tempfile.TemporaryDirectory(prefix="golden-") as folder, ThreadPoolExecutor(2) as pool:
        base = Revision("BASE", arguments.base, Path(folder, "base"))
        head = Revision("HEAD", arguments.head, Path(folder, "head"))
        for name in dict.fromkeys(arguments.only):
            compared, difference = check(name, base, head, pool)
            failures += bool(difference)
            print(line(name, compared, difference or "identical"), flush=True)
    verdict = f"{failures} of them not identical" if failures else "all identical"
    print(f"\n{len(set(arguments.only))} scenarios in {time.monotonic() - start:.0f} s: {verdict}")
    return 1 if failures else 0


def check(name: str, base: Revision, head: Revision, pool: ThreadPoolExecutor) -> tuple[str, str]:
    """Runs a scenario in both revisions.

    Returns:
        How much was compared, and the first difference, which is empty if there is none.
    """

    def both(name: str) -> dict[str, Result]:
        results = pool.map(SCENARIOS[name], (base, head))
        return {f"{revision.label} {name}": result for revision, result in zip((base, head), results, strict=True)}

    try:
        results = both(name)
        pairs = [(f"BASE {name}", f"HEAD {name}")]
        if name in SAME_AS:
            reference = SAME_AS[name]
            results |= both(reference)
            pairs += [
                (f"BASE {reference}", f"BASE {name}"),
                (f"HEAD {reference}", f"HEAD {name}"),
                (f"BASE {reference}", f"HEAD {name}"),
            ]
    except ScenarioError as error:
        return "nothing", str(error)
    numbers = sum(len(results[left].numbers) for left, _ in pairs)
    tensors = sum(len(group) for left, _ in pairs for group in results[left].tensors.values())
    differences = ((pair, first_difference(results[pair[0]], results[pair[1]])) for pair in pairs)
    first = next((f"{left}, {right}: {text}" for (left, right), text in differences if text), "")
    return f"{numbers} numbers, {tensors} tensors", first


def line(*cells: str) -> str:
    """Returns a line of the table."""
    scenario, compared, result = cells
    return f"{scenario:<{max(map(len, SCENARIOS))}}  {compared:<25}  {result}"


if __name__ == "__main__":
    sys.exit(main())
