import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback

from recipes import stages
from recipes.command import command_line, resume_command
from recipes.interrupts import Interrupted
from recipes.recipe import Recipe
from tests.recipes.tiny import TINY

ROOT = Path(__file__).resolve().parents[2]
LONG = "pruning.max_prunes=2000"  # minutes: no test waits for it


class Signals(Callback):
    """Sends this process signals in the middle of a training step."""

    def __init__(self, step, numbers):
        self.step, self.numbers = step, numbers

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture
def signalled(monkeypatch):
    """Have the next stage `prune` sent signals at a step."""

    def arrange(step, *numbers):
        plain = Recipe.watchers
        sender = [Signals(step, numbers)]
        monkeypatch.setattr(Recipe, "watchers", lambda recipe, metrics: [*plain(recipe, metrics), *sender])
        return sender.clear

    return arrange


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_stops_after_the_step_and_the_run_goes_on_to_the_same_end(number, signalled, compose_into, tmp_path):
    stages.run(compose_into(tmp_path, *TINY, "stage=train"))
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    quiet = signalled(4, number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}"):
        stages.run(compose_into(tmp_path, *TINY, "stage=prune"))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    state = torch.load(tmp_path / "prune.unfinished.ckpt", weights_only=True)
    assert state["global_step"] == 5
    assert not (tmp_path / "pruned.pt").exists()
    quiet()
    stages.run(compose_into(tmp_path, *TINY, "stage=prune"))
    record = json.loads((tmp_path / "pruning.json").read_text())
    assert [event["step"] for event in record["history"]] == [2, 4, 6]
    assert record["curve"]["iterations"] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "prune.unfinished.ckpt").exists()


def test_second_signal_stops_at_once(signalled, compose_into, tmp_path):
    stages.run(compose_into(tmp_path, *TINY, "stage=train"))
    signalled(3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit):
        stages.run(compose_into(tmp_path, *TINY, "stage=prune"))
    assert not (tmp_path / "prune.unfinished.ckpt").exists()


def test_signal_outside_of_training_says_which_stages_are_left(monkeypatch, compose_into, tmp_path):
    stages.run(compose_into(tmp_path, *TINY, "stage=[train,prune]"))

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "write_report", interrupted)
    with pytest.raises(Interrupted, match="stopped by SIGINT in stage compare") as stop:
        stages.run(compose_into(tmp_path, *TINY, "stage=[retrain,compare]"))
    assert stop.value.left == ("compare",)


def wait_for(condition, process, seconds=240):
    for _ in range(10 * seconds):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_ctrl_c_prints_the_command_that_resumes(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    words = [*TINY, LONG, "stage=[train,prune]", f"run={out}"]
    command = [sys.executable, "recipes/prune.py", *words]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.PIPE, text=True)
        wait_for((out / "prune.unfinished.ckpt").is_file, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    found = re.search(r"^error: stopped by SIGINT. Go on with: (python recipes/prune.py .*)$", errors, re.MULTILINE)
    assert found, errors
    python, *resumed = shlex.split(found[1])
    done = subprocess.run(
        [sys.executable, *resumed, "prune.trainer.max_steps=1"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (python, done.returncode) == ("python", 0), done.stderr
    assert (out / "pruned.pt").is_file()
    assert "Stage train" not in done.stdout
    assert not (out / "prune.unfinished.ckpt").exists()


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ([], "python recipes/prune.py run=/out"),
        (["seed=2", "run=/old"], "python recipes/prune.py seed=2 run=/out"),
        (["title='a b'"], """python recipes/prune.py 'title='"'"'a b'"'"'' run=/out"""),
    ],
    ids=str,
)
def test_resume_command_keeps_what_was_typed(typed, command):
    assert resume_command("/out", typed) == command
    assert shlex.split(command)[2:] == [*(word for word in typed if not word.startswith("run=")), "run=/out"]


def test_resume_command_names_the_stages_that_are_left():
    typed = ["stage=[prune,retrain,compare]", "seed=2"]
    assert (
        resume_command("/out", typed, ["retrain", "compare"])
        == "python recipes/prune.py seed=2 run=/out 'stage=[retrain,compare]'"
    )


def test_command_line_without_hydra_is_the_program():
    assert command_line() == "python recipes/prune.py"
