"""One process a run folder."""

import os
import subprocess
import sys

import pytest

from pidistill import PidistillError
from pidistill.training.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from pidistill.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_made_and_held_once_at_a_time(tmp_path):
    folder = tmp_path / "deep" / "run"
    with locked(folder):
        assert folder.is_dir()
        with pytest.raises(PidistillError, match="another process"), locked(folder):
            raise AssertionError("the folder is held twice")
    with locked(folder):
        pass


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(PidistillError, match="another process"), locked(tmp_path):
            raise AssertionError("the folder is held twice")
        process.kill()
    with locked(tmp_path):
        pass


def test_a_lock_ends_with_an_error_inside(tmp_path):
    def fail():
        with locked(tmp_path):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PidistillError, match="cannot write to the run folder"):
        locked(tmp_path / "file").__enter__()
    if os.geteuid() != 0:
        (tmp_path / "sealed").mkdir(mode=0o500)
        with pytest.raises(PidistillError, match="cannot write to the run folder"):
            locked(tmp_path / "sealed").__enter__()
