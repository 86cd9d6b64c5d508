"""The soak tests in their short forms; `python tests/soak/NAME.py` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

import two_processes

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize("name", ["kills", "write_failures", "configs", "memory"])
def test_in_short(name):
    command = [sys.executable, str(HERE / f"{name}.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_two_processes_and_one_that_is_killed():
    measured = two_processes.soak(short=True)
    assert 3 <= measured["killed_after"] <= 12
