"""EDM teachers: every architecture and preconditioning, and errors for bad files."""

import math

import pytest
import torch
from safetensors.torch import save_file

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.files import write_json
from pidistill.networks.dhariwal_unet import DhariwalUNet
from pidistill.networks.song_unet import SongUNet

import unet_reference
from edm_files import Persistent, checkpoint, dumps, randomized

SONG = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
NCSNPP = {
    **SONG,
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
SKIPS = ("encoder_type", "decoder_type")
ADM = {**SONG, "model_channels": 32}
SIGMAS = [80.0, 20.0, 5.0, 1.0, 0.3, 0.05, 0.01, 0.0025]
LABELS = torch.tensor([0, 1, 2, 3, -1, 1, 0, 2])


def inputs():
    generator = torch.Generator().manual_seed(2)
    sigma = torch.tensor(SIGMAS)
    x = torch.randn(len(SIGMAS), 3, 16, 16, generator=generator)
    return x * (0.5 + sigma[:, None, None, None]), sigma


def assert_close(answer, expected):
    for one, other in zip(answer.double(), expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.fixture
def load(tmp_path):
    """Writes the content of a checkpoint to a pickle and loads it."""

    def written(content):
        (tmp_path / "a.pkl").write_bytes(dumps(content))
        return load_teacher(f"edm:{tmp_path / 'a.pkl'}")

    return written


@pytest.fixture
def song():
    return randomized(SongUNet(**SONG))


CASES = {
    "ddpmpp_edm": (SongUNet, {**SONG, "augment_dim": 9}, "EDMPrecond"),
    "ddpmpp_vp": (SongUNet, SONG, "VPPrecond"),
    "ddpmpp_labels_ve": (SongUNet, {**SONG, "label_dim": 4}, "VEPrecond"),
    "ncsnpp_ve": (SongUNet, NCSNPP, "VEPrecond"),
    "ncsnpp_labels_edm": (SongUNet, {**NCSNPP, "label_dim": 4, "augment_dim": 9}, "EDMPrecond"),
    "ncsnpp_vp": (SongUNet, {**NCSNPP, "embedding_type": "positional"}, "VPPrecond"),
    "skip_skip_edm": (SongUNet, NCSNPP | dict.fromkeys(SKIPS, "skip"), "EDMPrecond"),
    "adm_labels_edm": (DhariwalUNet, {**ADM, "label_dim": 4, "label_dropout": 0.1}, "EDMPrecond"),
    "adm_iddpm": (DhariwalUNet, {**ADM, "out_channels": 6, "label_dim": 4}, "iDDPMPrecond"),
    "adm_vp": (DhariwalUNet, {**ADM, "attn_resolutions": [16, 8]}, "VPPrecond"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_a_second_computation(case, load):
    network_class, config, precond = case
    network = randomized(network_class(**config))
    teacher = load(checkpoint(network, precond))
    label = LABELS if config.get("label_dim") else None
    x, sigma = inputs()
    with torch.no_grad():
        answer = teacher(x, sigma, label)
    assert_close(answer, unet_reference.denoised(precond, network, x, sigma, label))
    assert teacher.sample_shape == (3, 16, 16)
    assert teacher.num_classes == config.get("label_dim", 0)


def test_the_network_has_neither_dropout_nor_augmentation(load):
    unused = {"augment_dim": 9, "dropout": 0.13, "label_dropout": 0.1}
    network = load(checkpoint(randomized(SongUNet(**SONG, **unused)))).network
    assert {key: network.config[key] for key in unused} == dict.fromkeys(unused, 0)
    assert "map_augment.weight" not in network.state_dict()


@pytest.mark.parametrize(
    ("precond", "attributes", "expected"),
    [
        ("EDMPrecond", {}, (0.002, 80.0)),
        ("EDMPrecond", {"sigma_min": 0, "sigma_max": math.inf}, (0.002, 80.0)),
        ("EDMPrecond", {"sigma_min": 0.01, "sigma_max": 50}, (0.01, 50.0)),
        ("VPPrecond", {}, (0.00100050, 152.167)),
        ("VPPrecond", {"beta_d": 9.9, "epsilon_t": 1e-3}, (0.0102446, 12.4512)),
        ("VEPrecond", {}, (0.02, 100.0)),
        ("VEPrecond", {"sigma_max": 50.0}, (0.02, 50.0)),
        ("iDDPMPrecond", {}, (0.00642541, 80.0)),
        ("iDDPMPrecond", {"M": 100}, (0.0251333, 80.0)),
    ],
)
def test_noise_levels_come_from_the_file(precond, attributes, expected, load, song):
    teacher = load(checkpoint(song, precond, attributes=attributes))
    assert (teacher.sigma_min, teacher.sigma_max) == pytest.approx(expected, rel=1e-3)
    if attributes:  # as constructor arguments they say the same
        assert load(checkpoint(song, precond, attributes)).precondition == teacher.precondition


def test_attributes_come_before_arguments(load, song):
    """The original computes with them."""
    content = checkpoint(song, settings={"sigma_data": 0.25}, attributes={"sigma_data": 0.7})
    assert load(content).sigma_data == 0.7


def test_arguments_may_be_positional(load, song):
    content = checkpoint(song)
    model = model_of(content)
    model["_init_args"] = (16, 3, 3)
    for name in ("img_resolution", "in_channels", "out_channels"):
        del model["_init_kwargs"][name]
    content["ema"].state["_init_args"] = (16, 3, 0, False, 0.01, 50.0)
    teacher = load(content)
    assert (teacher.sigma_min, teacher.sigma_max) == (0.01, 50.0)
    assert teacher.network.config["in_channels"] == 3


@pytest.mark.parametrize(("precond", "width"), [("EDMPrecond", 3), ("iDDPMPrecond", 6)])
def test_a_network_without_arguments_takes_those_of_its_preconditioning(precond, width, load):
    content = checkpoint(randomized(SongUNet(**{**SONG, "out_channels": width})), precond)
    del model_of(content)["_init_kwargs"]
    assert load(content).network.config["out_channels"] == width


def test_half_precision_weights_are_read_as_float32(load, song):
    teacher = load(checkpoint(song.half()))
    assert {weight.dtype for weight in teacher.state_dict().values()} == {torch.float32}
    assert teacher(*inputs()).dtype == torch.float32


def test_a_file_is_recognised_by_its_content(tmp_path, song):
    (tmp_path / "a").write_bytes(dumps(checkpoint(song)))
    assert load_teacher(tmp_path / "a").sample_shape == (3, 16, 16)
    (tmp_path / "b").write_bytes(b"\x80\x04N.")
    with pytest.raises(PidistillError, match="not recognised as a teacher"):
        load_teacher(tmp_path / "b")


def model_of(content):
    return content["ema"].state["_modules"]["model"].state


def layer(content):
    return model_of(content)["_modules"]["map_layer0"].state["_parameters"]


def nest_modules(content, depth):
    chain = Persistent("Block", {"_modules": {}, "_parameters": {}})
    for _ in range(depth):
        chain = Persistent("Block", {"_modules": {"a": chain, "b": chain}})
    model_of(content)["_modules"]["deep"] = chain


def share_bytes(content):
    one = torch.zeros(10_000)
    model_of(content)["_parameters"] = {f"w{i}": one for i in range(2000)}


def set_argument(name, value):
    return lambda content: model_of(content)["_init_kwargs"].update({name: value})


def set_attribute(name, value):
    return lambda content: content["ema"].state.update({name: value})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: model_of(c)["_modules"].pop("map_layer0"), r"'map_layer0\.\w+' and 1 more"),
        (lambda c: model_of(c).update(_parameters={"extra": torch.zeros(2)}), "'extra'"),
        (lambda c: layer(c).update(bias=torch.zeros(3)), r"'map_layer0.bias' has shape \(3,\)"),
        (lambda c: setattr(c["ema"], "class_name", "Precond2"), "EDMPrecond"),
        (
            lambda c: setattr(c["ema"].state["_modules"]["model"], "class_name", "UNetModel"),
            "a PickledModule as its model",
        ),
        (lambda c: c.pop("ema"), "holds no EDM network"),
        (lambda c: nest_modules(c, 20), "nested too deeply"),
        (lambda c: nest_modules(c, 100), "nested too deeply"),
        (share_bytes, "declares more weights than its size allows"),
        (set_argument("num_blocks", 10**9), "1000000000 as num_blocks"),
        (set_argument("model_channels", "16"), "'16' as model_channels"),
        (set_argument("model_channels", 7), "cannot be built|has shape|lacks"),
        (set_argument("model_channels", 4096), "has shape"),
        (set_argument("model_channels", 10**6), "1000000 as model_channels"),
        (set_argument("channel_mult", []), "channel_mult is"),
        (set_argument("channel_mult", [1] * 100), "channel_mult"),
        (set_argument("channel_mult", [1, math.nan]), "nan as channel_mult"),
        (set_argument("encoder_type", "other"), "encoder_type is 'other'"),
        (set_argument("encoder_type", [[]]), "a list as argument encoder_type"),
        (set_argument("surprise\n", 1), r"'surprise\?'"),
        (set_argument("img_resolution", None), "a NoneType as img_resolution"),
        (set_attribute("sigma_data", math.nan), "nan as sigma_data"),
        (set_attribute("sigma_data", "x"), "'x' as sigma_data"),
        (set_attribute("sigma_max", 0.0), "noise levels from 0.002 to 0"),
    ],
)
def test_what_is_not_as_edm_writes_it_is_named(change, match, load, song):
    content = checkpoint(song)
    change(content)
    with pytest.raises(PidistillError, match=match) as caught:
        load(content)
    assert "\n" not in str(caught.value)


def test_absurd_settings_files_without_a_dictionary_and_missing_ones(load, song, tmp_path):
    with pytest.raises(PidistillError, match="1000000000 as M"):
        load(checkpoint(song, "iDDPMPrecond", attributes={"M": 10**9}))
    with pytest.raises(PidistillError, match="holds no EDM network"):
        load([1, 2])
    with pytest.raises(PidistillError, match=r"none.pkl' is not a file"):
        load_teacher(f"edm:{tmp_path / 'none.pkl'}")


def describe(network, precondition="edm", settings=None, **rest):
    name = "song_unet" if isinstance(network, SongUNet) else "DhariwalUNet"
    return {
        "network": {"name": name, "config": network.config},
        "precondition": {"name": precondition, "config": settings or {}},
        **rest,
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "ema.model."])
def test_a_state_dict_is_read_with_the_json_beside_it(suffix, prefix, tmp_path):
    network = randomized(DhariwalUNet(**ADM, label_dim=4, augment_dim=9))
    weights = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    path = tmp_path / f"a{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    write_json(tmp_path / "a.json", describe(network, "VPPrecond", {"beta_d": 19.9}))
    teacher = load_teacher(str(path))
    x, sigma = inputs()
    with torch.no_grad():
        answer = teacher(x, sigma, LABELS)
    assert_close(answer, unet_reference.denoised("VPPrecond", network, x, sigma, LABELS))
    assert teacher.num_classes == 4


def test_shape_and_classes_may_be_said_and_config_json_will_do(tmp_path, song):
    torch.save(song.state_dict(), tmp_path / "a.pt")
    description = describe(song, "edm", {"sigma_max": 50.0}, sample_shape=[3, 32, 16])
    write_json(tmp_path / "config.json", description)
    teacher = load_teacher(f"edm:{tmp_path / 'a.pt'}")
    assert (teacher.sample_shape, teacher.sigma_max) == ((3, 32, 16), 50.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"network": "song_unet"}, "must hold 'network' and 'precondition'"),
        ({"precondition": {"name": "other", "config": {}}}, "'other'"),
        ({"precondition": {"name": "edm", "config": {"x": 1}}}, "'x'"),
        ({"precondition": {"name": "edm", "config": {"sigma_max": 0}}}, "sigma_max is 0"),
        ({"network": {"name": "other", "config": {}}}, "the network 'other'"),
        ({"network": {"name": "song_unet", "config": {"x": 1}}}, "'x'"),
        (None, r"no JSON file beside it; expected a\.json"),
    ],
)
def test_a_wrong_description_is_named(change, match, tmp_path, song):
    torch.save(song.state_dict(), tmp_path / "a.pt")
    if change is not None:
        write_json(tmp_path / "a.json", describe(song) | change)
    with pytest.raises(PidistillError, match=match):
        load_teacher(f"edm:{tmp_path / 'a.pt'}")


@pytest.mark.parametrize("content", [{"a": print}, [1], {}, {"a": 1}, "truncated"])
def test_files_that_hold_no_state_dict_are_refused(content, tmp_path, song):
    path = tmp_path / "a.pt"
    torch.save(song.state_dict() if content == "truncated" else content, path)
    path.write_bytes(path.read_bytes()[:5000])
    write_json(tmp_path / "a.json", describe(song))
    with pytest.raises(PidistillError, match=r"weights_only=True|expected a state dict"):
        load_teacher(f"edm:{path}")
