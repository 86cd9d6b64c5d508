"""EDM2 teachers: guides, latents, sizes, forced weight normalisation.

That D is the original's is in tests/reference.
"""

import numpy as np
import pytest
import torch

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.networks import build_network
from pidistill.networks.edm2_unet import EDM2UNet, MPConv
from pidistill.networks.song_unet import SongUNet
from pidistill.teachers import absolute_spec, split_spec
from pidistill.teachers.fingerprint import teacher_fingerprint

from edm_files import checkpoint, dumps, edm2_checkpoint, randomized
from every_source import FIXTURES
from method_runs import small as settings
from method_runs import train

MAIN = FIXTURES / "edm2_cond.pkl"
LATENTS = FIXTURES / "edm2_latents.pkl"
SIGMA = torch.tensor([80.0, 3.0, 0.3, 0.01])
LABEL = torch.tensor([0, 9, -1, 4])


def write(path, content):
    path.write_bytes(dumps(content))
    return path


def small(label_dim=0, channels=3, size=16):
    return randomized(EDM2UNet(size, channels, channels, label_dim, 8, [1, 1], num_blocks=1))


def answers(teacher, label=LABEL):
    x = torch.randn(4, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return teacher(x * (0.5 + SIGMA[:, None, None, None]), SIGMA, label)


@pytest.mark.parametrize(
    ("width", "millions"),
    [(128, 125), (192, 280), (256, 498), (320, 777), (384, 1119), (448, 1523)],
)
def test_published_sizes(width, millions):
    for channels in (3, 4):
        arguments = {"img_resolution": 64, "in_channels": channels, "out_channels": channels}
        with torch.device("meta"):
            network = build_network(
                "edm2_unet", {**arguments, "label_dim": 1000, "model_channels": width}
            )
        assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


@pytest.mark.parametrize("kind", ["with labels", "without labels", "of EDM"])
def test_a_guide(kind, tmp_path, monkeypatch):
    content = {
        "with labels": lambda: edm2_checkpoint(small(10)),
        "without labels": lambda: edm2_checkpoint(small()),
        "of EDM": lambda: checkpoint(randomized(SongUNet(16, 3, 3, 10, model_channels=16))),
    }[kind]()
    guide = load_teacher(write(tmp_path / "guide.pkl", content))
    monkeypatch.chdir(tmp_path)
    spec = f"edm:{MAIN}?guide=guide.pkl&guidance=2.5"
    guided, main = load_teacher(spec), load_teacher(f"edm:{MAIN}")
    weak = answers(guide, LABEL if guide.num_classes else None)
    torch.testing.assert_close(answers(guided), answers(main) + 1.5 * (answers(main) - weak))
    assert guided.evaluations_per_call == 2
    assert guided.network_to_copy()[0] is guided.denoiser.network
    elsewhere = f"edm:{MAIN}?guide={tmp_path / 'guide.pkl'}&guidance=2.5"
    assert absolute_spec(spec) == elsewhere
    assert split_spec(elsewhere.removeprefix("edm:"))[0] == "edm"
    others = [elsewhere.replace("2.5", "2"), f"edm:{MAIN}?guide={MAIN}&guidance=2.5"]
    hashes = [teacher_fingerprint(load_teacher(s)) for s in (spec, elsewhere, *others)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("guide=uncond.pkl", "both a guide and its scale"),
        ("guidance=2", "both a guide and its scale"),
        ("guide=uncond.pkl&guidance=high", "finite number"),
        ("guide=missing.pkl&guidance=2", "'missing.pkl' is not a file"),
        ("guide=seven.pkl&guidance=2", "has 7 classes; expected none, or 10"),
        ("guide=coarse.pkl&guidance=2", r"shape \(3, 8, 8\); expected \(3, 16, 16\)"),
        ("guide=narrow.pkl&guidance=2", "sigma from 0.01 to 80"),
        ("guide=latent.pkl&guidance=2", "encoders differ"),
        ("vae=.", "samples are images"),
        ("steps=3", "unknown option 'steps'"),
    ],
)
def test_options_that_do_not_fit(options, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "uncond.pkl", edm2_checkpoint(small()))
    write(tmp_path / "seven.pkl", edm2_checkpoint(small(7)))
    write(tmp_path / "coarse.pkl", edm2_checkpoint(small(size=8)))
    numbers = dict.fromkeys(("scale", "bias"), np.ones(3, np.float32))
    write(tmp_path / "latent.pkl", edm2_checkpoint(small(), numbers))
    network = randomized(SongUNet(16, 3, 3, model_channels=16))
    write(tmp_path / "narrow.pkl", checkpoint(network, attributes={"sigma_min": 0.01}))
    with pytest.raises(PidistillError, match=problem):
        load_teacher(f"edm:{MAIN}?{options}")


@pytest.mark.parametrize("place", [".", "vae"])
def test_latents_are_decoded_by_a_vae(place, tmp_path):
    pytest.importorskip("diffusers")
    from diffusers_pipelines import autoencoder

    vae = autoencoder()
    vae.save_pretrained(tmp_path / place)
    teacher = load_teacher(f"edm:{LATENTS}?vae={tmp_path}")
    latents = 0.5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    std, mean = torch.tensor([[4.17, 4.62, 3.71, 3.28], [5.81, 3.25, 0.12, -2.15]])
    raw = latents * (std / 0.5)[:, None, None] + mean[:, None, None]  # of images in [0, 1]
    with torch.no_grad():
        torch.testing.assert_close(teacher.decoder(latents), 2 * vae.decode(raw).sample - 1)
    alone = load_teacher(f"edm:{LATENTS}")
    assert alone.decoder is None
    assert "latents of stabilityai/sd-vae-ft-mse" in alone.source
    with pytest.raises(PidistillError, match="expected the folder of an AutoencoderKL"):
        load_teacher(f"edm:{LATENTS}?vae={FIXTURES}")


@pytest.mark.parametrize(
    "scale",
    [
        np.array([1, "a", 2, 3], dtype=object),
        np.ones((2, 2), np.float32),
        np.ones(10_000, np.float32),
        np.ones(4, ">f4"),
        np.ones(4, np.complex64),
        np.ones(3, np.float32),
        np.zeros(4, np.float32),
        [1.0, 1.0, 1.0, 1.0],
        None,
    ],
    ids=["objects", "matrix", "long", "big-endian", "complex", "short", "zero", "list", "none"],
)
def test_encoders_that_no_checkpoint_has(scale, tmp_path):
    content = edm2_checkpoint(small(channels=4), {"scale": scale, "bias": np.zeros(4, np.float32)})
    with pytest.raises(PidistillError, match=r"nothing in it was executed|are not 4 numbers"):
        load_teacher(write(tmp_path / "a.pkl", content))


def test_training_states_are_refused_by_name(tmp_path):
    torch.save({"net": {}}, tmp_path / "training-state-0000001.pt")
    with pytest.raises(PidistillError, match="state of a training run"):
        load_teacher(f"edm:{tmp_path / 'training-state-0000001.pt'}")


def test_training_stores_rows_of_unit_magnitude(tmp_path):
    teacher = load_teacher(MAIN)
    before = answers(teacher)
    teacher.train()
    answers(teacher)  # does not change the weights, unlike the original's
    teacher.eval()
    torch.testing.assert_close(answers(teacher), before, rtol=0, atol=0)
    layers = [module for module in teacher.modules() if isinstance(module, MPConv)]
    for layer in layers:
        layer.constrain_()
    torch.testing.assert_close(answers(teacher), before, rtol=1e-2, atol=1e-2)
    config = settings("pid", f"edm:{MAIN}", max_train_steps=1, batch_size=2)
    student = train(config, tmp_path / "run").method.student
    for module in student.modules():
        if isinstance(module, MPConv):
            magnitude = module.weight.flatten(1).square().mean(1).sqrt()
            torch.testing.assert_close(magnitude, torch.ones_like(magnitude), rtol=0, atol=3e-4)
