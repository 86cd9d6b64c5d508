"""What a run folder says from outside, whatever is in it."""

import datetime
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from pidistill import PidistillError
from pidistill.watching.status import RUNNING, duration, look, notes

NOW = datetime.datetime.now(datetime.timezone.utc)


def ago(seconds):
    return (NOW - datetime.timedelta(seconds=seconds)).isoformat()


def make_run(folder, *, method="pid", lines=3, **beat):
    """A run folder of three log lines; `beat` overrides its heartbeat."""
    folder.mkdir(exist_ok=True)
    data = 'data = "digits"\n' if method == "denoising" else ""
    (folder / "config.toml").write_text(
        f'{data}max_train_steps = 100\n[method]\nname = "{method}"\n'
    )
    entries = [{"step": 10 * i, "images": 80 * i, "loss": 1 / (i + 1)} for i in range(lines)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries))
    facts = {
        "state": "training",
        "step": 25,
        "max_train_steps": 100,
        "images": 200,
        "images_per_second": 80.0,
        "recent_images_per_second": 100.0,
        "remaining_seconds": 6.0,
        "loss": 0.3,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": NOW.isoformat(),
        "time": ago(5),
        **beat,
    }
    (folder / "heartbeat.json").write_text(json.dumps(facts))
    return folder


def test_a_run_that_trains(tmp_path):
    run = look(make_run(tmp_path), NOW)
    assert (run.state, run.note, run.next_command) == ("training", "", None)
    assert run.running
    assert (run.facts["step"], run.facts["loss"]) == (25, 0.3)  # newer than the log
    assert run.facts["remaining_seconds"] == 6
    assert [line["step"] for line in run.log] == [0, 10, 20]


def test_a_run_whose_process_is_gone_has_died(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run = look(make_run(tmp_path, pid=process.pid), NOW)
    assert run.state == "died"
    assert not run.running
    assert str(process.pid) in run.note
    assert run.next_command == f"pidistill distill --out {tmp_path} --resume"
    assert "remaining_seconds" not in run.facts


def test_a_process_that_nobody_waited_for_is_gone_too(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.3)
    try:
        assert look(make_run(tmp_path, pid=process.pid), NOW).state == "died"
    finally:
        process.wait()


def test_a_number_that_another_process_has_now(tmp_path):
    run = look(make_run(tmp_path, started="2001-01-01T00:00:00+00:00"), NOW)
    assert run.state == "died"


def test_a_run_elsewhere_is_believed_for_a_while(tmp_path):
    assert look(make_run(tmp_path, host="elsewhere", pid=1), NOW).state == "training"
    run = look(make_run(tmp_path, host="elsewhere", pid=1, time=ago(200)), NOW)
    assert run.state == "stalled"
    assert run.running
    assert "elsewhere" in run.note
    assert "3 min 20 s" in run.note


def test_a_run_that_hangs(tmp_path):
    run = look(make_run(tmp_path, time=ago(7200)), NOW)
    assert run.state == "stalled"
    assert "2 h 0 min" in run.note


def test_a_run_of_long_steps_does_not_hang(tmp_path):
    slow = {"images_per_second": 0.1, "step": 25, "images": 200}  # 80 seconds a step
    assert look(make_run(tmp_path, time=ago(700), **slow), NOW).state == "training"
    assert look(make_run(tmp_path, time=ago(900), **slow), NOW).state == "stalled"


@pytest.mark.parametrize(
    ("state", "method", "command"),
    [
        ("finished", "pid", "pidistill sample {} -n 100 --out samples.png"),
        ("stopped", "pid", "pidistill distill --out {} --resume"),
        ("failed", "pid", "pidistill distill --out {} --resume"),
        ("finished", "denoising", "pidistill distill --teacher native:{} --out DIR"),
        ("stopped", "denoising", "pidistill train-teacher digits --out {} --resume"),
    ],
)
def test_what_to_do_next(tmp_path, state, method, command):
    run = look(make_run(tmp_path, method=method, state=state), NOW)
    assert run.state == state
    assert run.next_command == command.format(tmp_path)
    assert notes(run)[-1] == f"next: {run.next_command}"


def test_samples_that_are_no_pictures_go_to_an_array(tmp_path):
    folder = make_run(tmp_path, state="finished")
    (folder / "network.json").write_text('{"sample_shape": [2]}')
    assert look(folder, NOW).next_command.endswith("samples.npz")


def test_a_folder_with_a_space_is_quoted(tmp_path):
    run = look(make_run(tmp_path / "my run", state="stopped"), NOW)
    assert f"'{tmp_path / 'my run'}'" in run.next_command


def test_why_a_run_failed(tmp_path):
    run = look(make_run(tmp_path, state="failed", error="the loss is nan at step 7"), NOW)
    assert run.note == "the loss is nan at step 7"
    assert "failed: the loss is nan at step 7" in notes(run)


def test_preparation(tmp_path):
    work = {"title": "solving for pairs", "done": 1024, "total": 4096, "unit": "pairs"}
    run = look(make_run(tmp_path, lines=0, state="preparing", preparation=work), NOW)
    assert run.state == "preparing"
    assert notes(run) == ["solving for pairs: 1,024 of 4,096 pairs (25%)"]


def test_an_empty_folder_waits(tmp_path):
    (tmp_path / ".lock").touch()
    run = look(tmp_path)
    assert run.state == "waiting"
    assert run.running


def test_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(PidistillError, match=r"no run folder.*photo\.jpg"):
        look(tmp_path)
    with pytest.raises(PidistillError, match="is not a folder"):
        look(tmp_path / "photo.jpg")
    with pytest.raises(PidistillError, match="is not a folder"):
        look(tmp_path / "missing")


@pytest.mark.parametrize(("lines", "state"), [(11, "finished"), (4, "stopped"), (0, "waiting")])
def test_a_run_without_a_heartbeat(tmp_path, lines, state):
    folder = make_run(tmp_path, lines=lines)
    (folder / "heartbeat.json").unlink()
    assert look(folder).state == state


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_a_log_that_is_cut_off_anywhere(tmp_path, cut):
    folder = make_run(tmp_path)
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole[:cut])
    run = look(folder, NOW)
    assert run.state == "training"
    complete = whole[:cut].count(b"\n")
    assert len(run.log) in (complete, complete + 1)  # the end of the line itself may be missing


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("heartbeat.json", b"{"),
        ("heartbeat.json", b"[]"),
        ("heartbeat.json", b'{"state": 3}'),
        ("heartbeat.json", b'{"state": "training"}'),
        ("heartbeat.json", b'{"state": "training", "time": "now", "pid": "x", "started": 1}'),
        ("heartbeat.json", b'{"state": "finished", "step": "x", "loss": NaN, "preparation": 1}'),
        ("metrics.jsonl", b"\xff\x00\n"),
        ("metrics.jsonl", b'{"step": "x", "loss": null}\n{"step": 1, "loss": Infinity}\n'),
        ("config.toml", b"max_train_steps = 'x'\nmethod = 3\n"),
        ("config.toml", b"\xff"),
        ("network.json", b"[1]"),
    ],
)
def test_damage_does_no_harm(tmp_path, name, content):
    folder = make_run(tmp_path)
    (folder / name).write_bytes(content)
    run = look(folder, NOW)
    json.dumps(run.as_json(), allow_nan=False)
    assert notes(run) is not None


def test_a_line_of_json_has_no_unknowns(tmp_path):
    facts = look(make_run(tmp_path), NOW).as_json()
    assert facts["state"] == "training"
    assert facts["log"] == {"step": 20, "images": 160, "loss": 1 / 3}
    assert None not in facts.values()
    assert not {"next", "note", "preview"} & facts.keys()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_states_that_may_change():
    assert set(RUNNING) == {"waiting", "preparing", "training", "stalled"}
