import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque

import pytest
import torch

from pidistill import load_teacher
from pidistill.cli import main
from pidistill.comparison.jobs import run_jobs, share_of_machine
from pidistill.comparison.plan import (
    is_finished,
    make_plan,
    open_run,
    take_run,
)
from pidistill.comparison.recipe import read_recipe
from pidistill.files import held, is_held
from pidistill.training.heartbeat import read_heartbeat

from recipes import RUNS, TINY, write_recipe

LONG = TINY.replace("budget.images = 48", "budget.images = 16_000_000").replace(
    "checkpointing_steps = 1", "checkpointing_steps = 1000"
)
ONE_RUN = RUNS.partition('[[run]]\nname = "BOOT"')[0]


def queue_of(folder, text=TINY, runs=RUNS):
    recipe = read_recipe(write_recipe(folder, text, runs))
    teacher = load_teacher(recipe.teacher)
    plan = make_plan(recipe, folder / "out", teacher, None, None)
    return deque(plan.runs()), plan.fingerprints


def taker(queue, fingerprint, told=None):
    told = [] if told is None else told
    return lambda: take_run(
        queue,
        fingerprint,
        on_finished=told.append,
        on_held=told.append,
        on_broken=lambda name, *_: told.append(name),
    )


def command(folder):
    """The comparison of `queue_of(folder)`, two runs at once."""
    command = [sys.executable, "-m", "pidistill", "compare", "--jobs", "2"]
    return [*command, "--recipe", str(folder / "recipe.toml"), "--out", str(folder / "out")]


def state_of(run):
    return read_heartbeat(run.folder).get("state")


def wait_for(condition, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_that_is_held_waits_and_one_that_is_finished_is_left_out(tmp_path):
    queue, fingerprint = queue_of(tmp_path)
    (_, first), (second_name, second), *_ = queue
    told = []
    take = taker(queue, fingerprint, told)
    open_run(first, fingerprint)
    with held(first.folder):
        assert take() == (second_name, second)
        assert len(queue) == 3
        held_name, last = queue[-1]
        assert last == first
        assert told == [held_name]
    while (taken := take()) is not None and taken[1] != first:
        pass
    assert taken == (held_name, first)
    assert take() is None
    assert not queue


def test_places_share_the_cores_and_the_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert share_of_machine(1, 3) == {"OMP_NUM_THREADS": "2"}
    assert share_of_machine(1, 30) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [share_of_machine(i, 3)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [share_of_machine(i, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["5", "7"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert "OMP_NUM_THREADS" not in share_of_machine(0, 2)


def test_jobs_that_are_asked_to_stop_save_their_state(tmp_path):
    queue, fingerprint = queue_of(tmp_path, LONG)
    runs = [run for _, run in queue]
    stop = threading.Event()
    for under_way, _ in run_jobs(
        taker(queue, fingerprint), lambda: bool(queue), 2, should_stop=stop.is_set
    ):
        assert len(under_way) <= 2
        if all(state_of(run) == "training" for run in runs[:2]):
            stop.set()
    assert len(queue) == 2
    for run in runs[:2]:
        assert state_of(run) == "stopped"
        (checkpoint,) = (run.folder / "state").iterdir()
        assert 0 < int(checkpoint.name.removeprefix("step-")) < run.config.max_train_steps


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "its process was ended by SIGKILL; run the command again"),
        (
            signal.SIGTERM,
            "it was asked to stop, and has saved its state; run the command again",
        ),
    ],
)
def test_a_job_that_somebody_else_ends_is_a_failure_that_says_so(tmp_path, number, words):
    queue, fingerprint = queue_of(tmp_path, LONG.replace("[0, 1]", "[0]"), ONE_RUN)
    failures = []
    for under_way, ended in run_jobs(taker(queue, fingerprint), lambda: bool(queue), 2):
        for job in under_way:
            if state_of(job.run) == "training":
                job.process.send_signal(number)
        failures += [job.failure() for job in ended]
    assert failures == [words]


def test_a_job_whose_run_another_process_took_is_told_apart(tmp_path):
    queue, fingerprint = queue_of(tmp_path, TINY.replace("[0, 1]", "[0]"), ONE_RUN)
    (_, run), *_ = queue
    open_run(run, fingerprint)
    taken = [queue.popleft()]
    with held(run.folder):
        others = []
        for _, ended in run_jobs(lambda: taken.pop() if taken else None, lambda: bool(taken), 1):
            others += [job.was_held for job in ended]
    assert others == [True]


def test_ctrl_c_saves_all_that_train(tmp_path):
    queue, _ = queue_of(tmp_path, LONG)
    runs = [run for _, run in queue][:2]
    with subprocess.Popen(
        command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        wait_for(lambda: all(state_of(run) == "training" for run in runs))
        parent.send_signal(signal.SIGINT)
        said, errors = parent.communicate()
    assert parent.returncode == 130
    assert said.count("stopped, its state saved") == 2
    assert "done" not in said
    assert "interrupted" in errors
    assert all(state_of(run) == "stopped" for run in runs)


def test_jobs_end_with_the_process_that_started_them_however_that_ends(tmp_path):
    """And the next one takes over where they stopped."""
    queue, fingerprint = queue_of(tmp_path, LONG)
    runs = [run for _, run in queue][:2]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(tmp_path), **quiet) as parent:
        wait_for(lambda: all(state_of(run) == "training" for run in runs))
        parent.kill()
    wait_for(lambda: all(state_of(run) == "stopped" for run in runs))
    wait_for(lambda: not any(is_held(run.folder) for run in runs))
    assert not any(is_finished(run) for run in runs)
    assert taker(queue, fingerprint)()[1] == runs[0]


@pytest.mark.parametrize("jobs", [2, 3])
def test_the_tables_do_not_depend_on_the_number_of_jobs(tmp_path, jobs):
    found = []
    for number in (1, jobs):
        recipe = write_recipe(tmp_path, TINY, RUNS)
        out = tmp_path / f"out-{number}"
        arguments = ["compare", "--recipe", str(recipe), "--out", str(out), "--cost-repeats", "0"]
        assert main([*arguments, "--jobs", str(number)]) == 0
        rows = json.loads((out / "comparison.json").read_text())["sections"]["Runs"]
        found.append([{k: v for k, v in row.items() if k != "train_seconds"} for row in rows])
    assert found[0] == found[1]
