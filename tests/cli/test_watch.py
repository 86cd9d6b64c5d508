"""`pidistill watch` end to end: on runs at every stage, in a terminal and without one."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pidistill.cli import main

SMALL_NETWORK = ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}']
TRAIN = ["--batch-size", "8", "--set", "logging_steps=1", *SMALL_NETWORK]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps on the bundled digits teacher."""
    folder = tmp_path_factory.mktemp("watch") / "run"
    arguments = ["distill", "--teacher", "digits", "--out", str(folder), "--max-train-steps", "8"]
    assert main([*arguments, *TRAIN]) == 0
    return folder


def test_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run), "--once"]) == 0
    printed = capsys.readouterr().out
    assert "finished" in printed
    assert "8 / 8 (100%)" in printed
    assert re.search("[\u2801-\u28ff]", printed)
    assert "residual" in printed
    assert f"next: pidistill sample {run}" in printed.replace("\n", "")


def test_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["state"] == "finished"
    assert facts["step"] == facts["max_train_steps"] == facts["log"]["step"] == 8
    assert facts["images"] == 64
    assert Path(facts["preview"]).is_file()
    assert main(["watch", str(run), str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": [facts, facts]}


def test_the_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "deeper" / "page.html"
    assert main(["watch", str(run), "--html", str(page)]) == 0
    assert f"wrote {page}" in capsys.readouterr().out.replace("\n", "")
    assert page.read_text().count("<svg") == 3
    assert 'http-equiv="refresh"' not in page.read_text()


def test_what_the_end_of_training_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "teacher"
    arguments = ["train-teacher", "digits", "--out", str(folder), "--max-train-steps", "3"]
    assert main([*arguments, *TRAIN]) == 0
    printed = capsys.readouterr().out
    for words in ("holds the teacher after 3 steps", "images/s", "teacher evaluations", "24"):
        assert words in printed
    assert f"next: pidistill distill --teacher native:{folder} --out DIR" in printed
    assert main([*arguments, *TRAIN, "--resume", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.keys() == {
        "out",
        "step",
        "images",
        "seconds",
        "images_per_second",
        "teacher_evals",
        "loss",
    }
    assert facts["images"] == 24


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(["watch", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is no run folder")
    assert main(["watch", str(tmp_path / "missing")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_it_starts_without_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pidistill.cli import main; "
        "assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    )
    arguments = ["watch", str(run), "--once", "--html", str(tmp_path / "page.html")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_page_that_cannot_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(run), "--html", str(tmp_path)]) == 2
    assert f"--html {tmp_path} is a folder" in capsys.readouterr().err


def test_a_terminal_that_knows_ascii_only(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pidistill", "watch", str(run)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"finished" in done.stdout


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self.screen = ""
        self.terminal, inside = pty.openpty()
        size = {"COLUMNS": "100", "LINES": "30", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pidistill", *command],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**os.environ, **size},
        )
        os.close(inside)

    def read(self) -> bool:
        """Read what it has printed; whether it may print more."""
        if not select.select([self.terminal], [], [], 0.1)[0]:
            return True
        try:
            part = os.read(self.terminal, 65536)
        except OSError:  # so ends a terminal on Linux
            return False
        self.screen += part.decode(errors="replace")
        return bool(part)

    def read_until(self, words: str) -> None:
        """Read until it has printed `words`."""
        deadline = time.monotonic() + 60
        while words not in self.screen:
            assert self.read(), self.screen
            assert time.monotonic() < deadline, self.screen

    def exit_code(self) -> int:
        """Its exit code, once it has ended."""
        while self.read():
            pass
        os.close(self.terminal)
        return self.process.wait(30)


def test_it_goes_on_until_the_run_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    viewer = Terminal(["watch", str(folder)])
    viewer.read_until("nothing is there yet")
    arguments = ["distill", "--teacher", "mixture:ring", "--out", str(folder)]
    assert main([*arguments, *TRAIN, "--max-train-steps", "5"]) == 0
    viewer.read_until("5 / 5 (100%)")
    viewer.read_until("next:")
    viewer.read_until("samples.npz")
    assert viewer.exit_code() == 0


def test_ctrl_c_leaves_the_view_and_a_kill_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "pidistill", "distill", "--teacher", "mixture:ring"]
    trainer = subprocess.Popen(
        [*command, "--out", str(folder), *TRAIN, "--max-train-steps", "1000000"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    log = folder / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        viewer = Terminal(["watch", str(folder)])
        viewer.read_until("training")
        viewer.process.send_signal(signal.SIGINT)
        viewer.read_until("interrupted")
        assert viewer.exit_code() == 130
        assert trainer.poll() is None
    finally:
        trainer.kill()
        trainer.wait()
    done = subprocess.run(
        [sys.executable, "-m", "pidistill", "watch", str(folder), "--json"],
        capture_output=True,
        text=True,
    )
    facts = json.loads(done.stdout)
    assert facts["state"] == "died"
    assert facts["next"] == f"pidistill distill --out {folder} --resume"
