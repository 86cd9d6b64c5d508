"""An interrupted run ends, bit for bit, as one that nobody interrupted.

`tests/soak/kills.py` kills real processes, and `write_failures.py` fails every write.
"""

import logging
import os

import pytest

from pidistill import load_student

import two_networks  # noqa: F401  # registers a method of two parts
from method_runs import METHODS, NETWORK, everything, small, train

RUNS = {
    **{name: small(name) for name in METHODS},
    "two averages": small("pid", ema_rates=[0.9, 0.5]),
    "accumulated": small("pid", optimizer="radam", gradient_accumulation_steps=2),
    "denoising": small("denoising", None, data="digits", network=NETWORK),
    "two parts": small("two-networks"),
}
INTERRUPTIONS = {
    "stopped": [{"stop_at": 7}],
    "dead before the first checkpoint and after the last but one": [
        {"abandon_at": 3},
        {"abandon_at": 9},
    ],
    "many": [{"stop_at": 1}, {"abandon_at": 2}, {"stop_at": 4}, {"stop_at": 6}, {"abandon_at": 8}],
}
NETWORK_OF_DROPOUT = {
    "name": "song_unet",
    "config": {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "dropout": 0.5},
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What an uninterrupted run leaves behind, each trained once."""
    known = {}

    def of(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("straight")
            train(RUNS[name], folder)
            known[name] = everything(folder)
        return known[name]

    return of


@pytest.mark.parametrize("interruptions", INTERRUPTIONS)
@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_is_the_straight_run(tmp_path, straight, name, interruptions):
    for interruption in INTERRUPTIONS[interruptions]:
        train(RUNS[name], tmp_path, **interruption)
        assert not (tmp_path / "state/step-000000010").exists()
    train(RUNS[name], tmp_path)
    assert everything(tmp_path) == straight(name)


def test_dropout_resumes_too_and_does_not_depend_on_previews(tmp_path):
    changes = {"data": "digits", "max_train_steps": 3, "network": NETWORK_OF_DROPOUT}
    config = small("denoising", None, preview_steps=1, **changes)
    train(config, tmp_path / "straight")
    train(config, tmp_path / "stopped", stop_at=2)
    train(config, tmp_path / "stopped")
    train(config.model_copy(update={"preview_steps": 0}), tmp_path / "unwatched")
    for name in ("student.safetensors", "metrics.jsonl"):
        straight, stopped, unwatched = (
            everything(tmp_path / run, 3)[name] for run in ("straight", "stopped", "unwatched")
        )
        assert straight == stopped == unwatched
    straight, stopped = (
        {file.name: file.read_bytes() for file in (tmp_path / run / "previews").iterdir()}
        for run in ("straight", "stopped")
    )
    assert straight == stopped


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, straight, caplog):
    """`test_checkpoint.py` damages every file in every way."""
    train(RUNS["pid"], tmp_path, stop_at=9)
    file = tmp_path / "state/step-000000009/optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING, "pidistill"):
        train(RUNS["pid"], tmp_path)
    assert "damaged" in caplog.text
    assert "step-000000009" in caplog.text
    assert everything(tmp_path) == straight("pid")


class PowerCut(BaseException):
    """Not an error that anything should catch."""


@pytest.mark.parametrize("last", range(2 + 3 * 4 + 1))
def test_whichever_rename_is_the_last_the_run_goes_on(tmp_path, straight, monkeypatch, last):
    """Config and description, then three times a checkpoint and three files of weights, and the
    first checkpoint when it is dropped.
    """
    replace, calls = os.replace, iter(range(10**6))

    def failing(*arguments, **options):
        if next(calls) >= last:
            raise PowerCut
        return replace(*arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", failing)
        with pytest.raises(PowerCut):
            train(RUNS["two averages"], tmp_path)
    if any(tmp_path.glob("state/step-*")) and (tmp_path / "ema-0.9.safetensors").exists():
        assert load_student(tmp_path).generate(2, seed=0).x.isfinite().all()
    train(RUNS["two averages"], tmp_path)
    assert everything(tmp_path) == straight("two averages")
