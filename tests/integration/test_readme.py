"""The commands of README.md, as they stand there one after another, in one shell without an activated environment."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

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


def readme_commands():
    """Returns the command lines of the shell blocks, and the one Python block as such a line."""
    commands = []
    text = (REPOSITORY / "README.md").read_text()
    for kind, block in re.findall(r"```(bash|console|python)\n(.*?)```", text, re.DOTALL):
        if kind == "python":
            commands.append(f"python - <<'END'\n{block}print(probabilities.shape)\nEND")
        commands += block.splitlines() if kind == "bash" else re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    return commands


@pytest.mark.skipif(
    os.name != "posix" or shutil.which("bash") is None, reason="README's commands are for a POSIX shell"
)
def test_the_commands_of_the_readme_work_one_after_another(tmp_path):
    for name in ("pyproject.toml", "s10_resnet", "scripts", "examples", "tests"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    script = PRELUDE
    for command in readme_commands():
        flags = [more for start, more in FLAGS.items() if command.startswith(start)]
        script += f"{' '.join([command, *flags])}\necho exit code $?\n"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    folders = environment["PATH"].split(os.pathsep)
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
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
    told = f"{ended.stdout}\n{ended.stderr}"
    codes = [int(code) for code in re.findall(r"^exit code (\d+)$", ended.stdout, re.MULTILINE)]
    wrong = [command for command, code in zip(readme_commands(), codes, strict=True) if code]
    assert wrong == ["python scripts/train.py --lr 0.01"], told
    assert "train.py: error: --lr: is unknown; did you mean --max-lr?\n" in ended.stderr
    assert "examples/cat.png  " in ended.stdout
    assert "(1, 10)\n" in ended.stdout
    assert ended.stdout.count("\ncompleted after epoch 1: ") == 3  # two trainings, and a run resumed after its end
    assert len(list((tmp_path / "outputs").iterdir())) == 3
