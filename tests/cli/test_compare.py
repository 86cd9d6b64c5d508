"""`pidistill compare` and `pidistill ablate`, end to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from pidistill import load_teacher
from pidistill.cli import main, train_runs
from pidistill.comparison.plan import make_plan, open_run
from pidistill.comparison.recipe import read_recipe

from method_runs import small, train
from recipes import RUNS, SWEEP, TINY, write_recipe


def compare(recipe, out, *more, verb="compare"):
    arguments = [verb, "--recipe", str(recipe), "--out", str(out), "--cost-repeats", "0"]
    assert main([*arguments, *more]) == 0


def content_of(out):
    """What was found, without where and how fast."""
    content = json.loads((out / "comparison.json").read_text())
    for rows in content["sections"].values():
        for row in rows:
            del row["train_seconds"]
    return content["sections"], content["teacher"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    compare(write_recipe(folder, TINY, RUNS, SWEEP), folder / "out")
    return folder / "out"


def test_a_comparison_leaves_tables_and_a_page(done):
    page = (done / "comparison.html").read_text()
    table = (done / "comparison.md").read_text()
    for name in ("PID", "BOOT", "0.05", "0.1"):
        assert name in page
        assert f"| {name} |" in table
    assert "<svg" in page
    assert 'src="http' not in page
    assert {file.name for file in (done / "plots").iterdir()} == {"runs.png", "step.png"}
    runs = content_of(done)[0]["Runs"]
    assert [row["name"] for row in runs] == ["PID", "BOOT"]
    assert runs[0]["teacher_evals"] == 48
    assert runs[1]["teacher_evals"] == 96
    assert runs[0]["seeds"] == [0, 1]
    assert len(runs[0]["metrics"]["1"]["rms_error"]["values"]) == 2


def test_the_order_of_the_runs_does_not_matter(done, tmp_path):
    first, second = RUNS.split("[[run]]")[1:]
    recipe = write_recipe(tmp_path, TINY, f"[[run]]{second}[[run]]{first}")
    compare(recipe, tmp_path / "out")
    turned = content_of(tmp_path / "out")[0]["Runs"]
    assert turned[::-1] == content_of(done)[0]["Runs"]


def test_nothing_finished_is_trained_again(done, capsys):
    before = content_of(done)
    weights = {file: file.stat().st_mtime_ns for file in done.glob("runs/*/student.safetensors")}
    recipe = write_recipe(done.parent, TINY, RUNS, SWEEP)
    capsys.readouterr()
    compare(recipe, done)
    assert capsys.readouterr().out.count("finished before") == 6
    assert content_of(done) == before
    assert weights == {file: file.stat().st_mtime_ns for file in weights}


def test_json_on_stdout_is_the_file(done, capsys):
    recipe = write_recipe(done.parent, TINY, RUNS, SWEEP)
    capsys.readouterr()
    compare(recipe, done, "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((done / "comparison.json").read_text())


def test_a_comparison_that_is_killed_goes_on(done, tmp_path):
    """At three moments of its life, each in the middle of the next run."""
    recipe = write_recipe(tmp_path, TINY, RUNS, SWEEP)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pidistill", "compare", "--recipe", str(recipe)]
    command += ["--out", str(out), "--cost-repeats", "0"]
    for finished in (1, 3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        while len(list(out.glob("runs/*/state/step-000000003"))) < finished:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {file: os.stat(file).st_ino for file in out.glob("runs/*/state/step-000000003")}
    assert len(kept) >= 3
    compare(recipe, out)
    assert {file: os.stat(file).st_ino for file in kept} == kept
    found, expected = content_of(out), content_of(done)
    assert found == expected


def test_a_run_that_diverges_is_a_line_of_the_table(tmp_path, capsys):
    bad = '[[run]]\nname = "too fast"\nsettings.learning_rate = 1e30\n'
    text = TINY.replace("budget.images = 48", "budget.images = 96")
    recipe, out = (
        write_recipe(tmp_path, text, bad, RUNS.partition('[[run]]\nname = "BOOT"')[0]),
        tmp_path / "out",
    )
    assert main(["compare", "--recipe", str(recipe), "--out", str(out), "--cost-repeats", "1"]) == 0
    row, good = json.loads((tmp_path / "out/comparison.json").read_text())["sections"]["Runs"]
    assert set(row["failures"]) == {"0", "1"}
    assert "the loss is nan" in row["failures"]["0"]
    assert row["metrics"] == {}
    assert good["metrics"]
    assert good["cost"]["ms_per_step"] > 0
    assert "cost" not in row
    assert "2 of 2 failed" in capsys.readouterr().out


def test_a_run_without_memory_is_a_line_of_the_table(tmp_path, monkeypatch):
    train_one = train_runs.train

    def train(trainer, out, name):
        if name.endswith("PID, seed 0"):
            raise torch.OutOfMemoryError("no more")
        train_one(trainer, out, name)

    monkeypatch.setattr(train_runs, "train", train)
    compare(write_recipe(tmp_path, TINY, RUNS), tmp_path / "out")
    pid, boot = json.loads((tmp_path / "out/comparison.json").read_text())["sections"]["Runs"]
    assert list(pid["failures"]) == ["0"]
    assert "out of memory: no more" in pid["failures"]["0"]
    assert "failures" not in boot


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_no_run_would_survive_ends_the_comparison(tmp_path, capsys, jobs):
    recipe, out = write_recipe(tmp_path, TINY, RUNS), tmp_path / "out"
    plan = make_plan(read_recipe(recipe), out, load_teacher("mixture:ring"), None, None)
    for _, run in plan.runs():
        open_run(run, plan.fingerprints)
        (run.folder / "metrics.jsonl").mkdir()  # no log can be written
    assert main(["compare", "--recipe", str(recipe), "--out", str(out), "--jobs", str(jobs)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert "metrics.jsonl" in errors[-1]
    assert not (out / "comparison.json").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_whose_checkpoints_are_damaged_is_a_line_of_the_table(tmp_path, jobs):
    recipe, out = write_recipe(tmp_path, TINY, RUNS), tmp_path / "out"
    compare(recipe, out)
    damaged = min((out / "runs").glob("pid-*"))
    for manifest in damaged.glob("state/*/*.json"):
        manifest.write_text("{")
    compare(recipe, out, "--jobs", str(jobs))
    pid, boot = json.loads((out / "comparison.json").read_text())["sections"]["Runs"]
    assert f"are damaged; move {damaged} away to train anew" in pid["failures"]["0"]
    assert "failures" not in boot


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_two_commands_share_a_folder(tmp_path, jobs):
    """Neither takes the other's run for a failure, and both end with the tables."""
    text = TINY.replace("budget.images = 48", "budget.images = 1600")
    recipe = write_recipe(tmp_path, text.replace("checkpointing_steps = 1", ""), RUNS)
    command = [sys.executable, "-m", "pidistill", "compare", "--recipe", str(recipe)]
    command += ["--out", str(tmp_path / "out"), "--cost-repeats", "0", "--json", "--jobs", jobs]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    sections = [json.loads(process.communicate()[0])["sections"] for process in started]
    assert sections[0] == sections[1]
    assert all("failures" not in row for row in sections[0]["Runs"])


def test_the_tables_are_there_before_the_steps_are_timed(tmp_path, monkeypatch):
    def cut(config):
        assert (tmp_path / "out/comparison.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("pidistill.comparison.costs.in_fresh_process", cut)
    recipe = write_recipe(tmp_path, TINY.replace("[0, 1]", "[0]"), RUNS)
    assert main(["compare", "--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 130
    assert (tmp_path / "out/comparison.html").is_file()


def test_ablate_times_steps_where_it_is_asked_to(tmp_path):
    recipe = write_recipe(tmp_path, TINY.replace("[0, 1]", "[0]"), SWEEP)
    arguments = ["ablate", "--recipe", str(recipe), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--cost-repeats", "1"]) == 0
    rows = json.loads((tmp_path / "out/comparison.json").read_text())["sections"]["Step"]
    assert all(row["cost"]["ms_per_step"] > 0 for row in rows)


def test_jobs_and_a_budget_in_seconds_do_not_go_together(tmp_path, capsys):
    text = TINY.replace("budget.images = 48", "budget.seconds = 8.0")
    recipe = write_recipe(tmp_path, text, RUNS)
    assert main(["compare", "--recipe", str(recipe), "--jobs", "2"]) == 2
    assert "leave --jobs out" in capsys.readouterr().err


def test_a_reference_that_nothing_can_judge_is_said(tmp_path, capsys):
    text = TINY.replace("mixture:ring", "mixture:image").replace("[0, 1]", "[0]")
    images = tmp_path / "images.npz"
    np.savez(images, samples=np.zeros((4, 3, 8, 8), dtype=np.float32))
    text = f'reference = "{images}"\n' + text
    compare(write_recipe(tmp_path, text, RUNS), tmp_path / "out")
    assert "no Frechet distances: no bundled classifier" in capsys.readouterr().out
    assert "reference" not in json.loads((tmp_path / "out/comparison.json").read_text())


def test_a_run_that_was_cut_is_what_its_checkpoint_says(tmp_path, capsys):
    """Not what its log says, which may be further."""
    train(small("pid", logging_steps=1, max_train_steps=9), tmp_path / "a" / "run", abandon_at=6)
    train(small("pid", logging_steps=1, max_train_steps=4), tmp_path / "b" / "run")
    folders = [str(tmp_path / name / "run") for name in "ab"]
    assert main(["compare", *folders, "--num", "16", "--cost-repeats", "0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["sections"]["Runs"]
    assert [row["steps"] for row in rows] == [4, 4]
    assert [row["teacher_evals"] for row in rows] == [32, 32]
    assert len({row["name"] for row in rows}) == 2


def test_a_run_that_was_kept_without_its_checkpoints_is_what_its_log_says(tmp_path, capsys):
    train(small("pid", max_train_steps=4), tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "state")
    arguments = ["compare", str(tmp_path / "a"), "--num", "16", "--cost-repeats", "0", "--json"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    (row,) = content["sections"]["Runs"]
    assert row["steps"] == 4
    assert row["teacher_evals"] == row["images"]
    assert " --cost-repeats 0" in content["provenance"]["command"]


def test_the_steps_of_runs_are_no_column_of_sweeps(tmp_path):
    sweep = SWEEP.replace("0.1]", "0.2]")
    recipe = write_recipe(tmp_path, TINY.replace("[0, 1]", "[0]"), RUNS, sweep)
    arguments = ["compare", "--recipe", str(recipe), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--cost-repeats", "1"]) == 0
    runs, swept = (tmp_path / "out" / "comparison.md").read_text().split("## Step")
    assert "ms/step" in runs
    assert "ms/step" not in swept


def test_ablate_wants_a_sweep(tmp_path, capsys):
    recipe = write_recipe(tmp_path, TINY, RUNS)
    assert main(["ablate", "--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "no [[sweep]]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ablate_draws_every_sweep(tmp_path):
    recipe = write_recipe(tmp_path, TINY.replace("[0, 1]", "[0]"), SWEEP)
    compare(recipe, tmp_path / "out", verb="ablate")
    assert (tmp_path / "out/plots/step.png").stat().st_size > 1000
    assert "How wide the difference is." in (tmp_path / "out/comparison.html").read_text()


def test_folders_are_compared_on_the_same_terms(tmp_path, capsys):
    for name, method, seed in (("a", "pid", 0), ("b", "pid", 1), ("c", "boot", 0)):
        train(small(method, seed=seed), tmp_path / name)
    folders = [str(tmp_path / name) for name in "abc"]
    arguments = ["compare", *folders, "--num", "16", "--cost-repeats", "0", "--json"]
    assert main(arguments) == 0
    pid, boot = json.loads(capsys.readouterr().out)["sections"]["Runs"]
    assert pid["seeds"] == [0, 1]
    assert pid["folders"] == ["a", "b"]
    assert boot["method"] == "boot"
    assert pid["images"] == boot["images"] == 80
    assert len(pid["metrics"]["1"]["rms_error"]["values"]) == 2


def test_the_columns_of_the_contract_are_measured(tmp_path, capsys):
    train(small("pid", teacher="digits"), tmp_path / "run")
    arguments = ["compare", str(tmp_path / "run"), "--num", "40", "--reference", "digits"]
    assert (
        main([*arguments, "--cost-repeats", "1", "--out", str(tmp_path / "table"), "--json"]) == 0
    )
    content = json.loads(capsys.readouterr().out)
    (row,) = content["sections"]["Runs"]
    assert row["metrics"]["1"]["frechet_distance"]["mean"] > content["teacher"]["frechet_distance"]
    assert row["cost"]["ms_per_step"] > 0
    assert row["cost"]["memory"] >= 0
    assert row["teacher_evals"] == row["images"] == 80
    assert "data:image/png" in (tmp_path / "table/comparison.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name either run folders or --recipe"),
        (["{a}", "--recipe", "x.toml"], "name either run folders or --recipe"),
        (["--recipe", "none.toml"], "does not exist"),
        (["{a}", "{a}"], "one configuration and seed"),
        (["{a}", "{digits}"], "compare runs of one teacher"),
        (["none"], "does not exist"),
        (["{a}", "--jobs", "2"], "--jobs is for a --recipe"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, arguments, words):
    train(small("pid"), tmp_path / "a")
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/config.toml").write_text('teacher = "digits"\n[method]\nname = "pid"\n')
    named = [text.format(a=tmp_path / "a", digits=tmp_path / "digits") for text in arguments]
    assert main(["compare", *named]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("error:") == 1


def test_a_budget_in_seconds_is_measured_once_and_kept(tmp_path):
    text = TINY.replace("budget.images = 48", "budget.seconds = 0.3").replace("[0, 1]", "[0]")
    recipe = write_recipe(tmp_path, text, RUNS.split('[[run]]\nname = "BOOT"')[0])
    compare(recipe, tmp_path / "out")
    (pace,) = json.loads((tmp_path / "out/paces.json").read_text()).values()
    (row,) = json.loads((tmp_path / "out/comparison.json").read_text())["sections"]["Runs"]
    assert row["steps"] == int(0.3 / pace["seconds_per_step"])
    weights = list((tmp_path / "out").glob("runs/*/student.safetensors"))
    before = [file.stat().st_mtime_ns for file in weights]
    compare(recipe, tmp_path / "out")
    assert [file.stat().st_mtime_ns for file in weights] == before
