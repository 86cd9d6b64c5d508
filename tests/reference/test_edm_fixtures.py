"""What the networks of EDM and EDM2 answered, for every pickle in the reference folder.

The folder is the one that the environment variable PIDISTILL_REFERENCE names; by default, the
project's own copy. A pickle `NAME.pkl` comes with `NAME.expected.safetensors`: the arrays `x`,
`sigma`, `label` (where there are labels) and `denoised`, and the constructor arguments in its
metadata.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pidistill import load_teacher

FOLDER = Path(os.environ.get("PIDISTILL_REFERENCE") or Path(__file__).parent / "data")
PICKLES = sorted(FOLDER.glob("*.pkl"))


def expected_of(path):
    """The arrays of a pickle, and what its network was made with."""
    expected = path.with_suffix(".expected.safetensors")
    with safe_open(expected, "pt") as file:
        metadata = file.metadata()
    kwargs = json.loads(metadata.get("kwargs") or metadata["arguments"])
    return load_file(expected), metadata.get("precond", "Precond"), kwargs


@pytest.mark.parametrize("spec", ["edm:{}", "{}"], ids=["named", "recognised"])
@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_agrees_with_the_original_network(path, spec):
    arrays, precond, kwargs = expected_of(path)
    teacher = load_teacher(spec.format(path))
    assert precond in teacher.source
    assert teacher.num_classes == kwargs.get("label_dim", 0)
    assert teacher.sample_shape == tuple(arrays["x"].shape[1:])
    with torch.no_grad():
        denoised = teacher(arrays["x"], arrays["sigma"], arrays.get("label"))
    assert denoised.dtype == torch.float32
    for answer, expected in zip(denoised, arrays["denoised"], strict=True):
        assert (answer - expected).norm() < 1e-5 * expected.norm()


def test_there_are_reference_pickles():
    assert PICKLES, f"{FOLDER} holds no pickle"
