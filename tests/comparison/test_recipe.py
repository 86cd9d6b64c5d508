import pytest

from pidistill import PidistillError
from pidistill.comparison.recipe import read_recipe

from recipes import RUNS, SWEEP, TINY, write_recipe


def test_a_recipe_names_runs_and_sweeps(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path, TINY, RUNS, SWEEP))
    assert [entry.name for entry in recipe.run] == ["PID", "BOOT"]
    assert [entry.name for entry in recipe.sweep[0].entries()] == ["0.05", "0.1"]
    assert recipe.sweep[0].entries()[0].settings == {"method": {"step": 0.05}}
    assert recipe.sweep[0].is_numeric
    assert str(recipe.budget) == "48 images"


def test_learning_rates_are_a_table_or_its_multiples(tmp_path):
    def search(text):
        return read_recipe(write_recipe(tmp_path, text, GOOD)).learning_rates

    assert search("") is None
    assert search("learning_rates = {}").multiples == [0.25, 0.5, 1, 2, 4]
    assert search("learning_rates = [1, 3]").multiples == [1, 3]
    assert search("learning_rates.share = 1").judged_by("digits") == "frechet_distance"
    assert search("learning_rates.metric = 'error'").judged_by("digits") == "rms_error"
    assert search("learning_rates = {}").judged_by(None) == "rms_error"


def test_words_are_no_axis(tmp_path):
    sweep = SWEEP.replace("[0.05, 0.1]", '["data", "velocity"]')
    assert not read_recipe(write_recipe(tmp_path, TINY, sweep)).sweep[0].is_numeric


def test_values_that_are_nearly_equal_are_two(tmp_path):
    sweep = SWEEP.replace("[0.05, 0.1]", "[0.1234567, 0.1234568]")
    (sweep,) = read_recipe(write_recipe(tmp_path, TINY, sweep)).sweep
    assert [entry.name for entry in sweep.entries()] == ["0.1234567", "0.1234568"]


GOOD = "\n".join([TINY, RUNS, SWEEP])


def test_a_sweep_of_the_learning_rate_has_no_best_one(tmp_path):
    sweep = SWEEP.replace("method.step", "learning_rate")
    with pytest.raises(PidistillError, match="'Step' varies the learning rate"):
        read_recipe(write_recipe(tmp_path, "learning_rates = {}", TINY, sweep))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (RUNS + "\n" + SWEEP, "", "[[run]] or [[sweep]]"),
        (SWEEP, "sede = 3", "'run.1.sede'; expected one of name, preset"),
        ('"BOOT"', '"PID"', "[[run]] 'PID'"),
        ("values =", "variants =", "sweep.0.variants"),
        ('key = "method.step"', "", "key and values"),
        ('"Step"', "3", "sweep.0.name"),
        ('"Step"', '"Runs"', "[[sweep]] 'runs'"),
        ("[0.05, 0.1]", "[0.1, 0.1]", "value '0.1'"),
        ('key = "method.step"', 'key = "seed"', "seed cannot differ"),
        ('key = "method.step"', 'settings.teacher = "x"\nkey = "method.step"', "teacher cannot"),
        (SWEEP, SWEEP + SWEEP.replace('"Step"', '"step"'), "[[sweep]] 'step'"),
        ("budget.images = 48", "", "budget"),
        ("budget.images = 48", "budget = {}", "exactly one of"),
        ("budget.images = 48", "budget = { images = 48, seconds = 1.0 }", "exactly one of"),
        ("budget.images = 48", "budget.imges = 48", "did you mean 'budget.images'"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seed '0'"),
        ("seeds = [0, 1]", "seeds = []", "seeds"),
        ("seeds = [0, 1]", "seeds = [0, 1]\nevaluations = [0]", "evaluations.0 is 0"),
        ("num_samples = 32", "num_samples = true", "num_samples"),
        ("seeds = [0, 1]", "seeds = [7]\nlearning_rates = { seed = 7 }", "one of seeds"),
        ("seeds = [0, 1]", "seeds = [0]\nlearning_rates = { metric = 'fid' }", "a reference"),
        ("seeds = [0, 1]", "seeds = [0]\nlearning_rates = [1, 2, 1.0]", "'1' is given twice"),
        ("seeds = [0, 1]", "seeds = [0]\nlearning_rates = [1]", "multiples"),
        ("num_samples = 32", "num_sample = 32", "did you mean 'num_samples'"),
        ('title = "Tiny"', "title =", "not readable as TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path, old, new, words):
    assert old in GOOD
    file = write_recipe(tmp_path, GOOD.replace(old, new))
    with pytest.raises(PidistillError) as caught:
        read_recipe(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    assert words in message
