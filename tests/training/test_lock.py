"""One process a run folder."""

import errno
import fcntl
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
        holder = rf"another process .* \(process {process.pid} on "
        with pytest.raises(PidistillError, match=holder), locked(tmp_path):
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


def test_a_new_folder_in_which_nothing_was_done_is_removed_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(KeyError), locked(tmp_path / "old"):
        raise KeyError
    assert (tmp_path / "old").exists()


def test_a_drive_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level("WARNING", "pidistill"), locked(tmp_path):
        pass
    assert "cannot be locked (No locks available)" in caplog.text


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "state", "previews", "student.x"])
def test_a_folder_with_a_link_that_leads_out_of_it_is_refused(tmp_path, name):
    """A stranger's folder must not make a run write, or drop checkpoints, elsewhere."""
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("precious")
    folder.mkdir()
    (folder / "elsewhere").mkdir()
    (folder / "inside").symlink_to("elsewhere")
    with locked(folder):
        pass
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../outside")
    with pytest.raises(PidistillError, match=rf"{name} is a link to \.\./outside"), locked(folder):
        raise AssertionError("the folder is held")
    assert outside.read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PidistillError, match="cannot write to the run folder"):
        locked(tmp_path / "file").__enter__()
    if os.geteuid() != 0:
        (tmp_path / "sealed").mkdir(mode=0o500)
        with pytest.raises(PidistillError, match="cannot write to the run folder"):
            locked(tmp_path / "sealed").__enter__()
