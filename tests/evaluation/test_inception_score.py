"""The Inception Score, for answers that are known and against torch-fidelity."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill.evaluation.inception_score import ClassScores


def scores(logits, parts=1):
    collected = ClassScores(len(logits))
    for part in logits.tensor_split(parts):
        collected.add(part)
    return collected.result()


def random_logits(num, classes, seed=0):
    return 3 * torch.randn(num, classes, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 9), st.integers(0, 1000))
def test_it_is_the_definition_on_each_tenth(num, classes, parts, seed):
    logits = random_logits(num, classes, seed)
    splits = min(10, num)
    expected = []
    for i in range(splits):
        p = logits[i * num // splits : (i + 1) * num // splits].double().softmax(1)
        expected.append((p * (p / p.mean(0)).log()).sum(1).mean().exp())
    torch.testing.assert_close(scores(logits, parts), torch.stack(expected), rtol=1e-9, atol=0)


def test_sure_and_even_predictions_score_the_number_of_classes():
    sure = 1000.0 * torch.eye(7).repeat(100, 1)
    torch.testing.assert_close(scores(sure), torch.full((10,), 7.0, dtype=torch.float64))
    assert scores(1000.0 * torch.eye(7)[:1].repeat(50, 1)).tolist() == [1.0] * 10


def test_predictions_that_do_not_depend_on_the_sample_score_one():
    same = random_logits(1, 5).repeat(40, 1)
    torch.testing.assert_close(scores(same), torch.ones(10, dtype=torch.float64))


@pytest.mark.metrics
def test_it_is_that_of_torch_fidelity():
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = random_logits(1003, 20)
    theirs = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    ours = scores(logits, parts=7)
    assert ours.mean().item() == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert ours.std(correction=0).item() == pytest.approx(
        theirs[metric_isc.KEY_METRIC_ISC_STD], rel=1e-6
    )
