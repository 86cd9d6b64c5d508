"""The table of metrics: what each needs, and what it says of digits."""

import json

import pytest
import torch

from pidistill import PidistillError
from pidistill.data import load_data
from pidistill.evaluation.collect import SINKS, summarise
from pidistill.evaluation.features import features_for
from pidistill.evaluation.metrics import (
    METRICS,
    measure,
    needs_of_reference,
    needs_of_samples,
)

NAMES = tuple(METRICS)


@pytest.fixture(scope="module")
def digits():
    """The two halves of the digits, and the first with noise: what was collected of each."""
    network = features_for((1, 8, 8))
    images = load_data("digits").images
    first, second = images[:600], images[600:1200]
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
    needs = needs_of_samples(NAMES) | needs_of_reference(NAMES) | {"split_half"}
    return [summarise(network, x.split(200), len(x), needs) for x in (first, second, first + noise)]


def test_needs_are_sinks_and_no_more_than_needed():
    for name, metric in METRICS.items():
        assert metric.of_samples <= set(SINKS)
        assert metric.of_reference <= set(SINKS)
        assert needs_of_samples([name]) == metric.of_samples
    assert needs_of_samples(["fid"]) == {"statistics"}
    assert needs_of_reference(["is"]) == frozenset()
    assert needs_of_samples([]) == frozenset()


def test_all_of_them_tell_digits_from_noisy_digits(digits):
    first, second, noisy = digits
    near, far = measure(NAMES, second, first), measure(NAMES, noisy, second)
    assert json.loads(json.dumps(near, allow_nan=False)) == near
    assert near.keys() == far.keys()
    for name in ("frechet_distance", "kernel_distance"):
        assert far[name] > 3 * abs(near[name])
    assert near["precision"] > far["precision"] + 0.2
    assert far["inception_score"] < near["inception_score"] < 10
    assert near["reference_split_frechet_distance"] == first["split_half"]


def test_each_metric_alone_says_what_all_of_them_say(digits):
    first, second, _ = digits
    together = measure(NAMES, second, first)
    alone = {}
    for name in NAMES:
        alone |= measure([name], second, first)
    assert alone == together
    assert measure(["fid"], second, {"statistics": first["statistics"]}).keys() == {
        "frechet_distance"
    }


def test_unknown_metrics_are_refused():
    with pytest.raises(PidistillError, match=r"unknown metric 'fad'; expected one of fid, kid"):
        needs_of_samples(["fid", "fad"])
