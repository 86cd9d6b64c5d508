"""The log of a run and the best checkpoint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill.training.log import Best, preview_columns, truncate_log


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=99), st.integers(1, 20))
def test_the_best_is_where_the_average_was_lowest(values, every):
    best, averages = Best(), {}
    for step, value in enumerate(values, start=1):
        if step % every == 0:
            best.judge(step, value)
            averages[step] = value
    if averages:
        assert best.lowest == min(averages.values()) == averages[best.step]
    else:
        assert best.step is None


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
