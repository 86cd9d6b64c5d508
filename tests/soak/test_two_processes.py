"""The short form of `two_processes.py`."""

import pytest

import two_processes


@pytest.mark.timeout(900)
def test_two_processes_and_one_that_is_killed():
    measured = two_processes.soak(short=True)
    assert 0 <= measured["difference"] < 1e-3
    assert 3 <= measured["killed_after"] <= 12
