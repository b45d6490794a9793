"""Runs all checks: ``python -m tests.torture``, or ``make torture``; at most 20 minutes on two cores."""

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

from s10_resnet import outputs
from tests.torture import checks
from tests.torture.lab import REPOSITORY, Lab, Row


def main() -> int:
    """Returns 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(2**32), help="of all that is drawn (default: new)"
    )
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="names of functions in checks.py")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    source = next(
        (
            path
            for path in (Path(os.environ.get("S10_DATA_DIR", "data")), REPOSITORY.parent / "shared")
            if path.is_dir()
        ),
        None,
    )
    plan = {
        "kills": (30,),
        "kills_while_writing": (100,),
        "damage": (200, 50),
        "malice": (),
        "tampering": (source,),
        "bad_command_lines": (),
        "stops": (20, 2),
        "worker_counts": ((0, 1, 2, 4),),
        "draws": ((0, 1, 2, 4), 25),
        "machine": (),
        "remains": (),
    }
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores are the point
    start, rows = time.monotonic(), []
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="s10-torture-") as folder:
        lab = Lab(Path(folder), options.seed)
        for name in options.only or plan:
            for row in getattr(checks, name)(lab, *plan[name]):
                rows.append(row)
                print(_line(row), flush=True)
    minutes = (time.monotonic() - start) / 60
    rows.sort(key=lambda row: int(row.number))
    print(f"\n{len(rows)} checks in {minutes:.1f} minutes, seed {options.seed}\n")
    print("\n".join(_line(row) for row in rows))
    if options.output:
        content = {
            "command": f"python -m tests.torture --seed {options.seed}",
            "minutes": round(minutes, 1),
            "checks": [{key: value for key, value in row._asdict().items() if key != "problems"} for row in rows],
            **outputs.provenance(torch.device("cpu")),
        }
        outputs.write_json(options.output, content)
    return 0 if all(row.passed for row in rows) else 1


def _line(row: Row) -> str:
    verdict = "held  " if row.passed else "FAILED"
    text = f"{row.number:>2}  {verdict}  {row.held:>5} of {row.tried:<5}  {row.what}"
    return "\n        ".join([text + (f" ({row.remark})" if row.remark else ""), *row.problems[:5]])


if __name__ == "__main__":
    sys.exit(main())
