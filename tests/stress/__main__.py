"""Runs all checks: ``python -m tests.stress``, or ``make stress``; about 25 minutes on two cores."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from s10_resnet.utils.environment import collect_environment
from s10_resnet.utils.io import write_json
from tests.stress import growth, hostile, kills, machine, workers
from tests.stress.lab import REPOSITORY, Lab, Row

FOLDERS = (Path(os.environ.get("S10_DATA_DIR", "data")), REPOSITORY.parent / "shared")
DATA_DIR = next((path for path in FOLDERS if (path / "cifar-10-batches-py").is_dir()), None)
CHECKS = {  # with their arguments, and those of --quick
    kills.kills: ((30,), (2,)),
    kills.kills_while_writing: ((100,), (2,)),
    hostile.damage: ((200, 50), (20, 5)),
    hostile.malice: ((), ()),
    hostile.tampering: ((DATA_DIR,), (DATA_DIR,)),
    hostile.bad_command_lines: ((1,), (10,)),
    kills.stops: ((20, 2), (2, 1)),
    workers.worker_counts: (((0, 1, 2, 4),), ((0, 2),)),
    workers.draws: (((0, 1, 2, 4), 25), ((0, 2), 5)),
    machine.machine: ((), ()),
    growth.growth: (((8, 16, 24), 10), ((2, 4, 6), 4)),
    machine.remains: ((), ()),
}


def main() -> int:
    """Returns 1 if anything did not hold."""
    names = [check.__name__ for check in CHECKS]
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="seed of the checks (default: new)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CHECK", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="everything a few times only")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores are intended
    start, rows = time.monotonic(), []
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="s10-stress-") as folder:
        lab = Lab(Path(folder), options.seed)
        for check, arguments in CHECKS.items():
            if check.__name__ not in options.only:
                continue
            for row in check(lab, *arguments[options.quick]):
                rows.append(row)
                print(line(row), flush=True)
    minutes = (time.monotonic() - start) / 60
    rows.sort(key=lambda row: int(row.number))
    print(f"\n{len(rows)} checks in {minutes:.1f} minutes, seed {options.seed}\n")
    print("\n".join(map(line, rows)))
    if options.output:
        content = {
            "command": f"python -m tests.stress --seed {options.seed}" + " --quick" * options.quick,
            "minutes": round(minutes, 1),
            "checks": [{key: value for key, value in row._asdict().items() if key != "problems"} for row in rows],
            **collect_environment(torch.device("cpu")),
        }
        write_json(options.output, content)
    return 0 if all(row.passed for row in rows) else 1


def line(row: Row) -> str:
    """Returns a row of the table, its problems below."""
    verdict = "held  " if row.passed else "FAILED"
    text = f"{row.number:>2}  {verdict}  {row.held:>5} of {row.tried:<5}  {row.what}"
    return "\n        ".join([text + (f" ({row.remark})" if row.remark else ""), *row.problems[:5]])


if __name__ == "__main__":
    sys.exit(main())
