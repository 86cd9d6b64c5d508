"""Trackers see what metrics.jsonl holds, and each step once."""

import pytest

from pidistill import PidistillError
from pidistill.cli import main
from pidistill.training import tracking
from pidistill.training.assemble import build_trainer
from pidistill.training.tracking import TRACKERS, chosen_trackers

from method_runs import NETWORK, log_lines, small


@pytest.fixture
def events():
    """Reads a run's event files as TensorBoard does: name to (step, value) pairs."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder):
        accumulator = module.EventAccumulator(str(folder / "logs" / "pidistill"))
        accumulator.Reload()
        tags = accumulator.Tags()
        scalars = {
            name: [(event.step, event.value) for event in accumulator.Scalars(name)]
            for name in tags["scalars"]
        }
        images = {name: accumulator.Images(name) for name in tags["images"]}
        return scalars, images

    return read


def settings(**changes):
    small_steps = {"max_train_steps": 6, "logging_steps": 1, "checkpointing_steps": 2}
    options = {"network": NETWORK, "preview_steps": 3, "report_to": "tensorboard", **changes}
    return small("denoising", None, data="digits", **small_steps, **options)


def logged(folder, name):
    return [(x["step"], pytest.approx(x[name], rel=1e-6)) for x in log_lines(folder) if name in x]


def test_tensorboard_shows_the_log_and_the_previews(tmp_path, events):
    list(build_trainer(settings(), tmp_path).run())
    scalars, images = events(tmp_path)
    names = {name for name in log_lines(tmp_path)[-1] if not name.startswith("ln_sigma")}
    assert scalars.keys() == names - {"step", "validation"}
    assert [step for step, _ in scalars["validation_error"]] == [2, 4, 6]
    for name in scalars:
        assert scalars[name] == logged(tmp_path, name)
    assert [image.step for image in images["samples"]] == [0, 3, 6]
    assert (images["samples"][0].width, images["samples"][0].height) == (500, 200)


def test_a_resumed_run_shows_each_step_once(tmp_path, events):
    steps = build_trainer(settings(), tmp_path).run()
    for report in steps:
        if report.step == 3:  # a checkpoint is of step 2
            break
    steps.close()
    list(build_trainer(settings(), tmp_path).run())
    scalars, _ = events(tmp_path)
    assert [step for step, _ in scalars["loss"]] == list(range(7))
    assert scalars["loss"] == logged(tmp_path, "loss")


def test_without_trackers_nothing_is_written(tmp_path):
    list(build_trainer(settings(report_to="none"), tmp_path).run())
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("none", []),
        ("tensorboard", ["tensorboard"]),
        ("tensorboard, wandb", ["tensorboard", "wandb"]),
        (["all"], ["all"]),
    ],
)
def test_ways_to_name_trackers(written, names):
    assert settings(report_to=written).report_to == names


def test_the_flag(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["distill", "--teacher", "mixture:ring", "--max-train-steps", "1", "--out"]
    assert main([*arguments, str(folder), "--report-to", "tensorbord"]) == 2
    assert "report_to is 'tensorbord'" in capsys.readouterr().err
    assert not folder.exists()
    assert main([*arguments, str(folder), "--report-to", "none"]) == 0
    assert "report_to = []" in (folder / "config.toml").read_text()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_tracker_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(PidistillError, match=f"{name}.*pip install"):
        chosen_trackers([name])
    with pytest.raises(PidistillError, match=r"no tracker is installed.*pip install"):
        chosen_trackers(["all"])


def test_a_tracker_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no API key configured")

    trainer = build_trainer(settings(report_to="none"), tmp_path)
    monkeypatch.setattr(trainer.accelerator, "init_trackers", refuse)
    with pytest.raises(PidistillError, match=r"did not start.*no API key.*report_to"):
        list(trainer.run())


def test_all_stands_for_what_is_installed(monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb", "aim"])
    assert chosen_trackers(["all"]) == ["wandb", "aim"]
