import errno
import os
import subprocess
import sys

import filelock
import pytest

from pidistill.errors import FolderHeldError, PidistillError
from pidistill.files import clear_leftovers, held, is_held, read_json, write_text

HOLD = """
import sys, time
from pidistill.files import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_made_and_held_once_at_a_time(tmp_path):
    folder = tmp_path / "deep" / "run"
    assert not is_held(folder)
    for _ in range(2):  # released at the end of the block
        with held(folder):
            assert is_held(folder)
            with pytest.raises(FolderHeldError), held(str(folder)):
                raise AssertionError("the folder is held twice")
        assert not is_held(folder)


def test_a_killed_process_holds_nothing(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(FolderHeldError), held(tmp_path):
            raise AssertionError("the folder is held twice")
        process.kill()
    with held(tmp_path):
        pass


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_only_a_new_folder_in_which_nothing_was_done_goes_after_an_error(tmp_path, old, used):
    folder = tmp_path / "run"

    def fail():
        with held(folder):
            if used:
                (folder / "config.toml").touch()
            raise KeyError

    if old:
        folder.mkdir()
    with pytest.raises(KeyError):
        fail()
    assert folder.exists() == (old or used)
    assert not is_held(folder)


def test_a_drive_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", unsupported)
    with caplog.at_level("WARNING", "pidistill"), held(tmp_path):
        assert not is_held(tmp_path)
    assert str(tmp_path) in caplog.text


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "state", "previews", "student.x"])
def test_a_folder_with_a_link_that_leads_out_of_it_is_refused(tmp_path, name):
    """A stranger's folder must not make a run write, or drop checkpoints, elsewhere."""
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("precious")
    (folder / "elsewhere").mkdir(parents=True)
    (folder / "inside").symlink_to("elsewhere")
    with held(folder):
        pass
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../outside")
    with pytest.raises(PidistillError, match=rf"{name}.*\.\./outside"), held(folder):
        raise AssertionError("the folder is held")
    assert outside.read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PidistillError, match="file"), held(tmp_path / "file"):
        raise AssertionError("a file is held")
    if os.geteuid() != 0:
        (tmp_path / "sealed").mkdir(mode=0o500)
        with pytest.raises(PidistillError, match="sealed"), held(tmp_path / "sealed"):
            raise AssertionError("the folder is held")


def test_a_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "text", "")
    assert (tmp_path / "text").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    write = "import os\nfrom pidistill.files import replacing\nwith replacing('text') as t:\n"
    write += "    t.touch()\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", write], cwd=tmp_path, check=False)
    (tmp_path / ".kept").touch()
    assert len(os.listdir(tmp_path)) == 2
    clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [".kept"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "\0", "[" * 100_000])
def test_anything_but_a_json_object_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "facts.json").write_text(text)
    with pytest.raises(PidistillError, match=r"facts\.json"):
        read_json(tmp_path / "facts.json")
