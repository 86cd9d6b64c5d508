"""What importing the package costs: nothing heavy until it is used."""

import importlib
import subprocess
import sys

import pytest

import pidistill

HEAVY = {"torch", "numpy", "pydantic", "accelerate", "sklearn", "matplotlib", "PIL", "safetensors"}


def heavy_modules_after(code):
    """The heavy packages that are loaded once `code` has run in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import pidistill",
        "import pidistill; assert pidistill.__version__; dir(pidistill)",
        "import pidistill; assert 'pid' in pidistill.methods.NAMES",
        "from pidistill import methods; assert methods.NAMES",
        "from pidistill import PidistillError",
    ],
)
def test_nothing_heavy_is_imported(code):
    assert heavy_modules_after(code) == set()


def test_settings_need_no_torch():
    assert heavy_modules_after("from pidistill import RunConfig, distill") == {"pydantic"}


def test_the_check_would_notice():
    assert "torch" in heavy_modules_after("import pidistill; pidistill.Student")


@pytest.mark.parametrize("name", pidistill.__all__)
def test_every_public_name_is_there(name):
    assert name in dir(pidistill)
    assert getattr(pidistill, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        pidistill.distil  # noqa: B018


def test_every_method_is_registered_by_a_class_that_can_be_imported():
    methods = importlib.import_module("pidistill.methods")
    for name in methods.BUILT_IN:
        assert methods.method_class(name).Settings().name == name
