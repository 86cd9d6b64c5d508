"""Run configs: every valid one comes back from its file, every mistake is named in one line."""

import difflib
import itertools
import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.methods.denoising import DenoisingSettings
from pidistill.methods.pid import PIDSettings
from pidistill.presets import read_preset
from pidistill.settings import read_toml
from pidistill.teachers import absolute_spec
from pidistill.training.config import (
    CHANGEABLE,
    RunConfig,
    parse_config,
    require_same_run,
    write_config,
)
from pidistill.training.tracking import TRACKERS

counts = st.integers(1, 10**6)
shares = st.floats(0, 1, exclude_max=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
json_values = st.booleans() | st.integers(-(2**31), 2**31) | st.floats(-1e6, 1e6) | texts

FIELDS = {
    "teacher": texts,
    "data": texts,
    "seed": st.integers(0, 2**63 - 1),
    "max_train_steps": counts,
    "batch_size": counts,
    "gradient_accumulation_steps": counts,
    "mixed_precision": st.sampled_from(["no", "bf16", "fp16"]),
    "optimizer": st.sampled_from(["adamw", "radam"]),
    "learning_rate": st.floats(1e-12, 1e3),
    "learning_rate_scale": st.floats(1e-3, 1e3),
    "adam_beta1": shares,
    "adam_beta2": shares,
    "adam_weight_decay": st.floats(0, 10),
    "lr_scheduler": st.sampled_from(["constant", "linear", "cosine"]),
    "lr_warmup_steps": st.integers(0, 10**6),
    "lr_end": st.floats(0, 1),
    "max_grad_norm": st.floats(1e-6, 1e6),
    "ema_rates": st.lists(
        st.floats(0.01, 0.9999), min_size=1, max_size=3, unique_by=lambda rate: f"{rate:g}"
    ),
    "ema_warmup": st.booleans(),
    "logging_steps": counts,
    "report_to": st.lists(st.sampled_from(["all", *TRACKERS]), unique=True),
    "checkpointing_steps": counts,
    "checkpoints_total_limit": counts,
    "keep_best": st.booleans(),
    "preview_steps": st.integers(0, 10**6),
    "max_micro_batch": counts,
    "torch_compile": st.booleans(),
    "allow_tf32": st.booleans(),
    "network": st.fixed_dictionaries(
        {"name": texts}, optional={"config": st.dictionaries(texts, json_values, max_size=3)}
    ),
}
PID_FIELDS = {
    "derivative": st.sampled_from(["one-sided", "central", "jvp"]),
    "step": st.floats(1e-6, 2),
    "num_nodes": st.integers(2, 10**4),
    "draw": st.sampled_from(["nodes", "rho", "log", "log-normal"]),
    "residual": st.sampled_from(["data", "velocity"]),
    "distance": st.sampled_from(["l2", "l1", "pseudo-huber"]),
    "normalise": st.floats(0, 10),
    "anchored": st.booleans(),
    "initialisation": st.sampled_from(["copied", "random"]),
    "parametrisation": st.sampled_from(["linear", "edm", "soft"]),
    "boundary_weight": st.floats(0, 100),
}
DENOISING_FIELDS = {
    "p_mean": st.floats(-10, 10),
    "p_std": st.floats(1e-3, 10),
    "sigma_data": st.none() | st.floats(1e-3, 10),
    "label_dropout": st.floats(0, 1),
    "held_out": st.floats(0, 0.9),
}
methods = st.fixed_dictionaries({"name": st.just("pid")}, optional=PID_FIELDS) | (
    st.fixed_dictionaries({"name": st.just("denoising")}, optional=DENOISING_FIELDS)
)
configs = st.fixed_dictionaries({"method": methods}, optional=FIELDS)


@given(configs)
def test_a_valid_config_comes_back_from_its_file(tmp_path_factory, values):
    config = parse_config([values])
    path = tmp_path_factory.mktemp("config") / "config.toml"
    write_config(path, config)
    again = parse_config([read_toml(path)])
    assert again == config
    for key in values.keys() - {"method", "network", "teacher"}:
        assert getattr(again, key) == values[key]
    if "teacher" in values:  # "." is a path
        assert again.teacher == absolute_spec(values["teacher"])
    for key, value in values["method"].items():
        assert getattr(again.method, key) == value


def test_the_strategies_draw_every_key():
    assert FIELDS.keys() == RunConfig.model_fields.keys() - {"method"}
    assert PID_FIELDS.keys() == PIDSettings.model_fields.keys() - {"name"}
    assert DENOISING_FIELDS.keys() == DenoisingSettings.model_fields.keys() - {"name"}


def message_of(*layers):
    """The one line with which a config is refused."""
    with pytest.raises(PidistillError) as caught:
        parse_config(list(layers), "run.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("run.toml: ")
    return message


def misspelt(key, data):
    """`key` with a letter lost, doubled, or swapped with its neighbour."""
    i = data.draw(st.integers(0, len(key) - 2))
    how = data.draw(st.sampled_from(["lost", "doubled", "swapped"]))
    if how == "swapped":
        return key[:i] + key[i + 1] + key[i] + key[i + 2 :]
    return key[:i] + key[i] * (0 if how == "lost" else 2) + key[i + 1 :]


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_an_unknown_key_names_the_nearest_known_one(key, data):
    typo = misspelt(key, data)
    if typo in RunConfig.model_fields:
        return
    message = message_of({"method": {"name": "pid"}, typo: 1})
    assert f"unknown key {typo!r}" in message
    ratios = {k: difflib.SequenceMatcher(None, k, typo).ratio() for k in RunConfig.model_fields}
    suggested = message.split("did you mean ")[1].strip("?").strip("'")
    assert ratios[suggested] >= ratios[key] - 1e-9
    assert suggested == key or ratios[suggested] > 0.8


@pytest.mark.parametrize(
    ("table", "typo", "known"),
    [
        ("method", {"name": "pid", "num_node": 1}, "num_nodes"),
        ("network", {"name": "mlp", "confg": {}}, "config"),
    ],
)
def test_an_unknown_key_of_a_table_names_the_nearest_known_one(table, typo, known):
    message = message_of({"method": {"name": "pid"}, table: typo})
    assert f"unknown key '{table}.{[*typo][1]}'; did you mean '{table}.{known}'?" in message


WRONG = {
    "seed": [-1, 1.5, "a", 2**63, [], {}],
    "max_train_steps": [0, -1, 1.5, "a", [1], {"a": 1}],
    "learning_rate": [0, -1, "fast", math.nan, [1.0]],
    "adam_beta1": [1.0, -0.1, "a"],
    "mixed_precision": ["fp8", 16, True],
    "optimizer": ["sgd", 1],
    "lr_scheduler": ["Linear", 1],
    "lr_end": [1.1, -0.1],
    "max_grad_norm": [0, -1, "a"],
    "ema_rates": [[], [0], [1], [0.9, 1.5], 0.9, ["a"], [0.9, 0.9], {"a": 0.9}],
    "ema_warmup": ["perhaps", 2, []],
    "teacher": [1, ["digits"], {}],
    "network": [
        *["mlp", 1, [], {}, {"name": 1}, {"name": "mlp", "config": 3}],
        *({"name": "mlp", "config": {"a": value}} for value in (math.inf, math.nan, [date.min])),
    ],
    "method": ["pid", {}, {"name": "gan"}, {"name": 3}, {"name": ["pid"]}, ["pid"]],
    "preview_steps": [-1, "a"],
    "report_to": ["tensorbord", ["w&b"], 7, [1], {"a": 1}],
    "checkpoints_total_limit": [0],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_key(key):
    for value in WRONG[key]:
        assert key in message_of({"method": {"name": "pid"}, key: value})


NUMBERS = [key for key, field in RunConfig.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (NUMBERS, [True, "3", "0.5", [1], math.inf, -math.inf, math.nan]),
        (["ema_warmup", "keep_best"], [0, 1, "true", "no", 1.0]),
    ],
)
def test_numbers_are_finite_numbers_and_choices_are_true_or_false(keys, values):
    for key, value in itertools.product(keys, values):
        assert key in message_of({"method": {"name": "pid"}, key: value})


WRONG_OF_PID = {
    "derivative": ["forward"],
    "step": [0, "0.1"],
    "num_nodes": [1, 20.0],
    "draw": ["uniform"],
    "residual": [9],
    "distance": ["l3"],
    "normalise": [-1],
    "anchored": ["a bit", 1],
    "initialisation": ["rescaled"],
    "parametrisation": ["cosine"],
    "boundary_weight": [-1],
}


@pytest.mark.parametrize("key", WRONG_OF_PID)
def test_a_wrong_value_of_the_method_is_refused_by_name(key):
    for value in WRONG_OF_PID[key]:
        assert f"method.{key}" in message_of({"method": {"name": "pid", key: value}})


def test_a_config_without_a_method_is_refused():
    assert "method" in message_of({})


def test_later_layers_override_earlier_ones_key_by_key():
    config = parse_config(
        [
            {"seed": 1, "batch_size": 8, "method": {"name": "pid", "step": 0.2, "draw": "rho"}},
            {"seed": 2, "method": {"step": 0.3}},
            {"method": {"name": "pid", "num_nodes": 9}},
        ]
    )
    assert (config.seed, config.batch_size) == (2, 8)
    assert config.method == PIDSettings(step=0.3, draw="rho", num_nodes=9)
    other = {"method": {"name": "denoising"}}  # it starts afresh
    assert parse_config([{"method": {"name": "pid", "step": 0.2}}, other]).method == (
        DenoisingSettings()
    )


def test_the_fast_preset_holds_the_defaults_and_a_learning_rate():
    preset = parse_config([read_preset("fast")])
    assert preset == parse_config([{"method": {"name": "pid"}, "learning_rate": 1e-3}])


PUBLISHED = {
    "optimizer": "radam",
    "learning_rate": 2e-4,
    "batch_size": 512,
    "max_train_steps": 800_000,
    "ema_rates": [0.999, 0.9999, 0.99995],
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "adam_weight_decay": 0,
    "max_grad_norm": None,
}
PUBLISHED_PID = {"derivative": "one-sided", "num_nodes": 250, "draw": "nodes", "normalise": 0}


def test_the_published_preset_is_the_papers():
    config = parse_config([read_preset("published")])
    assert config.model_dump(include={*PUBLISHED}) == PUBLISHED
    more = {"anchored": False, "parametrisation": "linear"}
    assert config.method == PIDSettings(**PUBLISHED_PID, **more)


def test_an_unknown_preset_is_refused():
    with pytest.raises(PidistillError, match=r"unknown preset 'slow'; expected one of .*fast"):
        read_preset("slow")


def test_a_file_that_is_not_toml_is_refused(tmp_path):
    with pytest.raises(PidistillError, match="does not exist"):
        read_toml(tmp_path / "run.toml")
    deep, long = b"a = " + b"[" * 10**5, b"seed = " + b"1" * 5000
    for content in (b"seed = ", b"seed = 1\nseed = 2", b"\xff\xfe", deep, long):
        (tmp_path / "run.toml").write_bytes(content)
        with pytest.raises(PidistillError, match=r"run\.toml is not readable as TOML"):
            read_toml(tmp_path / "run.toml")


def pid(**changes):
    return parse_config([{"method": {"name": "pid"}, "teacher": "digits"}, changes])


@pytest.mark.parametrize("key", CHANGEABLE)
def test_how_long_and_how_watched_may_change_when_a_run_is_resumed(tmp_path, key):
    flags = {"keep_best": False, "torch_compile": True, "allow_tf32": False}
    value = {"report_to": "tensorboard", **flags}.get(key, 7)
    require_same_run(pid(), pid(**{key: value}), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("teacher", "mixture:ring"),
        ("batch_size", 64),
        ("learning_rate", 0.5),
        ("ema_rates", [0.5]),
        ("method", {"name": "pid", "step": 0.2}),
        ("method", {"name": "denoising"}),
        ("network", {"name": "mlp"}),
    ],
)
def test_what_decides_a_run_may_not_change_when_it_is_resumed(tmp_path, key, value):
    with pytest.raises(PidistillError, match=f"{key}.* was started with") as caught:
        require_same_run(pid(), pid(**{key: value}), tmp_path)
    assert "\n" not in str(caught.value)
