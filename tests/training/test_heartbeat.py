"""The heartbeat tells how a run is doing, and is never in its way."""

import json
import os
import socket

import pytest

from pidistill import PidistillError
from pidistill.methods.base import Preparation
from pidistill.training import heartbeat
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config
from pidistill.training.heartbeat import HEARTBEAT_FILE, Heartbeat, read_heartbeat

TINY = {
    "teacher": "mixture:ring",
    "max_train_steps": 4,
    "batch_size": 8,
    "network": {"name": "mlp", "config": {"width": 16, "num_blocks": 1, "embedding_width": 16}},
    "method": {"name": "pid", "num_nodes": 20},
}


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(heartbeat.time, "monotonic", clock)
    return clock


def test_speed_and_remaining_time(tmp_path, clock):
    beat = Heartbeat(tmp_path, max_train_steps=1000, batch_size=8)

    def train():
        assert read_heartbeat(tmp_path)["state"] == "training"
        assert "images_per_second" not in read_heartbeat(tmp_path)
        for step in range(101, 301):  # 4 steps a second, and then 1 a second for a minute
            clock.now += 0.25 if step <= 200 else 1
            beat.trained(step, loss=0.5)
        clock.now += 10
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), beat.training(100):
        train()
    facts = read_heartbeat(tmp_path)
    assert facts["state"] == "stopped"
    assert (facts["step"], facts["images"], facts["loss"]) == (300, 2400, 0.5)
    assert facts["images_per_second"] == pytest.approx(200 * 8 / 135, rel=1e-3)
    assert facts["recent_images_per_second"] == pytest.approx(8 * 65 / 75, rel=1e-3)
    assert facts["remaining_seconds"] == pytest.approx(700 * 75 / 65, rel=1e-3)
    assert facts["pid"] == os.getpid()
    assert facts["host"] == socket.gethostname()
    assert facts["time"].endswith("+00:00")


def test_it_beats_every_ten_seconds_and_not_more_often(tmp_path, clock, monkeypatch):
    written = []
    monkeypatch.setattr(heartbeat, "replace_text", lambda path, text: written.append(clock.now))
    beat = Heartbeat(tmp_path, max_train_steps=100, batch_size=1)
    with beat.training(0):
        for step in range(1, 101):
            clock.now += 0.5
            beat.trained(step, 1.0)
    assert written == [1000, 1010, 1020, 1030, 1040, 1050, 1050]


def test_preparation(tmp_path, clock):
    beat = Heartbeat(tmp_path, max_train_steps=100, batch_size=1)
    with beat.preparing():
        beat.prepared(Preparation("solving for pairs", 0, 64, "pairs"))
        clock.now += 10
        beat.prepared(Preparation("solving for pairs", 32, 64, "pairs"))
    facts = read_heartbeat(tmp_path)
    assert facts["state"] == "preparing"
    expected = {"title": "solving for pairs", "done": 32, "total": 64, "unit": "pairs"}
    assert facts["preparation"] == expected


def test_a_run_tells_how_it_ended(tmp_path):
    trainer = build_trainer(parse_config([TINY]), tmp_path)
    for _ in trainer.run(should_stop=lambda: trainer.step == 2):
        assert read_heartbeat(tmp_path)["state"] == "training"
    facts = read_heartbeat(tmp_path)
    assert (facts["state"], facts["step"], facts["images"]) == ("stopped", 2, 16)
    *_, report = build_trainer(parse_config([TINY]), tmp_path).run()
    facts = read_heartbeat(tmp_path)
    assert (facts["state"], facts["step"]) == ("finished", 4)
    assert facts["loss"] == report.loss
    assert facts["remaining_seconds"] == 0


def test_a_run_that_is_left_without_a_word_has_stopped(tmp_path):
    steps = build_trainer(parse_config([TINY]), tmp_path).run()
    next(steps)
    steps.close()
    assert read_heartbeat(tmp_path)["state"] == "stopped"


def test_a_run_that_fails_says_why(tmp_path):
    trainer = build_trainer(parse_config([TINY, {"learning_rate": 1e30}]), tmp_path)
    with pytest.raises(PidistillError) as raised:
        list(trainer.run())
    facts = read_heartbeat(tmp_path)
    assert facts["state"] == "failed"
    assert facts["error"] == str(raised.value)


def test_a_run_that_cannot_write_it_goes_on(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.0)
    (tmp_path / HEARTBEAT_FILE).mkdir()
    trainer = build_trainer(parse_config([TINY]), tmp_path)
    list(trainer.run())
    assert trainer.step == 4
    warnings = [record for record in caplog.records if "heartbeat" in record.message]
    assert len(warnings) == 1
    assert read_heartbeat(tmp_path) == {}
    assert not list(tmp_path.glob(".heartbeat*"))


def test_a_second_process_on_the_folder_leaves_it_alone(tmp_path):
    first = build_trainer(parse_config([TINY]), tmp_path)
    steps = first.run()
    next(steps)
    before = (tmp_path / HEARTBEAT_FILE).read_text()
    with pytest.raises(PidistillError, match="another process"):
        list(build_trainer(parse_config([TINY]), tmp_path).run())
    assert (tmp_path / HEARTBEAT_FILE).read_text() == before


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0\xff"])
def test_what_cannot_be_read_is_no_heartbeat(tmp_path, text):
    (tmp_path / HEARTBEAT_FILE).write_bytes(text.encode("latin-1"))
    assert read_heartbeat(tmp_path) == {}


def test_it_is_json_that_everyone_reads(tmp_path):
    list(build_trainer(parse_config([TINY]), tmp_path).run())

    def refuse(name):
        raise AssertionError(name)

    json.loads((tmp_path / HEARTBEAT_FILE).read_text(), parse_constant=refuse)
