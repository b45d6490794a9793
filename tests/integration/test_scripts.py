"""The commands as a user types them, each in a process of its own."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from s10_resnet import cli
from s10_resnet.utils import serialization as checkpoint
from tests.conftest import REPOSITORY
from tests.runs import content_of

QUICK = "--dataset synthetic --limit 60 --batch-size 20"


def start(command, start_new_session=False, preexec_fn=None, **environment):
    environment = {**os.environ, "S10_DATA_DIR": "nowhere", **environment}
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=start_new_session,
        preexec_fn=preexec_fn,
    )


def python(line, *more):
    process = start([sys.executable, *shlex.split(line), *map(str, more)])
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def readme_commands():
    blocks = re.findall(r"```console\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_readme_shows_the_commands_of_the_trade():
    commands = readme_commands()
    for command in ("make train", "make test", "python scripts/train.py --epochs 24", "python scripts/find_lr.py"):
        assert command in commands


def test_a_bad_value_looks_as_the_readme_shows_it():
    code, out, err = python("scripts/train.py --epochs 0")
    assert (code, out) == (2, "")
    assert f"$ python scripts/train.py --epochs 0\n{err}```" in (REPOSITORY / "README.md").read_text()


def test_train_as_the_readme_says(tmp_path):
    code, out, err = python(f"scripts/train.py --epochs 24 {QUICK} --epochs 1 --output-dir", tmp_path)
    assert (code, err) == (0, "")
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"train-synthetic-\d{8}-\d{6}", folder.name)
    assert "6,573,120 parameters" in out
    assert "epoch 1/1" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["dataset"], summary["epochs"], summary["parameters"]) == ("synthetic", 1, 6_573_120)
    for name in ("samples", "lr_schedule", "curves", "confusion", "mistakes"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_find_lr_as_the_readme_says(tmp_path):
    code, out, err = python(f"scripts/find_lr.py {QUICK} --finder-steps 20 --name search --output-dir", tmp_path)
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "search" / "lr_finder.json").read_text())
    assert f"python scripts/train.py --batch-size 20 --max-lr {content['recommended_max_lr']} " in out
    assert {"lr_finder.png", "lr_finder.csv"} <= {path.name for path in (tmp_path / "search").iterdir()}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_train_trains(tmp_path):
    make = ["make", "--old-file=.venv/.installed", f"PYTHON={sys.executable}"]
    process = start([*make, "--dry-run", "train", "test"])
    commands, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    train = next(line for line in commands.splitlines() if "scripts/train.py" in line)
    assert train.split() == [".venv/bin/python", "scripts/train.py", "--dataset", "auto", "--epochs", "24"]
    for tool in ("ruff check .", "ruff format --check .", "python -m pytest"):
        assert f".venv/bin/{tool}" in commands


@pytest.mark.parametrize("script", ["train.py", "find_lr.py"])
@pytest.mark.parametrize(
    "flags",
    [
        "--epochs 0",
        "--max-lr fast",
        "--max-lr -1e-3",
        "--workers -1",
        "--device tpu",
        "--dataset synthetic --limit 60 --batch-size 61",
        "--no-such-flag",
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, script, flags):
    code, out, err = python(f"scripts/{script} {flags} --output-dir", tmp_path / "outputs")
    assert code == 2
    assert out == ""
    assert re.fullmatch(rf"{script}: error: .+\n", err)
    assert flags.split()[-2 if " " in flags else 0] in err
    assert not (tmp_path / "outputs").exists()


def test_no_data_and_no_network_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    code, out, err = python(f"scripts/train.py --data-dir {tmp_path} --output-dir", tmp_path / "outputs")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"train.py: error: --data-dir .*data_batch_1 is missing.*\n", err)
    assert not (tmp_path / "outputs").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    code, _, err = python(f"scripts/train.py {QUICK} --output-dir", tmp_path / "file")
    assert code == 2
    assert re.fullmatch(r"train.py: error: --output-dir .*must be a folder.*\n", err)


AUDIT = """
import os, runpy, sys
seen = os.open(os.environ["SEEN"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
NAMES = {"os.mkdir": [0], "os.rename": [0, 1], "os.remove": [0], "os.link": [0, 1], "os.symlink": [1], "os.rmdir": [0]}

def note(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        os.write(seen, f"network {arguments}\\n".encode())
    if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        os.write(seen, f"{arguments[0]}\\n".encode())
    for place in NAMES.get(event, ()):
        os.write(seen, f"{arguments[place]}\\n".encode())

sys.addaudithook(note)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_network_is_left_alone_and_nothing_is_written_elsewhere(tmp_path, monkeypatch):
    """Python tells of every file it opens or renames and every address it looks for, in the workers, too."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "audit.py").write_text(AUDIT)
    flags = f"{QUICK} --epochs 1 --workers 2 --name run --output-dir {tmp_path}"
    code, _, err = python(f"{tmp_path / 'audit.py'} scripts/train.py {flags}")
    assert (code, err) == (0, "")
    seen = set((tmp_path / "seen").read_text().splitlines())
    assert not [line for line in seen if line.startswith("network")]
    allowed = (tmp_path / "run", tmp_path / "tmp", matplotlib.get_cachedir(), matplotlib.get_configdir(), "/dev/null")
    elsewhere = [path for path in seen if not path.startswith(tuple(map(str, allowed)))]
    assert not [path for path in elsewhere if not Path(path).name.startswith("torchinductor")]  # torch's cache
    assert str(tmp_path / "run" / ".checkpoint.pt.tmp") in seen
    assert not list((tmp_path / "tmp").glob("pymp-*"))


@pytest.mark.skipif(os.name != "posix", reason="process groups are a matter of POSIX")
@pytest.mark.parametrize(
    ("signum", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_to_the_group_ends_cleanly_and_the_run_goes_on(tmp_path, signum, code, word):
    flags = f"{QUICK} --epochs 500 --workers 2 --name run --output-dir {tmp_path}"
    # Whoever runs the tests in the background has SIGINT ignored, and so would the script.
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = start(
        [sys.executable, "scripts/train.py", *shlex.split(flags)], start_new_session=True, preexec_fn=default
    )
    for line in process.stdout:
        if line.startswith("epoch   2/500"):
            break
    os.killpg(process.pid, signum)  # as a terminal or a supervisor does it: to the workers, too
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (code, f"train.py: {word}\n")
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert f"interrupted after epoch {summary['epochs']}: synthetic" in out
    assert checkpoint.load(folder / "last.pt")["epoch"] == summary["epochs"] >= 2
    assert (folder / "curves.png").exists()
    saved = checkpoint.load(folder / "checkpoint.pt")["state"]["step"]
    assert f"saved after step {saved} of 1,500; python scripts/train.py --resume {folder} goes on" in out
    code, out, err = python(f"scripts/train.py --epochs 3 --resume {folder}")
    assert (code, out) == (2, "")
    assert err.startswith(f"train.py: error: --resume {folder}: a run cannot go on with other settings: --epochs 3 (")


@pytest.mark.skipif(os.name != "posix", reason="process groups are a matter of POSIX")
def test_a_run_of_two_processes_goes_on_after_one_was_killed(tmp_path):
    flags = f"--dataset synthetic --limit 64 --batch-size 32 --epochs 3 --name run --output-dir {tmp_path}"
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 scripts/train.py"
    process = start([sys.executable, *shlex.split(f"{launch} {flags}")], OMP_NUM_THREADS="1")
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            break
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert f"going on in {tmp_path / 'run'}: synthetic" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["epochs"], summary["processes"]) == ("completed", 3, 2)
    assert not list((tmp_path / "run").glob(".*"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two small runs as the script makes them."""
    folder = tmp_path_factory.mktemp("outputs")
    for seed in (0, 1):
        code, _, err = python(
            f"scripts/train.py {QUICK} --epochs 1 --seed {seed} --name run-{seed} --output-dir", folder
        )
        assert (code, err) == (0, "")
    return folder


def test_a_trained_network_is_evaluated(trained):
    code, out, err = python("scripts/evaluate.py --tta flip --checkpoint", trained / "run-0" / "last.pt")
    assert (code, err) == (0, "")
    content = json.loads((trained / "run-0" / "evaluation-last-test-flip.json").read_text())
    assert content["images"] == sum(row["images"] for row in content["per_class"].values()) == 2000
    assert f"accuracy {content['accuracy']:.2%} (without augmentation {content['plain_accuracy']:.2%})" in out


def test_a_trained_network_goes_by_safetensors_and_predicts_the_same(trained, tmp_path):
    shared = tmp_path / "shared.safetensors"
    code, out, err = python(
        f"scripts/export.py --format safetensors --data-dir nowhere --output {shared} --checkpoint",
        trained / "run-0" / "last.pt",
    )
    assert (code, err) == (0, "")
    assert "largest logit difference 0.0000000 over 264 synthetic images" in out
    Image.effect_noise((90, 60), 80).save(tmp_path / "a.png")
    told = [
        python(f"scripts/predict.py {tmp_path / 'a.png'} --json --checkpoint", weights)
        for weights in (shared, trained / "run-0" / "last.pt")
    ]
    assert told[0] == told[1]
    assert told[0][0] == 0
    (record,) = json.loads(told[0][1])
    assert (record["image"], len(record["predictions"])) == (str(tmp_path / "a.png"), 3)


def test_runs_are_compared(trained, tmp_path):
    code, out, err = python(f"scripts/compare.py {trained} --name both --output-dir", tmp_path)
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "both" / "comparison.json").read_text())
    (group,) = content["groups"]
    assert (group["n"], [run["seed"] for run in group["runs"]]) == (2, [0, 1])
    assert "no setting differs but for the seed" in out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("evaluate.py", "the following arguments are required: --checkpoint"),
        ("evaluate.py --checkpoint {text}", "{text}: is damaged, or no checkpoint of this package"),
        ("evaluate.py --checkpoint {runs}/run-0/checkpoint.pt", "the weights are in last.pt beside it"),
        ("evaluate.py --checkpoint {runs}/run-0/last.pt --tta ten", "--tta ten: must be one of none, flip, six"),
        ("evaluate.py --checkpoint {runs}/run-0/last.pt --split val", "--split val: must be test"),
        ("evaluate.py --checkpoint {runs}/run-0/last.pt --images {empty}", "--images {empty}: must hold pictures"),
        ("evaluate.py --checkpoint {runs}/run-0/last.pt --images {strange}", "zebra is none of these"),
        ("predict.py --checkpoint {runs}/run-0/last.pt", "the following arguments are required: IMAGE"),
        ("predict.py --checkpoint {runs}/run-0/last.pt {empty}", "IMAGE {empty}: must be a picture"),
        ("predict.py --checkpoint {runs}/run-0/last.pt {text}", "IMAGE {text}: must be a picture, one of PNG"),
        (
            "predict.py --checkpoint {runs}/run-0/last.pt --plot a.gif {text}",
            "--plot a.gif: must be a name ending in .png",
        ),
        ("compare.py {runs}/run-0", "must be at least two runs"),
        ("compare.py {runs}/run-0 {empty}", "RUN {empty}: must be the folder of a run"),
        ("export.py --checkpoint {runs}/run-0/last.pt --format zip", "--format zip: must be one of onnx, torch, saf"),
        (
            "export.py --checkpoint {runs}/run-0/last.pt --output {empty}",
            "--output {empty}: must be a name that ends in",
        ),
    ],
)
def test_bad_input_after_a_training_is_one_line_too(trained, tmp_path, capsys, monkeypatch, line, told):
    places = {name: tmp_path / name for name in ("text", "empty", "strange")} | {"runs": trained}
    places["text"].write_text("no picture, no weights")
    places["empty"].mkdir()
    (places["strange"] / "zebra").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    script, *argv = shlex.split(line.format(**places))
    before = content_of(trained / "run-0")
    assert cli.run(Path(script).stem, argv, prog=script) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"{script}: error: .+\n", err)
    assert told.format(**places) in err
    assert content_of(trained / "run-0") == before
    assert not (tmp_path / "outputs").exists()


def test_the_benchmark_runs_and_its_numbers_add_up(tmp_path):
    flags = "--dataset synthetic --limit 24 --batch-size 10 --epochs 1 --repeats 1 --name b"
    code, out, err = python(f"scripts/benchmark.py {flags} --output-dir", tmp_path)
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "b" / "benchmark.json").read_text())
    images = {"input pipeline, one core": 2050, "training step": 20, "whole epoch": 24, "whole process, --epochs 1": 24}
    assert {stage["name"]: stage["images"] for stage in content["stages"]} == images
    for stage in content["stages"]:
        (package,), (textbook,) = stage["package"], stage["textbook"]
        assert stage["package_images_per_second"] == stage["images"] / package > 0
        assert stage["textbook_images_per_second"] == stage["images"] / textbook > 0
        assert stage["ratio"] == textbook / package
        assert f"{stage['name']} " in out
    step = content["stages"][1]["package_images_per_second"]
    assert content["training_step"] == content["flops_per_image"] * step
    assert 2.2e9 < content["flops_per_image"] < 2.3e9
    assert content["data_share"] == 1 - content["stages"][2]["package_images_per_second"] / step
    assert [path.name for path in tmp_path.iterdir()] == ["b"]  # the runs of the whole processes are gone
