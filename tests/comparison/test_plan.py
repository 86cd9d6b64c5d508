import json
from pathlib import Path

import pytest

from pidistill import load_teacher
from pidistill.comparison import plan as planning
from pidistill.comparison.costs import Cost
from pidistill.comparison.plan import plan_recipe
from pidistill.comparison.recipe import read_recipe

from method_runs import images_of
from recipes import RUNS, SWEEP, TINY, plan_of, write_recipe

CONSISTENCY = '[[run]]\nname = "CD"\nsettings.method.name = "consistency"\n'


def folders(plan):
    return [run.folder.name for _, run in plan.runs()]


def test_equal_configurations_share_their_runs(tmp_path):
    plan = plan_of(tmp_path, TINY, RUNS, SWEEP)
    assert [title for title, _ in plan.runs()] == [
        "PID, seed 0",
        "BOOT, seed 0",
        "Step: 0.05, seed 0",
        "PID, seed 1",
        "BOOT, seed 1",
        "Step: 0.05, seed 1",
    ]
    runs, sweep = plan.sections
    assert sweep.configurations[1].runs == runs.configurations[0].runs  # of the run, too


def test_folders_do_not_depend_on_the_order_of_the_runs(tmp_path):
    first, second = RUNS.split("[[run]]")[1:]
    turned = plan_of(tmp_path, TINY, f"[[run]]{second}[[run]]{first}")
    assert set(folders(plan_of(tmp_path, TINY, RUNS))) == set(folders(turned))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch_size = 16", "batch_size = 8"),
        ("budget.images = 48", "budget.images = 64"),
        ("width = 8", "width = 16"),
        ("mixture:ring", "mixture:grid"),
        ("lr_warmup_steps = 1", "lr_warmup_steps = 2"),
    ],
)
def test_another_configuration_has_other_folders(tmp_path, old, new):
    assert old in TINY
    plan, other = plan_of(tmp_path, TINY, RUNS), plan_of(tmp_path, TINY.replace(old, new), RUNS)
    assert not set(folders(plan)) & set(folders(other))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("checkpointing_steps = 1", "checkpointing_steps = 2"),
        ("seeds = [0, 1]", "seeds = [1]"),
    ],
)
def test_what_does_not_change_a_result_does_not_change_its_folder(tmp_path, old, new):
    plan, other = plan_of(tmp_path, TINY, RUNS), plan_of(tmp_path, TINY.replace(old, new), RUNS)
    assert set(folders(other)) <= set(folders(plan))


def test_other_images_of_the_same_name_make_other_runs(tmp_path, monkeypatch):
    text = TINY.replace("seeds", 'data = "made up"\nseeds') + CONSISTENCY
    teacher = load_teacher("mixture:ring")

    def planned(num):
        monkeypatch.setattr(planning, "load_data", lambda spec: images_of(teacher, num))
        return plan_of(tmp_path, text, RUNS)

    plan, other = planned(64), planned(63)
    assert [run.config.data for _, run in plan.runs()][:3] == ["made up", None, None]
    assert folders(planned(64)) == folders(plan)
    assert folders(plan)[0] != folders(other)[0]  # consistency
    assert folders(plan)[1:3] == folders(other)[1:3]  # see no images


def test_settings_of_all_reach_a_run_that_names_its_method(tmp_path):
    shared = "[settings.method]\nstep = 0.3\n"
    others = RUNS.replace("PID", "other").replace("0.1", "0.3")
    runs = '[[run]]\nname = "PID"\nsettings.method.name = "pid"\n' + others
    (section,) = plan_of(tmp_path, TINY, shared, runs).sections
    methods = [configuration.config.method for configuration in section.configurations]
    assert [method.name for method in methods] == ["pid", "pid", "boot"]
    assert [method.step for method in methods[:2]] == [0.3, 0.3]


def test_a_variant_overrides_what_its_sweep_shares(tmp_path):
    sweep = """
    [[sweep]]
    name = "Form"
    settings.method = { residual = "velocity", num_nodes = 100 }
    [sweep.variants]
    "unchanged" = {}
    "data" = { method = { residual = "data" } }
    "another method" = { method = { name = "boot" } }
    """
    (section,) = plan_of(tmp_path, TINY, sweep).sections
    first, second, other = (c.config.method for c in section.configurations)
    assert (first.residual, first.num_nodes) == ("velocity", 100)
    assert (second.residual, second.num_nodes) == ("data", 100)
    assert (other.name, other.num_nodes) == ("boot", 250)  # starts afresh


def test_what_precedes_the_first_step_is_measured_once(tmp_path, monkeypatch):
    text = TINY.replace("budget.images = 48", "budget.seconds = 8.0")
    runs = RUNS.replace('"boot"', '"knowledge"')
    asked = []

    def measure(config):
        asked.append(config)
        return Cost(seconds_per_step=2.0, preparation_seconds=3.0, memory=0)

    monkeypatch.setattr(planning, "measure_cost", measure)
    first = plan_of(tmp_path, text, runs)
    assert [run.seconds for _, run in first.runs()] == [8, 5] * 2
    assert plan_of(tmp_path, text, runs).runs() == first.runs()
    assert len(asked) == 1
    assert len(json.loads((tmp_path / "out/paces.json").read_text())) == 1


RECIPES = sorted((Path(__file__).parents[2] / "benchmarks/recipes").glob("*.toml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_of_the_results_can_be_followed(file, tmp_path, monkeypatch):
    recipe = read_recipe(file)
    teacher = load_teacher(recipe.teacher)
    monkeypatch.setattr(planning, "load_data", lambda spec: images_of(teacher))
    plan = plan_recipe(recipe, tmp_path)
    assert len(recipe.seeds) >= 3
    assert all(run.config.preview_steps == 0 for _, run in plan.runs())
    assert not list(tmp_path.iterdir())


def test_a_budget_that_pays_for_no_step_names_the_run(tmp_path):
    with pytest.raises(Exception, match="run 'PID'"):
        plan_recipe(read_recipe(write_recipe(tmp_path, TINY.replace("48", "1"), RUNS)), tmp_path)
