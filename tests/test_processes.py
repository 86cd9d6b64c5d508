"""Several processes: what each does is all of it, once."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill.processes import (
    ALONE,
    Processes,
    is_first_to_fail,
    is_main_process,
    join_processes,
    num_processes,
    was_restarted,
)

from together import together


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 9))
def test_the_spans_of_all_processes_are_everything_in_order(num, unit, count):
    spans = [Processes(index, count).span(num, unit) for index in range(count)]
    assert list(itertools.chain(*spans)) == list(range(num))
    assert all(span.start % unit == 0 or not span for span in spans)
    units = [-(-len(span) // unit) for span in spans]
    assert max(units) - min(units) <= 1


def test_one_process_is_alone():
    assert join_processes() is ALONE
    assert (num_processes(), is_main_process(), was_restarted()) == (1, True, False)
    assert is_first_to_fail()
    assert ALONE.gather("x") == ["x"]
    assert ALONE.share("x") == "x"
    assert ALONE.sum([1.5, 2.0]) == [1.5, 2.0]
    assert ALONE.any(True)
    assert not ALONE.any(False)


def test_what_the_launcher_says_is_known_without_torch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert (num_processes(), is_main_process(), was_restarted()) == (4, False, True)


def test_processes_exchange_numbers_and_things():
    def work(rank):
        processes = join_processes()
        assert (processes.index, processes.count, processes.is_main) == (rank, 3, rank == 0)
        assert processes.sum([rank, 0.1]) == pytest.approx([3, 0.3], abs=1e-15)
        assert processes.any(rank == 2)
        assert not processes.any(False)
        assert processes.gather(f"of {rank}") == ([] if rank else ["of 0", "of 1", "of 2"])
        assert processes.share({"rank": rank}) == {"rank": 0}
        processes.wait()

    assert together(3, work) == ["", "", ""]


def test_one_of_those_that_fail_says_why(tmp_path):
    """The store is the first process's, which waits until the others have counted themselves."""

    def work(rank):
        processes = join_processes()
        first = is_first_to_fail()
        (tmp_path / str(rank)).write_text(str(first))
        processes.wait()

    assert together(2, work) == ["", ""]
    assert sorted((tmp_path / str(rank)).read_text() for rank in range(2)) == ["False", "True"]


def test_where_the_store_is_gone_the_first_process_says_why(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "none")
    assert is_first_to_fail()
    monkeypatch.setenv("RANK", "1")
    assert not is_first_to_fail()
