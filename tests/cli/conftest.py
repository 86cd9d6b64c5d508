"""Finished runs of a few steps, and how a command is refused."""

import pytest

from pidistill.cli import main

TINY = ["--max-train-steps", "4", "--batch-size", "8"]
MLP = ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}']


@pytest.fixture(scope="session")
def ring_run(tmp_path_factory):
    """A student of a mixture."""
    folder = tmp_path_factory.mktemp("ring") / "run"
    arguments = ["distill", "--teacher", "mixture:ring", "--method", "pid", "--out", str(folder)]
    assert main([*arguments, *TINY, *MLP]) == 0
    return folder


@pytest.fixture(scope="session")
def digits_student(tmp_path_factory):
    """A student of the bundled digits teacher."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    assert main(["distill", "--teacher", "digits", "--out", str(folder), *TINY]) == 0
    return folder


@pytest.fixture
def refused(capsys):
    """A function: a command exits with 2 and one line on stderr that holds all the words."""

    def check(arguments, *words):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if line.strip()]
        assert [line.startswith("error: ") for line in lines].count(True) == 1
        assert lines[-1].startswith("error: ")
        assert "Traceback" not in printed.err
        for word in words:
            assert word in lines[-1]

    return check
