"""Every scheduler and every field of a UNet2DModel: D is the library's, or there is one line.

The fields are those of the installed library. Many more are tried, in about ten minutes, by
`pytest -m slow tests/teachers/test_diffusers_fuzz.py`.
"""

import inspect
import json
import math
import shutil
import typing

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.teachers.formats.schedulers import SCHEDULERS

from diffusers_pipelines import UNET, ddim, diffusers, save
from diffusers_steps import agreement

HOSTILE = (None, 0, -1, 3, 10.0, "8", "x", True, math.nan, math.inf, 1e30, [], [1], [0.5, 2], {})
VALUES = {
    "num_train_timesteps": (2, 3, 10, 40),
    "beta_start": (1e-4, 0.01),
    "beta_end": (0.02, 0.3, 0.999),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"),
    "trained_betas": ([0.1, 0.2], [0.1, 0.3, 1.0], [0.1, 1.5], [0.2, -0.1, 0.2], [0.1, 0.0, 0.1]),
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction", "original_sample"),
    "algorithm_type": ("dpmsolver", "dpmsolver++", "deis", "data_prediction", "noise_prediction"),
    "variance_type": ("fixed_small", "learned_range"),
    "timestep_type": ("discrete", "continuous"),
    "sigma_schedule": ("karras", "exponential"),
    "shift": (1.0, 3.0, 0.2),
    "sigma_min": (0.002, 0.1),
    "sigma_max": (2.0, 80.0),
    "sigma_data": (0.5, 1.0),
    "block_out_channels": ([8], [8, 8], [4, 8, 16]),
    "down_block_types": (["DownBlock2D"], ["AttnDownBlock2D"] * 2, ["ResnetDownsampleBlock2D"] * 2),
    "up_block_types": (["UpBlock2D"], ["AttnUpBlock2D"] * 2, ["ResnetUpsampleBlock2D"] * 2),
    "layers_per_block": (1, 2),
    "attention_head_dim": (None, 4, 8),
    "norm_num_groups": (2, 4, None),
    "attn_norm_num_groups": (2, 4),
    "sample_size": (8, 16, [8, 16], 7, "8", [8]),
    "time_embedding_type": ("positional", "fourier", "learned"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift", "ada_group"),
    "act_fn": ("silu", "mish", "gelu", "relu"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "freq_shift": (0, 1, 4),
    "out_channels": (3, 6),
    "num_class_embeds": (1, 5),
    "class_embed_type": ("timestep", "identity"),
}
"""Values of fields; others get their default, the values of their annotation, or both booleans."""
ALL_SCHEDULERS = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and hasattr(getattr(diffusers, name), "from_config")
)


def values_of(name, parameter):
    usual = [] if parameter.default is inspect.Parameter.empty else [parameter.default]
    known = VALUES.get(name) or typing.get_args(parameter.annotation)
    known = [value for value in known if not isinstance(value, type)]
    return usual + ([False, True] if isinstance(parameter.default, bool) else known)


@st.composite
def configs(draw, build):
    """A config of the class `build`: some of its fields changed, at most one of them hostile."""
    parameters = inspect.signature(build.__init__).parameters
    fields = [name for name in parameters if name not in ("self", "args", "kwargs")]
    changed = draw(st.lists(st.sampled_from(fields), max_size=4, unique=True)) if fields else []
    config = {}
    for name in changed:
        value = draw(st.sampled_from(values_of(name, parameters[name]) or [None]))
        if isinstance(value, str | int | float | list | None):
            config[name] = value
    if fields and draw(st.integers(0, 3)) == 0:
        config[draw(st.sampled_from(fields))] = draw(st.sampled_from(HOSTILE))
    return config


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    diffusers.utils.logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("pipeline")
    save(folder, ddim())
    return folder


def loaded(folder):
    """The teacher, or None if it is refused by one line."""
    try:
        return load_teacher(f"diffusers:{folder}")
    except PidistillError as error:
        if "\n" in str(error):
            pytest.fail(f"more than a line: {error}")
        return None


def check_scheduler(pipeline, data):
    name = data.draw(st.sampled_from(SCHEDULERS) | st.sampled_from(ALL_SCHEDULERS))
    build = getattr(diffusers, name)
    config = {"num_train_timesteps": 40} | data.draw(configs(build))
    folder = pipeline / "scheduler"
    (folder / "scheduler_config.json").write_text(json.dumps(config | {"_class_name": name}))
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(
        json.dumps(index | {"scheduler": ["diffusers", name]})
    )
    teacher = loaded(pipeline)
    if teacher is None:
        return
    scheduler = build.from_pretrained(folder)
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    steps = scheduler.config.num_train_timesteps
    for index in {0, 1, steps // 2, steps - 2, steps - 1}:
        try:
            error, _ = agreement(teacher, unet, scheduler, [index])
        except (ValueError, NotImplementedError, IndexError, TypeError, RuntimeError):
            continue  # the library cannot sample with these settings
        assert error < 1e-5


def check_unet(pipeline, data):
    config = {**UNET, **data.draw(configs(diffusers.UNet2DModel))}
    folder = pipeline.parent / "unets"
    shutil.rmtree(folder, ignore_errors=True)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=40)
    try:
        unet = save(folder, scheduler, **config)
    except Exception:
        shutil.copytree(pipeline, folder, dirs_exist_ok=True)
        text = json.dumps(config | {"_class_name": "UNet2DModel"})
        (folder / "unet" / "config.json").write_text(text)
        assert loaded(folder) is None
        return
    teacher = loaded(folder)
    if teacher is None or teacher.num_classes:
        return
    assert agreement(teacher, unet, scheduler, [0, 20, 39])[0] < 1e-5


QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LONG = settings(QUICK, max_examples=2000, derandomize=False)


@QUICK
@given(data=st.data())
@torch.no_grad()
def test_schedulers(pipeline, data):
    check_scheduler(pipeline, data)


@QUICK
@given(data=st.data())
@torch.no_grad()
def test_unets(pipeline, data):
    check_unet(pipeline, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("check", [check_scheduler, check_unet])
def test_many(pipeline, check):
    @LONG
    @given(data=st.data())
    @torch.no_grad()
    def run(data):
        check(pipeline, data)

    run()
