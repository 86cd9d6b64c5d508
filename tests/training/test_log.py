"""The log of a run, its means, and the best checkpoint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill.training.log import BEST_OVER as STEPS
from pidistill.training.log import Best, Means, preview_columns, truncate_log

losses = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3 * STEPS)


@given(losses)
def test_the_average_is_the_mean_at_first_and_forgets_after(values):
    best = Best()
    for value in values:
        best.update(value)
    early, late = values[:STEPS], values[STEPS:]
    expected = sum(early) / len(early)
    for value in late:
        expected = (1 - 1 / STEPS) * expected + value / STEPS
    assert best.average == pytest.approx(expected, abs=1e-9)


@given(losses, st.integers(1, 20))
def test_the_best_is_where_the_average_was_lowest(values, every):
    best, averages = Best(), {}
    for step, value in enumerate(values, start=1):
        best.update(value)
        if step % every == 0:
            best.judge(step)
            averages[step] = best.average
    if averages:
        assert best.lowest == min(averages.values()) == averages[best.step]
    else:
        assert best.step is None


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(1, 9)), min_size=1, max_size=9))
def test_means_are_weighted_and_survive_a_checkpoint(values):
    means = Means()
    for value, weight in values:
        means = Means({name: list(sums) for name, sums in means.sums.items()})
        means.add("a", value, weight)
    total = sum(weight for _, weight in values)
    assert means.take()["a"] == pytest.approx(sum(v * w for v, w in values) / total, abs=1e-9)
    assert means.take() == {}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2),
        ('{"step": 1}\n{"step": 2}\n{"st', 2),
        ('{"step": 1}\n{"step": 2}', 2),
        ('{"step": 1}\n\x00\x00\x00', 1),
        ('{"step": 1}\n7\n{"step": 2}\n', 1),
        ('{"step": 9}\n', 0),
        ("", 0),
    ],
)
def test_a_log_is_cut_after_a_step_and_at_a_line_that_is_not_whole(tmp_path, text, kept):
    path = tmp_path / "metrics.jsonl"
    truncate_log(tmp_path, 2)
    assert not path.exists()
    path.write_text(text)
    truncate_log(tmp_path, 2)
    assert path.read_text() == "".join(f'{{"step": {i + 1}}}\n' for i in range(kept))


def test_each_class_has_its_columns_in_previews():
    assert [preview_columns(n) for n in (0, 1, 2, 3, 4, 7, 10, 15, 1000)] == [
        *(10, 10, 10, 9, 8, 7, 10, 15, 10)
    ]
