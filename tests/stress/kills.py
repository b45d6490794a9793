"""Runs that are killed or stopped at any moment, and resumed."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator

from s10_resnet.utils.serialization import CheckpointError
from tests.outcome import outcome
from tests.stress.lab import SMALL, STEPS, Lab, Row, Script, saved_step


def kills(lab: Lab, trials: int) -> Iterator[Row]:
    """SIGKILL at a random moment of a run, then --resume: bit-identical; how much work is lost."""
    reference, lost = lab.reference(), []

    def trial(number: int) -> str:
        draws, name = lab.draws("kills", number), f"kill-{number}"
        while True:  # until a kill comes before the end
            run = lab.folder / name
            script, steps = lab.train_counted(name, SMALL, "--workers", draws.choice([0, 2]))
            after = draws.randrange(STEPS + 1)
            script.wait_until(lambda: (run / "config.json").exists() and steps() >= after)  # noqa: B023
            script.wait_until(lambda: False, draws.uniform(0, 0.6))
            script.kill()
            if script.ended().code == -signal.SIGKILL:
                break
            name += "-again"
        lost.append(steps() - (saved_step(run) or 0))
        if draws.random() < 0.3:  # and once more, wherever it has got to
            script = lab.resume(run)
            script.wait_until(lambda: False, draws.uniform(0, 8))
            script.kill()
            script.ended()
        ended = lab.resume(run, "--workers", draws.choice([0, 1, 2])).ended()
        if ended.code:
            return f"{name}: exit code {ended.code}: {ended.err.strip()}"
        return "" if outcome(run) == reference else f"{name}: a different result"

    problems = [problem for problem in lab.each(trial, range(trials)) if problem]
    what = "SIGKILL at a random moment, resumed: bit-identical to an uninterrupted run"
    yield Row("1", what, trials, trials - len(problems), "", tuple(problems))
    allowed = STEPS // 4 + 1  # there is a checkpoint every 0.12 s
    what = f"steps lost by a kill at a random moment, of {STEPS}; at most an epoch's and one"
    yield Row("3", what, trials, sum(steps <= allowed for steps in lost), f"most: {max(lost)}")


def kills_while_writing(lab: Lab, trials: int) -> Iterator[Row]:
    """SIGKILL while a checkpoint is being written: there is always one that is intact."""
    settings = SMALL.replace("--epochs 4", "--epochs 40").replace("0.002", "0.000001")  # one a step
    lanes = 2 if trials > 1 else 1

    def lane(number: int) -> tuple[int, list[str]]:
        draws, name, landed, problems = lab.draws("writes", number), f"write-{number}", 0, []
        run = lab.folder / name
        script = lab.train(name, settings)
        for _ in range(3 * trials):
            started = script.wait_until(lambda: any(run.glob(".checkpoint.pt.*.tmp")))
            time.sleep(draws.uniform(0, 0.12))
            script.kill()
            script.ended()
            if not started:
                problems.append(f"{name}: ended by itself")
                break
            landed += any(run.glob(".checkpoint.*.tmp"))  # the file was not yet whole, or not yet in its place
            try:
                saved_step(run)
            except CheckpointError as error:
                problems.append(str(error))
            if landed * lanes >= trials:
                break
            script = lab.resume(run)
        ended = lab.resume(run, *shlex.split("--checkpoint-every-minutes 5")).ended()
        if ended.code:
            problems.append(f"{name}: exit code {ended.code}: {ended.err.strip()}")
        return landed, problems

    results = lab.each(lane, range(lanes))
    landed, problems = sum(count for count, _ in results), [text for _, texts in results for text in texts]
    outcomes = [outcome(lab.folder / f"write-{number}") for number in range(lanes)]
    if any(result != outcomes[0] for result in outcomes):
        problems.append("the runs that were killed so often have different results")
    remark = "the runs were resumed to their end"
    yield Row(
        "2",
        "SIGKILL while a checkpoint is being written: an intact one is there",
        landed,
        landed - len(problems),
        remark,
        tuple(problems),
    )


def stops(lab: Lab, trials: int, large: int) -> Iterator[Row]:
    """SIGINT and SIGTERM at a random moment, to the process or its group."""
    reference, slowest = lab.reference(), []

    def stopped(script: Script, signum: int, group: bool, twice: bool = False) -> tuple[float, int, str]:
        start = time.monotonic()
        (os.killpg if group else os.kill)(script.process.pid, signum)
        if signum == signal.SIGTERM or twice:  # `timeout` sends SIGTERM twice; a second Ctrl-C is urgent
            script.wait_until(lambda: False, 0.1 if twice else 0)
            if script.running:
                script.process.send_signal(signum)
        end = script.ended()
        return time.monotonic() - start, end.code, end.out + end.err

    def trial(number: int) -> str:
        draws, name = lab.draws("stops", number), f"stop-{number}"
        signum, workers = draws.choice([signal.SIGINT, signal.SIGTERM]), draws.choice([0, 2])
        group, twice = draws.random() < 0.5, signum == signal.SIGINT and draws.random() < 0.3
        run = lab.folder / name
        script, steps = lab.train_counted(name, SMALL, "--workers", workers)
        after = draws.randrange(STEPS)
        script.wait_until(lambda: (run / "config.json").exists() and steps() >= after)
        script.wait_until(lambda: False, draws.uniform(0, 0.4))
        if not script.running:
            return f"{name}: ended by itself"
        seconds, code, text = stopped(script, signum, group, twice)
        slowest.append(seconds)
        if code == 0 and "completed after" in text:  # the signal came after the last line
            return ""
        if code != 128 + signum or seconds > 10 or "Traceback" in text:
            return f"{name}: exit code {code} after {seconds:.1f} s: {text[-300:]}"
        saved = saved_step(run)
        if list(run.glob(".*")):
            return f"{name}: a temporary file is left"
        if not twice and (saved or 0) - steps() not in (0, 1):  # the last step is counted after the signal
            return f"{name}: saved after step {saved} of the {steps()} taken"
        if not twice and (saved or 0) > STEPS // 4 and not (run / "curves.png").exists():
            return f"{name}: no plots"
        ended = lab.resume(run).ended()
        return (
            ""
            if ended.code == 0 and outcome(run) == reference
            else f"{name}: resumed to a different result {ended.err}"
        )

    problems = [problem for problem in lab.each(trial, range(trials)) if problem]

    for number in range(large):  # steps of the usual size, on all cores: how long they may keep a signal waiting
        draws, name = lab.draws("large", number), f"large-{number}"
        script = Script(
            lab,
            ["scripts/train.py", "--dataset", "synthetic", "--output-dir", lab.folder, "--name", name],
            OMP_NUM_THREADS=str(os.cpu_count()),
        )
        script.wait_until((lab.folder / name / "config.json").exists)
        script.wait_until(lambda: False, draws.uniform(5, 30))  # a network without a step is not saved
        seconds, code, text = stopped(script, signal.SIGTERM, group=True)
        slowest.append(seconds)
        if code != 143 or seconds > 10 or saved_step(lab.folder / name) is None:
            problems.append(f"{name}: exit code {code} after {seconds:.1f} s: {text[-300:]}")
    total = trials + large
    what = "SIGINT or SIGTERM, to process or group: exit code 130 or 143 within 10 s, saved, resumed bit-identical"
    yield Row("8", what, total, total - len(problems), f"slowest: {max(slowest):.1f} s", tuple(problems))
