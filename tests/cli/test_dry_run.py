"""`distill --dry-run`: a table or an object, and nothing on the disk."""

import json

import pytest

from pidistill.cli import main

ARGUMENTS = ["--max-train-steps", "100", "--batch-size", "8", "--dry-run"]
NETWORK = ["--set", 'network={name="mlp",config={width=8,num_blocks=1}}']


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_prints_what_the_run_takes_and_writes_nothing(tmp_path, capsys):
    arguments = ["distill", "--teacher", "mixture:ring", *NETWORK, *ARGUMENTS]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    for word in ("student", "peak", "images/s", "100 steps", "end"):
        assert word in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "verb", [["distill", "--teacher", "mixture:ring"], ["train-teacher", "digits"]]
)
def test_a_dry_run_needs_no_folder_and_gives_json(tmp_path, capsys, verb):
    assert main([*verb, *NETWORK, *ARGUMENTS, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images_per_second"] > 0
    assert facts["end"] > "2020"
    assert list(tmp_path.iterdir()) == []
