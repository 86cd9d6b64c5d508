import shutil
from pathlib import Path

import pytest

from pidistill import PidistillError, load_teacher
from pidistill.comparison.budget import Pace
from pidistill.comparison.plan import (
    Fingerprints,
    is_finished,
    make_plan,
    open_run,
)
from pidistill.comparison.recipe import read_recipe
from pidistill.data import load_data
from pidistill.settings import read_toml
from pidistill.teachers.fingerprint import teacher_fingerprint
from pidistill.training.assemble import build_trainer

from method_runs import images_of
from recipes import RUNS, SWEEP, TINY, write_recipe


def planned(folder, *parts, pace=None):
    recipe = read_recipe(write_recipe(folder, *parts))
    return make_plan(recipe, folder / "out", load_teacher(recipe.teacher), None, pace)


def ring():
    return Fingerprints(teacher_fingerprint(load_teacher("mixture:ring")), None)


def test_equal_configurations_share_their_runs(tmp_path):
    plan = planned(tmp_path, TINY, RUNS, SWEEP)
    titles = [title for title, _ in plan.runs()]
    assert titles == [
        "PID, seed 0",
        "BOOT, seed 0",
        "Step: 0.05, seed 0",
        "PID, seed 1",
        "BOOT, seed 1",
        "Step: 0.05, seed 1",
    ]
    default = plan.sweeps["Step"][1]  # 0.1 is the preset's own
    assert default.runs == plan.entries[0].runs


def test_folders_do_not_depend_on_the_order_of_the_runs(tmp_path):
    first, second = RUNS.split("[[run]]")[1:]
    plan = planned(tmp_path, TINY, RUNS)
    turned = planned(tmp_path, TINY, f"[[run]]{second}[[run]]{first}")
    assert {run.folder for _, run in plan.runs()} == {run.folder for _, run in turned.runs()}


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
    plan, other = planned(tmp_path, TINY, RUNS), planned(tmp_path, TINY.replace(old, new), RUNS)
    assert not {r.folder for _, r in plan.runs()} & {r.folder for _, r in other.runs()}


@pytest.mark.parametrize("old", ["checkpointing_steps = 1", "seeds = [0, 1]"])
def test_what_does_not_change_a_result_does_not_change_its_folder(tmp_path, old):
    new = {"checkpointing_steps = 1": "checkpointing_steps = 2", "seeds = [0, 1]": "seeds = [1]"}
    plan, other = (
        planned(tmp_path, TINY, RUNS),
        planned(tmp_path, TINY.replace(old, new[old]), RUNS),
    )
    assert {r.folder for _, r in other.runs()} <= {r.folder for _, r in plan.runs()}


def test_other_images_at_the_same_place_make_other_runs(tmp_path):
    text = TINY.replace("seeds", 'data = "made up"\nseeds') + (
        '[[run]]\nname = "CD"\nsettings.method.name = "consistency"\n'
    )
    recipe = read_recipe(write_recipe(tmp_path, text, RUNS))
    teacher = load_teacher(recipe.teacher)

    def folders(num):
        data = images_of(teacher, num)
        return [
            run.folder.name for _, run in make_plan(recipe, tmp_path, teacher, data, None).runs()
        ]

    assert folders(64) == folders(64)
    assert folders(64)[0] != folders(63)[0]  # consistency
    assert folders(64)[1:3] == folders(63)[1:3]  # see no images


def test_settings_of_all_reach_a_run_that_names_its_method(tmp_path):
    shared = "[settings.method]\nstep = 0.3\n"
    runs = '[[run]]\nname = "PID"\nsettings.method.name = "pid"\n' + RUNS.replace("PID", "other")
    plan = planned(tmp_path, TINY, shared, runs)
    assert [entry.config.method.name for entry in plan.entries] == ["pid", "pid", "boot"]
    assert [entry.config.method.step for entry in plan.entries[:2]] == [0.3, 0.3]


def test_a_variant_overrides_what_its_sweep_shares(tmp_path):
    sweep = """
    [[sweep]]
    name = "Form"
    settings.method = { residual = "velocity", num_nodes = 100 }
    [sweep.variants]
    "as it is" = {}
    "data" = { method = { residual = "data" } }
    "another method" = { method = { name = "boot" } }
    """
    entries = planned(tmp_path, TINY, sweep).sweeps["Form"]
    first, second, other = (entry.config.method for entry in entries)
    assert (first.residual, first.num_nodes) == ("velocity", 100)
    assert (second.residual, second.num_nodes) == ("data", 100)
    assert (other.name, other.num_nodes) == ("boot", 250)  # starts afresh


def test_what_may_change_is_changed_in_a_folder_that_is_there(tmp_path):
    ((_, run), *_) = planned(tmp_path, TINY, RUNS).runs()
    open_run(run, ring())
    text = TINY.replace("checkpointing_steps = 1", "checkpointing_steps = 7\nmax_micro_batch = 4")
    ((_, again), *_) = planned(tmp_path, text, RUNS).runs()
    assert again.folder == run.folder
    open_run(again, ring())
    config = read_toml(run.folder / "config.toml")
    assert (config["checkpointing_steps"], config["max_micro_batch"]) == (7, 4)


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    plan = planned(tmp_path, TINY, RUNS)
    fingerprint = ring()
    (_, pid), (_, boot), *_ = plan.runs()
    open_run(pid, fingerprint)
    open_run(pid, fingerprint)
    shutil.copytree(pid.folder, boot.folder)
    with pytest.raises(PidistillError, match="another configuration"):
        open_run(boot, fingerprint)


def test_a_config_that_was_changed_by_hand_is_refused(tmp_path):
    ((_, run), *_) = planned(tmp_path, TINY, RUNS).runs()
    fingerprint = ring()
    open_run(run, fingerprint)
    file = run.folder / "config.toml"
    file.write_text(file.read_text().replace("batch_size = 16", "batch_size = 4"))
    with pytest.raises(PidistillError, match="another configuration"):
        open_run(run, fingerprint)


def test_a_folder_that_was_cut_while_it_was_made_is_made_again(tmp_path):
    ((_, run), *_) = planned(tmp_path, TINY, RUNS).runs()
    run.folder.mkdir(parents=True)
    (run.folder / "config.toml").write_text("batch_si")
    open_run(run, ring())
    assert read_toml(run.folder / "config.toml")["batch_size"] == 16


def test_a_run_is_finished_with_its_last_checkpoint(tmp_path):
    ((_, run), *_) = planned(tmp_path, TINY, RUNS).runs()
    open_run(run, ring())
    for report in build_trainer(run.config, run.folder).run():
        finished = is_finished(run)
        assert finished == (report.step == run.config.max_train_steps)
    last = (run.folder / "student.safetensors").read_bytes()
    shutil.copy(run.folder / "state/step-000000002/student.safetensors", run.folder)
    assert not is_finished(run)  # it died before it wrote them
    list(build_trainer(run.config, run.folder).run())
    assert is_finished(run)
    assert (run.folder / "student.safetensors").read_bytes() == last


def test_a_pace_is_measured_once(tmp_path):
    text = TINY.replace("budget.images = 48", "budget.seconds = 8.0")
    asked = []

    def pace(config):
        asked.append(config)
        return Pace(seconds_per_step=2.0, seconds_before=0.0)

    first = planned(tmp_path, text, RUNS, pace=pace)
    assert [run.config.max_train_steps for _, run in first.runs()] == [4] * 4
    again = planned(tmp_path, text, RUNS, pace=None)
    assert again.runs() == first.runs()
    assert len(asked) == 2


def test_images_go_to_the_methods_that_need_some(tmp_path):
    text = TINY.replace("mixture:ring", "digits") + RUNS
    text += '[[run]]\nname = "CD"\nsettings.method.name = "consistency"\n'
    text = text.replace("seeds", 'data = "digits"\nseeds')
    recipe = read_recipe(write_recipe(tmp_path, text))
    teacher = load_teacher("digits")
    plan = make_plan(recipe, tmp_path / "out", teacher, load_data("digits"), None)
    assert [run.config.data for _, run in plan.runs()][:3] == [None, None, "digits"]


RECIPES = sorted((Path(__file__).parents[2] / "benchmarks/recipes").glob("*.toml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_of_the_results_can_be_followed(file, tmp_path):
    recipe = read_recipe(file)
    teacher = load_teacher(recipe.teacher)
    data = images_of(teacher) if recipe.data else None
    plan = make_plan(recipe, tmp_path, teacher, data, None)
    assert len(recipe.seeds) >= 3
    assert all(run.config.preview_steps == 0 for _, run in plan.runs())
    assert not list(tmp_path.iterdir())
