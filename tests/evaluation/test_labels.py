"""Labels in the proportions of a reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.evaluation.labels import ProportionalLabels, labels_like


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(0, 5000))
def test_every_stretch_of_labels_keeps_to_the_proportions(counts, first):
    num = 1000
    labels = ProportionalLabels(tuple(counts))(first, num)
    found = torch.bincount(labels, minlength=len(counts))
    for count, expected in zip(found.tolist(), counts, strict=True):
        share = num * expected / sum(counts)
        assert abs(count - share) <= 8  # the discrepancy of the golden ratio grows with ln(num)
        assert expected or not count


def test_labels_like_those_of_a_reference():
    labels = labels_like(torch.tensor([0, 0, 2, 0]), 4, "data")
    assert labels.counts == (3, 0, 1, 0)
    assert labels(5, 3).dtype == torch.int64
    for given_labels, num_classes, words in [
        (torch.tensor([0]), 0, "not class-conditional"),
        (None, 3, "data has no labels"),
        (torch.tensor([3]), 3, "label 3"),
    ]:
        with pytest.raises(PidistillError, match=words):
            labels_like(given_labels, num_classes, "data")
