import shutil
from types import SimpleNamespace

import pytest

from pidistill import PidistillError
from pidistill.comparison import train as training
from pidistill.comparison.train import is_finished, open_run, train_missing
from pidistill.files import held
from pidistill.settings import read_toml
from pidistill.training.assemble import build_trainer

from recipes import RUNS, TINY, plan_of


def train(name, run):
    list(build_trainer(run.config, run.folder).run())


def test_what_may_change_is_changed_in_an_existing_folder(tmp_path):
    ((_, run), *_) = plan_of(tmp_path, TINY, RUNS).runs()
    open_run(run)
    text = TINY.replace("checkpointing_steps = 1", "checkpointing_steps = 7\nmax_micro_batch = 4")
    ((_, again), *_) = plan_of(tmp_path, text, RUNS).runs()
    assert again.folder == run.folder
    open_run(again)
    config = read_toml(run.folder / "config.toml")
    assert (config["checkpointing_steps"], config["max_micro_batch"]) == (7, 4)


@pytest.mark.parametrize(
    ("old", "new"),
    [("batch_size = 16", "batch_size = 4"), ("seed = 0", "seed = 5"), ("_steps = 3", "_steps = 4")],
)
def test_a_folder_of_another_configuration_is_refused(tmp_path, old, new):
    ((_, run), *_) = plan_of(tmp_path, TINY, RUNS).runs()
    open_run(run)
    open_run(run)
    file = run.folder / "config.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(PidistillError, match=run.folder.name):
        open_run(run)


def test_a_run_is_finished_with_its_last_checkpoint(tmp_path):
    ((_, run), *_) = plan_of(tmp_path, TINY, RUNS).runs()
    open_run(run)
    for report in build_trainer(run.config, run.folder).run():
        assert is_finished(run) == (report.step == run.config.max_train_steps)
    last = (run.folder / "student.safetensors").read_bytes()
    shutil.copy(run.folder / "state/step-000000002/student.safetensors", run.folder)
    assert not is_finished(run)  # it died before it wrote them
    train("", run)
    assert is_finished(run)
    assert (run.folder / "student.safetensors").read_bytes() == last


def test_a_held_run_is_left_to_the_end(tmp_path, monkeypatch):
    """Whether another process holds it from the start, or was a little faster."""
    plan = plan_of(tmp_path, TINY, RUNS)
    first, second, third, fourth = (run for _, run in plan.runs())
    trained, said = [], []
    holds = [held(first.folder), held(third.folder)]
    holds[0].__enter__()

    def train_one(name, run):
        if run == third and len(trained) == 1:
            holds[1].__enter__()
        train(name, run)
        trained.append(run)

    def release(seconds):
        for hold in holds:
            hold.__exit__(None, None, None)

    monkeypatch.setattr(training, "time", SimpleNamespace(sleep=release))
    assert train_missing(plan, train_one, said.append) == {}
    assert trained == [second, fourth, first, third]
    assert any("[1/4]" in text and "[3/4]" in text for text in said)
    said.clear()
    assert train_missing(plan, train_one, said.append) == {}
    assert len(said) == 4
    assert all("finished before" in text for text in said)


@pytest.mark.parametrize("error", [PidistillError("no good"), RuntimeError("a bug"), MemoryError()])
def test_a_run_that_fails_leaves_the_others_alone(tmp_path, error):
    plan = plan_of(tmp_path, TINY, RUNS)
    first, *others = (run for _, run in plan.runs())
    trained = []

    def train_one(name, run):
        if run == first:
            raise error
        trained.append(run)

    failures = train_missing(plan, train_one, lambda text: None)
    assert failures == {first.folder: str(error) or "MemoryError"}
    assert trained == others


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_no_run_would_survive_ends_the_comparison(tmp_path, error):
    def train_one(name, run):
        raise error

    with pytest.raises(type(error)):
        train_missing(plan_of(tmp_path, TINY, RUNS), train_one, lambda text: None)


def test_a_run_whose_checkpoints_are_damaged_is_a_failure(tmp_path):
    plan = plan_of(tmp_path, TINY.replace("[0, 1]", "[0]"), RUNS)
    train_missing(plan, train, lambda text: None)
    (_, damaged), _ = plan.runs()
    for manifest in damaged.folder.glob("state/*/*.json"):
        manifest.write_text("{")
    failures = train_missing(plan, train, lambda text: None)
    assert list(failures) == [damaged.folder]
    assert "damaged" in failures[damaged.folder]
