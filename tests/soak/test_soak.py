"""The soak tests in their short forms; `python tests/soak/NAME.py` is the long one."""

import runpy
import sys
from pathlib import Path

import pytest

import forked
import two_processes

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize("name", ["kills", "write_failures", "configs", "memory"])
def test_in_short(tmp_path, monkeypatch, name):
    """In a fork of this process, which has imported nearly everything."""
    monkeypatch.setattr(sys, "argv", [name, "--short"])

    def script():
        try:
            runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            return end.code

    forked.load()
    code = forked.run(script, tmp_path / "output.txt")
    assert code == 0, (tmp_path / "output.txt").read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_and_one_that_is_killed():
    measured = two_processes.soak(short=True)
    assert 3 <= measured["killed_after"] <= 12
