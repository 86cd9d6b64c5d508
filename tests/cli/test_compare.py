"""`pidistill compare`, end to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pidistill.cli import main
from pidistill.comparison import costs
from pidistill.comparison.costs import Cost
from pidistill.training.assemble import build_trainer
from pidistill.training.clock import by_the_clock
from pidistill.training.run_folder import read_config

from method_runs import log_lines, small, train
from recipes import RUNS, SWEEP, TINY, plan_of, write_recipe

ONE_RUN, _, _ = RUNS.partition('[[run]]\nname = "BOOT"')


def arguments(recipe, out):
    return ["compare", "--recipe", str(recipe), "--out", str(out), "--cost-repeats", "0"]


def compare(folder, *parts):
    """The results of a recipe of `parts`, in `folder / "out"`."""
    assert main(arguments(write_recipe(folder, *parts), folder / "out")) == 0
    return content_of(folder / "out")


def content_of(out):
    """The results, without provenance and times."""
    content = json.loads((out / "comparison.json").read_text())
    for rows in content["sections"].values():
        for row in rows:
            row.pop("train_seconds", None)
    return content["sections"], content["teacher"]


def start(recipe, out, *more, **streams):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "pidistill", *arguments(recipe, out), *more]
    return subprocess.Popen(
        command, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams}
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)


def compare_folders(capsys, *folders):
    named = [str(folder) for folder in folders]
    assert main(["compare", *named, "--num", "16", "--cost-repeats", "0", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    compare(folder, TINY, RUNS, SWEEP)
    return folder / "out"


def test_a_comparison_leaves_tables_plots_and_a_page(done):
    page = (done / "comparison.html").read_text()
    table = (done / "comparison.md").read_text()
    for name in ("PID", "BOOT", "0.05", "0.1"):
        assert f"<td>{name}</td>" in page
        assert f"| {name} |" in table
    assert "How wide the difference is." in page
    assert "<svg" in page
    assert "![runs](plots/runs.png)" in table
    columns = table.splitlines()[4]
    assert columns == "|  | NFE | error | data needed |"
    assert table.splitlines()[5] == "| --- | ---: | ---: | ---: |"
    assert 'src="http' not in page
    assert {file.name for file in (done / "plots").iterdir()} == {"runs.png", "step.png"}
    pid, boot = content_of(done)[0]["Runs"]
    assert (pid["teacher_evals"], boot["teacher_evals"]) == (48, 96)
    assert pid["images"] == boot["images"] == 48
    assert pid["seeds"] == [0, 1]
    assert len(pid["metrics"]["1"]["rms_error"]["values"]) == 2


def test_nothing_finished_is_trained_again_and_json_is_the_file(done, capsys):
    before = content_of(done)
    weights = {file: file.stat().st_mtime_ns for file in done.glob("runs/*/student.safetensors")}
    recipe = write_recipe(done.parent, TINY, RUNS, SWEEP)
    capsys.readouterr()
    assert main([*arguments(recipe, done), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((done / "comparison.json").read_text())
    assert printed.err.count("finished before") == 6
    assert content_of(done) == before
    assert weights == {file: file.stat().st_mtime_ns for file in weights}


def test_a_comparison_that_is_killed_goes_on(done, tmp_path):
    """At two moments of its life, each in the middle of the next run; and in another order."""
    out = tmp_path / "out"
    recipe = write_recipe(tmp_path, TINY, RUNS, SWEEP)
    last = "runs/*/state/step-000000003"
    for finished in (1, 3):
        process = start(recipe, out)
        wait_for(lambda n=finished: len(list(out.glob(last))) >= n, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {file: os.stat(file).st_ino for file in out.glob(last)}
    assert len(kept) >= 3
    first, second = RUNS.split("[[run]]")[1:]
    found, teacher = compare(tmp_path, TINY, f"[[run]]{second}[[run]]{first}", SWEEP)
    assert {file: os.stat(file).st_ino for file in kept} == kept
    expected, expected_teacher = content_of(done)
    assert found["Runs"][::-1] == expected["Runs"]
    assert found["Step"] == expected["Step"]
    assert teacher == expected_teacher


def test_ctrl_c_saves_the_run_that_trains(tmp_path):
    text = TINY.replace("images = 48", "images = 16_000_000").replace(
        "ing_steps = 1", "ing_steps = 9999"
    )
    (_, run), *_ = plan_of(tmp_path, text, ONE_RUN).runs()
    process = start(tmp_path / "recipe.toml", tmp_path / "out", stderr=subprocess.PIPE)
    wait_for((run.folder / "metrics.jsonl").is_file, process)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1].decode()
    assert process.returncode == 130, errors
    (checkpoint,) = (run.folder / "state").iterdir()
    assert 0 < int(checkpoint.name.removeprefix("step-")) < run.config.max_train_steps


def test_two_commands_share_a_folder(tmp_path):
    """Neither takes the other's run for a failure, and both end with the tables."""
    text = TINY.replace("images = 48", "images = 1600").replace("checkpointing_steps = 1", "")
    recipe = write_recipe(tmp_path, text, RUNS)
    started = [
        start(recipe, tmp_path / "out", "--json", stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    sections = [json.loads(process.communicate()[0])["sections"] for process in started]
    assert sections[0] == sections[1]
    assert all("failures" not in row for row in sections[0]["Runs"])


def test_a_run_that_diverges_is_a_line_of_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(costs, "measure_cost", lambda config: Cost(0.5, 0.0, 7))
    bad = '[[run]]\nname = "too fast"\nsettings.learning_rate = 1e30\n'
    text = TINY.replace("images = 48", "images = 96").replace("[0, 1]", "[0]")
    recipe = write_recipe(tmp_path, text, bad, ONE_RUN, SWEEP)
    command = arguments(recipe, tmp_path / "out")
    assert main([*command[:-1], "1"]) == 0
    sections = json.loads((tmp_path / "out/comparison.json").read_text())["sections"]
    row, *others = sections["Runs"] + sections["Step"]
    assert set(row["failures"]) == {"0"}
    assert row["metrics"] == {}
    assert "cost" not in row
    for other in others:
        assert other["metrics"]
        assert other["cost"] == {"ms_per_step": 500, "memory": 7}
    assert "1 of 1 failed" in capsys.readouterr().out
    assert row["failures"]["0"] in (tmp_path / "out/comparison.html").read_text()


def test_the_tables_are_there_before_the_steps_are_timed(tmp_path, monkeypatch):
    def interrupt(config):
        assert (tmp_path / "out/comparison.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(costs, "measure_cost", interrupt)
    recipe = write_recipe(tmp_path, TINY.replace("[0, 1]", "[0]"), ONE_RUN)
    assert main(["compare", "--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 130
    assert (tmp_path / "out/comparison.html").is_file()


def test_a_wrong_reference_is_an_error_before_the_training(tmp_path, capsys):
    recipe = write_recipe(tmp_path, 'reference = "none.npz"\n' + TINY, RUNS)
    assert main(arguments(recipe, tmp_path / "out")) == 2
    assert "none.npz" in capsys.readouterr().err
    assert not (tmp_path / "out/runs").exists()


def test_a_budget_in_seconds_is_spent_though_the_run_is_killed(tmp_path):
    """The clock goes on where the last checkpoint left it, and the decay ends with the time."""
    text = TINY.replace("budget.images = 48", "budget.seconds = 0.4").replace("[0, 1]", "[0]")
    text = text.replace("ing_steps = 1", "ing_steps = 10\nlogging_steps = 10")
    (_, run), *_ = plan_of(tmp_path, text, ONE_RUN).runs()
    run.open()
    trainer = build_trainer(run.config, run.folder)
    for report in trainer.run(by_the_clock(trainer, 0.4, lambda: False)):
        if report.step == 15:
            break
    (row,) = compare(tmp_path, text, ONE_RUN)[0]["Runs"]
    lines = log_lines(run.folder)
    assert 0.4 <= lines[-1]["seconds"] < 0.5
    assert lines[-1]["step"] == row["steps"] == read_config(run.folder).max_train_steps > 15
    rates = [line["learning_rate"] / 1e-3 for line in lines[2:-1]]
    left = [1 - line["seconds"] / 0.4 for line in lines[2:-1]]
    assert rates == pytest.approx(left, abs=0.1)
    assert compare(tmp_path, text, ONE_RUN)[0]["Runs"] == [row]


def test_the_table_has_the_best_learning_rate_of_every_method(tmp_path, capsys):
    text = TINY.replace("[0, 1]", "[0]").replace("images = 48", "images = 320")
    text = text.replace("checkpointing_steps = 1", "")
    rule = "[learning_rates]\nmultiples = [1, 2]\nmost = 3\nshare = 0.5\n"
    rows = compare(tmp_path, text, rule, RUNS)[0]["Runs"]
    for row in rows:
        search = row["search"]
        results = search["results"]
        assert float(min(results, key=results.get)) == search["multiple"]
        config = read_config(tmp_path / "out/runs" / row["folders"][0])
        assert config.learning_rate_scale == search["multiple"]
        assert row["rate"] == pytest.approx(1e-3 * search["multiple"])
        assert search["teacher_evals"] == len(results) * row["teacher_evals"] / 2
    capsys.readouterr()
    assert compare(tmp_path, text, rule, RUNS)[0]["Runs"] == rows
    tries = sum(len(row["search"]["results"]) for row in rows)
    assert capsys.readouterr().out.count("finished before") == len(rows) + tries
    assert "learning rate" in (tmp_path / "out/comparison.html").read_text()


def test_a_run_that_was_cut_is_what_its_checkpoint_says(tmp_path, capsys):
    """Not what its log says, which may be further."""
    train(small("pid", logging_steps=1, max_train_steps=9), tmp_path / "a" / "run", abandon_at=6)
    train(small("pid", seed=1, max_train_steps=4), tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "state")  # then its log says
    folders = [tmp_path / "a" / "run", tmp_path / "c"]
    (row,) = compare_folders(capsys, *folders)["sections"]["Runs"]
    assert (row["steps"], row["images"], row["teacher_evals"]) == (4, 32, 32)
    assert row["seeds"] == [0, 1]


def test_folders_are_compared_on_the_same_terms(tmp_path, capsys):
    for name, method, seed in (("x/a", "pid", 0), ("b", "pid", 1), ("y/a", "boot", 0)):
        train(small(method, seed=seed), tmp_path / name)
    content = compare_folders(capsys, *(tmp_path / name for name in ("x/a", "b", "y/a")))
    pid, boot = content["sections"]["Runs"]
    assert pid["seeds"] == [0, 1]
    assert pid["folders"] == ["a", "b"]
    assert boot["method"] == "boot"
    assert str(tmp_path / "y/a") in boot["name"]
    assert pid["images"] == boot["images"] == 80
    assert len(pid["metrics"]["1"]["rms_error"]["values"]) == 2
    assert " --cost-repeats 0" in content["provenance"]["command"]


def test_the_columns_of_the_contract_are_measured(tmp_path, capsys):
    train(small("pid", teacher="digits"), tmp_path / "run")
    command = ["compare", str(tmp_path / "run"), "--num", "40", "--reference", "digits"]
    command += ["--cost-repeats", "1", "--out", str(tmp_path / "table"), "--json"]
    assert main(command) == 0
    content = json.loads(capsys.readouterr().out)
    (row,) = content["sections"]["Runs"]
    (metrics,) = row["metrics"].values()
    assert metrics["frechet_distance"]["mean"] > content["teacher"]["frechet_distance"]
    assert content["teacher"]["reference_split_frechet_distance"] > 0
    assert row["cost"]["ms_per_step"] > 0
    assert row["cost"]["memory"] >= 0
    assert row["teacher_evals"] == row["images"] == 80
    assert "data:image/png" in (tmp_path / "table/comparison.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run folders or --recipe"),
        (["{a}", "--recipe", "x.toml"], "run folders or --recipe"),
        (["--recipe", "none.toml"], "does not exist"),
        (["--recipe", "none.toml", "--num", "4"], "--num"),
        (["{a}", "{a}"], "same configuration and seed"),
        (["{a}", "{digits}"], "digits"),
        (["none"], "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, refused, arguments, words):
    train(small("pid", max_train_steps=1), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "digits")
    config = tmp_path / "digits/config.toml"
    config.write_text(config.read_text().replace("mixture:ring", "digits"))
    named = [text.format(a=tmp_path / "a", digits=tmp_path / "digits") for text in arguments]
    refused(["compare", *named], words)
