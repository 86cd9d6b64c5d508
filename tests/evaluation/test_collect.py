"""One pass: the same bits however it is split, and what it cannot do."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.data import load_data
from pidistill.evaluation import collect
from pidistill.evaluation.collect import SINKS, Collector, summarise
from pidistill.evaluation.features import FeatureBatch, features_for
from pidistill.evaluation.frechet import frechet_distance, statistics
from pidistill.noise import Draws

NUM = 230
SIZE = 5


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(collect, "BLOCK", 40)


def some_features(num=NUM, classes=4):
    generator = torch.Generator().manual_seed(0)
    return FeatureBatch(
        torch.randn(num, SIZE, generator=generator), torch.randn(num, classes, generator=generator)
    )


def collected(cuts, needs=tuple(SINKS)):
    """What a pass finds whose batches begin at `cuts`."""
    features, logits = some_features()
    collector = Collector(NUM, SIZE, needs)
    edges = [0, *sorted(cuts), NUM]
    for first, last in itertools.pairwise(edges):
        collector.add(FeatureBatch(features[first:last], logits[first:last]))
    return collector.result()


def same_bits(first, second):
    assert first.keys() == second.keys() == {"num", *SINKS}
    assert first["num"] == second["num"] == NUM
    assert first["split_half"] == second["split_half"]
    assert torch.equal(first["features"], second["features"])
    assert torch.equal(first["class_scores"], second["class_scores"])
    for one, other in zip(first["statistics"], second["statistics"], strict=True):
        assert torch.equal(one, other)


@given(st.lists(st.integers(0, NUM), max_size=12))
def test_any_batches_give_the_same_bits(cuts):
    same_bits(collected(cuts), collected([]))


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_any_number_of_processes_that_hand_on_in_order_gives_the_same_bits(processes):
    """Process p has every p-th batch; they are handed on by the order of the samples."""
    features, logits = some_features()
    batches = list(zip(features.split(17), logits.split(17), strict=True))
    shards = [batches[p::processes] for p in range(processes)]
    collector = Collector(NUM, SIZE, tuple(SINKS))
    for i in range(len(batches)):
        collector.add(FeatureBatch(*shards[i % processes][i // processes]))
    same_bits(collector.result(), collected([]))


def test_each_result_is_that_of_all_features():
    features, _ = some_features()
    summary = collected([7, 90])
    assert torch.equal(summary["features"], features)
    whole = statistics(features)
    torch.testing.assert_close(summary["statistics"].mean, whole.mean)
    torch.testing.assert_close(summary["statistics"].covariance, whole.covariance)
    shuffled = features[Draws(0, 0, NUM).uniform("split").argsort()]
    halves = statistics(shuffled[: NUM // 2]), statistics(shuffled[NUM // 2 :])
    assert summary["split_half"] == pytest.approx(frechet_distance(*halves))
    assert summary["class_scores"].shape == (10,)


def test_only_what_is_needed_is_kept():
    assert collected([100], needs=["statistics"]).keys() == {"num", "statistics"}


def test_the_samples_are_counted():
    for said in (NUM - 1, NUM + 1, NUM + 100):
        collector = Collector(said, SIZE, ["features", "class_scores"])
        with pytest.raises(PidistillError, match=str(said)):  # noqa: PT012
            collector.add(some_features())
            collector.result()


def test_features_without_classes_have_no_inception_score():
    collector = Collector(50, SIZE, ["class_scores"])
    with pytest.raises(PidistillError, match="Inception Score needs a classifier"):
        collector.add(FeatureBatch(torch.zeros(50, SIZE), None))


def test_a_feature_that_is_not_finite_is_refused():
    collector = Collector(50, SIZE, ["statistics"])
    with pytest.raises(PidistillError, match="not finite"):
        collector.add(FeatureBatch(torch.full((50, SIZE), torch.nan), None))


def test_a_network_is_run_once_over_the_samples():
    images = load_data("digits").images[:150]
    network = features_for((1, 8, 8))
    seen = []
    network.register_forward_hook(lambda module, arguments, result: seen.append(len(arguments[0])))
    summary = summarise(network, images.split(60), 150, tuple(SINKS))
    assert seen == [60, 60, 30]
    assert torch.equal(summary["features"], torch.cat([network(p)[0] for p in images.split(60)]))
