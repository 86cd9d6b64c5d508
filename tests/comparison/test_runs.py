import shutil
from types import SimpleNamespace

import pytest

from pidistill import PidistillError
from pidistill.comparison import runs as module
from pidistill.comparison.runs import train_missing
from pidistill.files import held
from pidistill.settings import read_toml
from pidistill.training.assemble import build_trainer

from recipes import RUNS, TINY, plan_of


def train(name, run):
    list(build_trainer(run.config, run.folder).run())


def first_run(folder, text=TINY):
    (_, run), *_ = plan_of(folder, text, RUNS).runs()
    return run


def test_what_may_change_is_changed_in_an_existing_folder(tmp_path):
    run = first_run(tmp_path)
    run.open()
    text = TINY.replace("checkpointing_steps = 1", "checkpointing_steps = 7\nmax_micro_batch = 4")
    again = first_run(tmp_path, text)
    assert again.folder == run.folder
    again.open()
    config = read_toml(run.folder / "config.toml")
    assert (config["checkpointing_steps"], config["max_micro_batch"]) == (7, 4)


@pytest.mark.parametrize(
    ("old", "new"),
    [("batch_size = 16", "batch_size = 4"), ("seed = 0", "seed = 5"), ("_steps = 3", "_steps = 4")],
)
def test_a_folder_of_another_configuration_is_refused(tmp_path, old, new):
    run = first_run(tmp_path)
    run.open()
    run.open()
    file = run.folder / "config.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(PidistillError, match=run.folder.name):
        run.open()


def test_a_run_is_finished_with_its_last_checkpoint(tmp_path):
    run = first_run(tmp_path)
    run.open()
    for report in build_trainer(run.config, run.folder).run():
        assert run.is_finished() == (report.step == run.config.max_train_steps)
    last = (run.folder / "student.safetensors").read_bytes()
    shutil.copy(run.folder / "state/step-000000002/student.safetensors", run.folder)
    assert not run.is_finished()  # it died before it wrote them
    train("", run)
    assert run.is_finished()
    assert (run.folder / "student.safetensors").read_bytes() == last


def test_a_held_run_is_left_to_the_end(tmp_path, monkeypatch):
    """Whether another process holds it from the start, or was a little faster."""
    runs = plan_of(tmp_path, TINY, RUNS).runs()
    first, second, third, fourth = (run for _, run in runs)
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

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=release))
    assert train_missing(runs, train_one, said.append) == {}
    assert trained == [second, fourth, first, third]
    assert any("[1/4]" in text and "[3/4]" in text for text in said)
    said.clear()
    assert train_missing(runs, train_one, said.append) == {}
    assert ["finished before" in text for text in said] == [True] * 4


@pytest.mark.parametrize("error", [PidistillError("no good"), RuntimeError("a bug"), MemoryError()])
def test_a_run_that_fails_leaves_the_others_alone(tmp_path, error):
    runs = plan_of(tmp_path, TINY, RUNS).runs()
    first, *others = (run for _, run in runs)
    trained = []

    def train_one(name, run):
        if run == first:
            raise error
        trained.append(run)

    failures = train_missing(runs, train_one, lambda text: None)
    assert failures == {first.folder: str(error) or "MemoryError"}
    assert trained == others


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_no_run_would_survive_ends_the_comparison(tmp_path, error):
    def train_one(name, run):
        raise error

    with pytest.raises(type(error)):
        train_missing(plan_of(tmp_path, TINY, RUNS).runs(), train_one, lambda text: None)


def test_a_run_whose_checkpoints_are_damaged_is_a_failure(tmp_path):
    runs = plan_of(tmp_path, TINY.replace("[0, 1]", "[0]"), RUNS).runs()
    train_missing(runs, train, lambda text: None)
    (_, damaged), _ = runs
    for manifest in damaged.folder.glob("state/*/*.json"):
        manifest.write_text("{")
    failures = train_missing(runs, train, lambda text: None)
    assert list(failures) == [damaged.folder]
    assert "damaged" in failures[damaged.folder]
