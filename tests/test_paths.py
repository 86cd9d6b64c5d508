"""Paths as people write them."""

from pathlib import Path

import pytest

from pidistill import PidistillError, load_student, load_teacher
from pidistill.data import load_data
from pidistill.paths import user_path
from pidistill.training.config import parse_config

UNKNOWN = "~nobody-of-that-name/x"


def test_the_home_of_the_user_is_found():
    assert user_path("~/x") == Path.home() / "x"
    assert user_path("a/~") == Path("a/~")


@pytest.mark.parametrize(
    "use",
    [
        user_path,
        load_student,
        load_teacher,
        lambda path: load_teacher(f"edm:{path}"),
        lambda path: load_teacher(f"native:{path}"),
        lambda path: load_data(f"folder:{path}"),
        lambda path: parse_config([{"method": {"name": "pid"}, "teacher": path}]),
    ],
)
def test_the_home_of_nobody_is_one_line(use):
    with pytest.raises(PidistillError, match="the home of an unknown user") as caught:
        use(UNKNOWN)
    assert "\n" not in str(caught.value)
