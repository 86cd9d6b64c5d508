"""A flow map through the verbs: steps, refinement, metrics, exports."""

import json

import numpy as np
import pytest

from pidistill import load_student
from pidistill.cli import main

from method_runs import small, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the method pid-map on digits."""
    folder = tmp_path_factory.mktemp("flow-map") / "run"
    train(small("pid-map", "digits", max_train_steps=3), folder)
    return folder


@pytest.fixture
def result_of(capsys):
    """A function: call a verb, and return the JSON object."""

    def call(*arguments):
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_inspect_says_what_it_is(run, result_of):
    facts = result_of("inspect", run)
    assert (facts["kind"], facts["evaluations"]) == ("flow-map", "any")
    assert facts["trained_by"] == "pid-map"
    assert "evaluations" not in result_of("inspect", "digits")


@pytest.mark.parametrize(("steps", "refine"), [(1, 0), (3, 0), (2, 2)])
def test_sample(run, result_of, tmp_path, steps, refine):
    file = tmp_path / "x.npz"
    options = ["-n", 5, "--seed", 3, "--steps", steps, "--refine", refine]
    facts = result_of("sample", run, *options, "--batch-size", 2, "--out", file)
    assert facts["nfe"] == steps + refine
    expected = load_student(run).generate(5, seed=3, steps=steps, refine=refine).x
    np.testing.assert_allclose(np.load(file)["samples"], expected, atol=1e-5)


def test_evaluate(run, result_of):
    options = ["--num", 8, "--steps", 2, "--refine", 1]
    metrics = result_of("evaluate", run, *options, "--metrics", "error,trajectory")
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert (metrics["nfe"], metrics["refine"]) == (3, 1)
    assert {"rms_error", "trajectory", "straightness"} <= metrics.keys()


def test_export(run, result_of, tmp_path):
    exported = result_of("export", run, "--to", "diffusers", "--out", tmp_path / "out")
    assert "more than 8 evaluations" in exported["not_included"][0]
    config = json.loads((tmp_path / "out" / "student" / "config.json").read_text())
    assert [len(scales["maps"]) for scales in config["scales"]] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_teacher_is_not_refined(tmp_path, capsys):
    arguments = ["sample", "digits", "-n", "2", "--refine", "1", "--out", str(tmp_path / "x.npz")]
    assert main(arguments) == 2
    assert "refine is 1, but a teacher does not" in capsys.readouterr().err
