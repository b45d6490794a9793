"""The commands from flags to files."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from s10_resnet import arguments, cli
from s10_resnet.errors import InputError
from s10_resnet.utils.console import escape_controls
from tests.conftest import REPOSITORY
from tests.integration.conftest import QUICK
from tests.runs import FILES, content_of, names_in


def test_a_training_leaves_its_files(runs, command, tmp_path):
    assert names_in(runs / "run-0") | {"checkpoint.previous.pt"} == FILES
    summary = json.loads((runs / "run-0" / "summary.json").read_text())
    assert (summary["status"], summary["dataset"], summary["eval_split"]) == ("completed", "synthetic", "test")
    assert (summary["epochs"], summary["parameters"], summary["train_images"]) == (1, 6_573_120, 60)
    again = command(f"train --epochs 1 --config {runs / 'run-0' / 'config.json'} --output-dir", tmp_path)
    assert (again.code, again.err) == (0, "")
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"train-synthetic-\d{8}-\d{6}", folder.name)
    assert (folder / "history.csv").read_text().split(",")[:3] == (runs / "run-0/history.csv").read_text().split(",")[
        :3
    ]
    loss = [json.loads((run / "summary.json").read_text())["final_train_loss"] for run in (folder, runs / "run-0")]
    assert loss[0] == loss[1]


def test_a_training_can_look_for_its_learning_rate(command, tmp_path):
    quick = "--dataset synthetic --max-train-samples 20 --batch-size 10 --device cpu"
    ended = command(f"train {quick} --epochs 1 --max-lr auto --lr-finder-steps 40 --name run --output-dir", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    found = json.loads((tmp_path / "run" / "lr_finder.json").read_text())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["max_lr"] == found["recommended_max_lr"]


def test_a_finished_run_is_resumed_with_no_other_settings(runs, command):
    before = content_of(runs / "run-1")
    ended = command("train --epochs 3 --resume", runs / "run-1")
    assert (ended.code, ended.out) == (2, "")
    shown = escape_controls(str(runs / "run-1"))
    assert ended.err.startswith(f"train.py: error: --resume {shown}: a run cannot be resumed with other")
    assert "--epochs 3 (the run has 1)" in ended.err
    assert content_of(runs / "run-1") == before


@pytest.mark.parametrize("split", ["test", "flip_shift"])
def test_weights_are_evaluated(runs, command, split):
    tta = "none" if split == "test" else split
    ended = command(f"evaluate --device cpu --tta {tta} --checkpoint", runs / "run-0" / "best.pt")
    assert (ended.code, ended.err) == (0, "")
    suffix = "" if tta == "none" else f"-{tta}"
    content = json.loads((runs / "run-0" / f"evaluation-best-test{suffix}.json").read_text())
    assert content["images"] == sum(row["images"] for row in content["per_class"].values()) == 20
    assert f"accuracy {content['accuracy']:.2%}" in ended.out


def test_images_are_predicted_with_a_plot(runs, command, tmp_path):
    Image.effect_noise((90, 60), 80).save(tmp_path / "a.png")
    ended = command(f"predict {tmp_path} --device cpu --plot {tmp_path / 'p.png'} --checkpoint", runs / "run-0")
    assert ended.code == 0
    assert re.fullmatch(r"warning: these weights were trained on the synthetic data set.*\n", ended.err)
    assert len(re.findall(r"\d\.\d\d%", ended.out)) == 3
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_exported_weights_predict_the_same(runs, command, tmp_path):
    pytest.importorskip("safetensors", reason="the extra [export] is not installed")
    Image.effect_noise((90, 60), 80).save(tmp_path / "a.png")
    shared = tmp_path / "shared.safetensors"
    export = command("export --format safetensors --checkpoint", runs / "run-0", "--output", shared)
    assert (export.code, export.err) == (0, "")
    assert "largest logit difference 0.0000000 over 264 synthetic images" in export.out
    ends = [command(f"predict {tmp_path / 'a.png'} --json --checkpoint", path) for path in (shared, runs / "run-0")]
    assert ends[0] == ends[1]
    assert ends[0].code == 0
    (record,) = json.loads(ends[0].out)
    assert (record["image"], len(record["predictions"])) == (str(tmp_path / "a.png"), 3)


def test_weights_are_evaluated_on_a_folder_of_images(runs, command, tmp_path):
    (tmp_path / "labeled" / "star").mkdir(parents=True)
    Image.effect_noise((90, 60), 80).save(tmp_path / "labeled" / "star" / "a.png")
    ended = command("evaluate --tta flip --checkpoint", runs / "run-0", "--images", tmp_path / "labeled")
    assert (ended.code, ended.err) == (0, "")
    (written,) = (runs / "run-0").glob("evaluation-last-images-labeled-*-flip.json")
    content = json.loads(written.read_text())
    assert content["images"] == content["per_class"]["star"]["images"] == 1
    assert f"accuracy {content['accuracy']:.2%} (without TTA {content['accuracy_without_tta']:.2%})" in ended.out


def test_seeds_are_compared_as_one_group(runs, command, tmp_path):
    ended = command(f"compare {runs} --name both --output-dir", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    (group,) = json.loads((tmp_path / "both" / "comparison.json").read_text())["groups"]
    assert (group["n"], [run["seed"] for run in group["runs"]]) == (2, [0, 1])
    assert "no setting differs" in ended.out
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"comparison.json", "curves.png"}


def test_a_sweep_is_compared_like_any_runs(command, tmp_path):
    settings = f"{QUICK} --val-size 20 --epochs 1 --num-seeds 1 --name sweep --output-dir"
    ended = command(f"sweep 'flip=none cutout-size=0' {settings}", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [trial["seed"] for trial in content["trials"]] == [0, 0]
    assert content["variants"][1]["changes"] == {"flip": "none", "cutout_size": 0}
    assert content["variants"][1]["statistics"]["accuracy"]["n"] == 1
    ended = command(f"compare {tmp_path / 'sweep'} --name compared --output-dir", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    groups = json.loads((tmp_path / "compared" / "comparison.json").read_text())["groups"]
    assert [group["n"] for group in groups] == [1, 1]


@pytest.mark.parametrize("name", ["train", "find_lr"])
@pytest.mark.parametrize(
    "flags",
    [
        "--max-lr fast",
        "--workers -1",
        "--device tpu",
        "--dataset synthetic --batch-size 61",
        "--data-dir {empty}",
        "--no-such-flag",
        "--limit 60",
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, name, flags):
    (tmp_path / "empty" / "cifar-10-batches-py").mkdir(parents=True)
    flags = flags.format(empty=tmp_path / "empty")
    ended = command(f"{name} {flags} --output-dir", tmp_path / "outputs")
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(rf"{name}.py: error: .+\n", ended.err)
    assert flags.split()[-2 if " " in flags else 0] in ended.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train --dataset synthetic --batch-size 20 --output-dir {text}", "--output-dir {text}: must be a folder"),
        ("evaluate", "--checkpoint: is required"),
        ("evaluate --checkpoint {text}", "{text}: is damaged, or no checkpoint of this package"),
        ("evaluate --checkpoint {runs}/run-0/checkpoint.pt", "last.pt"),
        ("evaluate --checkpoint {runs}/run-0 --tta six", "--tta six: is now called flip_shift"),
        ("evaluate --checkpoint {runs}/run-0 --split val", "--split val: must be test"),
        ("evaluate --checkpoint {runs}/run-0 --images {empty}", "--images {empty}: must hold"),
        ("evaluate --checkpoint {runs}/run-0 --images {strange}", "zebra"),
        ("predict --checkpoint {runs}/run-0", "IMAGE: is required"),
        ("predict --checkpoint {runs}/run-0 {empty}", "IMAGE {empty}: must be"),
        ("predict --checkpoint {runs}/run-0 {text}", "{text}: cannot be read as an image"),
        ("predict --checkpoint {runs}/run-0 --plot a.gif {text}", "--plot a.gif: must be a name ending in .png"),
        ("compare {runs}/run-0", "must be at least two finished runs"),
        ("compare {runs}/run-0 {empty}", "RUN {empty}: must be"),
        ("export --checkpoint {runs}/run-0 --format zip", "--format zip: must be one of onnx, safetensors"),
        ("export --checkpoint {runs}/run-0 --output {empty}", "--output {empty}: must be a name that ends in"),
        ("sweep --dataset synthetic max-lr", "VARIANT max-lr: must be"),
        ("sweep --resume {runs}/run-0", "--resume {runs}/run-0: must be the folder of a sweep"),
        ("benchmark --quick --epochs 3", "--epochs 3: must be left out with --quick"),
    ],
)
def test_bad_input_of_every_command_is_one_line_too(runs, command, tmp_path, monkeypatch, line, told):
    places = {name: tmp_path / name for name in ("text", "empty", "strange")} | {"runs": runs}
    places["text"].write_text("no image, no weights")
    places["empty"].mkdir()
    (places["strange"] / "zebra").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    before = content_of(runs / "run-0")
    ended = command(line.format(**places))
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(rf"{line.split()[0]}.py: error: .+\n", ended.err)
    assert escape_controls(told.format(**places)) in ended.err
    assert content_of(runs / "run-0") == before
    assert not (tmp_path / "outputs").exists()


COMMAND = r"(?:python scripts/(\w+)\.py|s10-([\w-]+)|python -m s10_resnet ([\w-]+)) ?(.*)"


def documented_commands():
    """Returns the command lines of the documentation's shell blocks, with their file; not those shown to be wrong."""
    files = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    return [
        (file.name, line)
        for file in files
        for block in re.findall(r"```(?:bash|console)\n(.*?)```", file.read_text(), flags=re.DOTALL)
        for line, following in re.findall(r"^(?:\$ )?(.*)\n(?=(.*))", block, flags=re.MULTILINE)
        if ": error: " not in following and re.match(COMMAND, line)
    ]


@pytest.mark.parametrize(("file", "line"), documented_commands())
def test_documented_commands_have_valid_flags(monkeypatch, file, line):
    script, entry_point, module, argv = re.match(COMMAND, line).groups()
    settings = cli.COMMANDS[(script or entry_point or module).replace("-", "_")].settings
    monkeypatch.setattr("os.path.exists", lambda path: True)
    monkeypatch.setattr(arguments, "_read_config", lambda settings_class, path: {})
    try:
        given = arguments.parse_args(settings, shlex.split(argv, comments=True), resume_help="resume")
        if "resume" not in given:
            settings(**given)
    except InputError as error:
        pytest.fail(f"{file}: {line}: {error}")


def test_the_readme_shows_the_answer_to_a_wrong_flag(command):
    shown = "train.py: error: --lr: is unknown; did you mean --max-lr?\n"
    assert command("train --lr 0.01") == (2, "", shown)
    assert f"$ python scripts/train.py --lr 0.01\n{shown}```" in (REPOSITORY / "README.md").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_checks_and_trains():
    ended = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.installed", f"PYTHON={sys.executable}", "train", "test"],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},  # of make test itself
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines() == [
        ".venv/bin/python scripts/train.py --dataset auto --epochs 24",
        ".venv/bin/ruff check .",
        ".venv/bin/ruff format --check .",
        ".venv/bin/mypy",
        "OMP_NUM_THREADS=1 make --no-print-directory --jobs=2 test-unit test-commands",
        ".venv/bin/python -m pytest -m 'not slow' --ignore=tests/cli --ignore=tests/integration",
        ".venv/bin/python -m pytest -m 'not slow' tests/cli tests/integration",
    ]
    assert (REPOSITORY / ".ci" / "run").read_text().splitlines()[-1] == "make test"


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))], ids=str)
def test_links_of_the_documentation_lead_somewhere(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert re.findall(r"@[A-Z]+@", text) == []
