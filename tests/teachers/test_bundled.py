import importlib.resources

import pytest

from pidistill import load_teacher
from pidistill.evaluation import evaluate
from pidistill.files import read_json

ASSETS = importlib.resources.files("pidistill") / "assets"


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_a_bundled_teacher_says_how_good_it_is(name):
    with importlib.resources.as_file(ASSETS / f"{name}-teacher") as folder:
        scores = read_json(folder / "metrics.json")
        assert (folder / "config.toml").is_file()
    assert scores["num_samples"] >= 2000
    assert min(scores["conditional_frechet_distance"]) > 0
    assert load_teacher(name).num_classes == 10


def test_its_scores_are_of_the_metric_as_it_is():
    with importlib.resources.as_file(ASSETS / "digits-teacher") as folder:
        scores = read_json(folder / "metrics.json")
    metrics = evaluate("digits", "digits", num=4, steps=2, metrics=["fid"])
    name = "reference_split_frechet_distance"
    assert scores[name] == pytest.approx(metrics[name])
