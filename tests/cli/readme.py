"""Runs the commands of README.md one after another, in one shell without an activated environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy

from tests.conftest import REPOSITORY

SMALL = "--dataset synthetic --max-train-samples 60 --batch-size 20 --no-dirac-init --no-whitening-init --device cpu"
FLAGS = {  # to append to a command that begins like this
    "python scripts/train.py --epochs 24 --name": f"{SMALL} --epochs 1",
    "python scripts/train.py --max-train-samples": f"{SMALL} --epochs 1",
    "python scripts/find_lr.py": SMALL,
}
# An environment is made from what is there: without pip, and with the packages of the running Python.
PRELUDE = """
python3() { "$PYTHON" "$@" --without-pip; }
pip() {
    [ "$*" = "install -e ." ] || return 1
    site=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))") || return 1
    printf '%s\\n' "$PWD" "$PACKAGES" > "$site/readme.pth"
    printf '%s' "$CUSTOMIZE" > "$site/sitecustomize.py"
}
"""
CUSTOMIZE = """
import sys
if "--lr" not in sys.orig_argv:  # which is answered before torch is imported
    import pytest, tests.runs
    tests.runs.use_small_parts(pytest.MonkeyPatch())
"""


def readme_commands() -> list[str]:
    """Returns the command lines of the shell blocks, and the one Python block as such a line."""
    commands = []
    text = (REPOSITORY / "README.md").read_text()
    for kind, block in re.findall(r"```(bash|console|python)\n(.*?)```", text, re.DOTALL):
        if kind == "python":
            commands.append(f"python - <<'END'\n{block}print(probabilities.shape)\nEND")
        commands += block.splitlines() if kind == "bash" else re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    return commands


def run_readme(folder: Path) -> subprocess.CompletedProcess:
    """Runs the commands in a folder like a clone, each followed by its exit code."""
    for name in ("pyproject.toml", "s10_resnet", "scripts", "examples", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    script = PRELUDE
    for command in readme_commands():
        flags = [more for start, more in FLAGS.items() if command.startswith(start)]
        script += f"{' '.join([command, *flags])}\necho exit code $?\n"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    folders = environment["PATH"].split(os.pathsep)
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={
            **environment,
            "PATH": os.pathsep.join(folder for folder in folders if Path(folder) != Path(sys.executable).parent),
            "PYTHON": sys.executable,
            "CUSTOMIZE": CUSTOMIZE,
            "PACKAGES": str(Path(numpy.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "S10_DATA_DIR": "nowhere",
        },
        capture_output=True,
        text=True,
        timeout=250,
    )
