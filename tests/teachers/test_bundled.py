import importlib.resources

import pytest

from pidistill import load_teacher
from pidistill.data import load_data
from pidistill.evaluation.evaluate import reference_statistics
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
    reference = reference_statistics(load_data("digits").images, "digits")
    assert scores["reference_split_frechet_distance"] == pytest.approx(reference.split_half)
