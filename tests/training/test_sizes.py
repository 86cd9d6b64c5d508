"""The ladder of networks for one's own samples, and how `train-teacher` chooses from it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pidistill.cli import main
from pidistill.cli import train_teacher as verb
from pidistill.networks import new_network
from pidistill.settings import read_toml
from pidistill.training.sizes import SIZES, duration_of, duration_text, network_of_size

SHAPES = st.one_of(
    st.tuples(st.integers(1, 40)),
    st.tuples(st.sampled_from([1, 3, 4]), *[st.integers(1, 70)] * 2),
    st.integers(8, 256).map(lambda side: (3, side, side)),
)


def build(size, shape):
    table = network_of_size(size, shape)
    with torch.device("meta"):
        return new_network(table["name"], shape, 10, table["config"])


@settings(max_examples=40)
@given(SHAPES, st.sampled_from(list(SIZES)))
def test_there_is_a_network_of_every_size_for_samples_of_every_shape(shape, size):
    network = build(size, shape)
    out = network(torch.zeros(2, *shape, device="meta"), torch.zeros(2, device="meta"))
    assert out.shape == (2, *shape)


@pytest.mark.parametrize("shape", [(2,), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_each_size_is_larger_than_the_one_before(shape):
    numbers = [sum(p.numel() for p in build(size, shape).parameters()) for size in SIZES]
    assert all(2 * small < large for small, large in itertools.pairwise(numbers))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5d", 129600)]
)
def test_durations(text, seconds):
    assert duration_of(text) == seconds
    for wrong in (text[:-1], text[-1], f"-{text}", f"{text[:-1]}x", "infs", "nanm", ""):
        with pytest.raises(ValueError, match="not a duration"):
            duration_of(wrong)


@pytest.mark.parametrize(("seconds_per_step", "size"), [(0.005, "l"), (0.1, "s"), (10.0, "xs")])
def test_the_largest_network_that_the_time_trains_well(
    tmp_path, monkeypatch, capsys, seconds_per_step, size
):
    """The times of a step grow by four with each size, from a measured one; 6,000 are enough."""
    number = {name: 4**i for i, name in enumerate(SIZES)}
    tables = {str(network_of_size(name, (1, 8, 8))): name for name in SIZES}

    def estimate(config, data):
        seconds = seconds_per_step * number[tables[str(config.network.model_dump())]]
        return {"seconds_per_step": seconds, "parameters": {"student": 1}}

    monkeypatch.setattr("pidistill.training.estimate.estimate", estimate)
    ran = []
    monkeypatch.setattr(verb, "run_verb", lambda *arguments, **options: ran.append(arguments[1]))
    arguments = ["train-teacher", "digits", "--time", "1h", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    ((chosen,),) = ran
    assert chosen["network"] == network_of_size(size, (1, 8, 8))
    assert chosen["max_train_steps"] == round(3600 / seconds_per_step / number[size])
    printed = capsys.readouterr().out
    assert ("warning: 360 steps are few" in printed) == (seconds_per_step == 10)
    assert ("--time 17h here" in printed) == (seconds_per_step == 10)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "1s"), (80, "80s"), (91, "2m"), (5399, "90m"), (5401, "2h")]
)
def test_a_duration_is_rounded_up(seconds, text):
    assert duration_text(seconds) == text
    assert duration_of(text) >= seconds


def test_a_resumed_teacher_keeps_what_was_chosen(tmp_path):
    run = ["train-teacher", "digits", "--out", str(tmp_path), "--size", "xs", "--batch-size", "4"]
    assert main([*run, "--max-train-steps", "2"]) == 0
    config = read_toml(tmp_path / "config.toml")
    assert config["network"] == network_of_size("xs", (1, 8, 8))
    assert main(["train-teacher", "digits", "--out", str(tmp_path), "--resume"]) == 0
    assert read_toml(tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--time", "10s", "--max-train-steps", "5"], "either --time or --max-train-steps"),
        (["--time", "10"], "'10' is not a duration"),
        (["--time", "10s", "--out", "{}/taken"], "not empty"),
        (["--time", "10s", "--out", "{}/taken/file/run"], "cannot write"),
    ],
)
def test_what_cannot_be_is_refused_before_steps_are_timed(
    tmp_path, monkeypatch, capsys, options, words
):
    def work(*arguments):
        raise AssertionError("it timed steps")

    monkeypatch.setattr("pidistill.training.estimate.estimate", work)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    out = [] if "--out" in options else ["--out", str(tmp_path / "run")]
    arguments = [option.format(tmp_path) for option in options]
    assert main(["train-teacher", "digits", *arguments, *out]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
