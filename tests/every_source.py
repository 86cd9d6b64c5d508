"""One teacher of every source: what all must pass is parametrised over `SPECS`.

A new source adds an entry: a function that makes a teacher below a temporary folder and returns
its spec.
"""

from pathlib import Path

import torch

from pidistill.files import write_json
from pidistill.model_folder import write_description
from pidistill.networks.edm2_unet import EDM2UNet
from pidistill.networks.song_unet import SongUNet
from pidistill.storage import write_tensors
from pidistill.teachers.mixture import MIXTURES

import edm_files
import score_sde_files

FIXTURES = Path(__file__).parent / "reference" / "data"


def native(folder, teacher):
    write_description(folder, teacher, 0)
    write_tensors(folder / "student.safetensors", dict(teacher.state_dict()))
    return f"native:{folder}"


def edm(folder, precondition):
    network = SongUNet(
        img_resolution=8,
        in_channels=3,
        out_channels=6 if precondition == "iDDPMPrecond" else 3,
        model_channels=16,
        channel_mult=[1, 2],
        num_blocks=1,
        attn_resolutions=[4],
    )
    content = edm_files.checkpoint(edm_files.randomized(network), precondition)
    (folder / "network.pkl").write_bytes(edm_files.dumps(content))
    return f"edm:{folder / 'network.pkl'}"


def edm2_guided(folder):
    guide = edm_files.edm2_checkpoint(edm_files.randomized(EDM2UNet(16, 3, 3, 10, 8, [1, 1])))
    (folder / "guide.pkl").write_bytes(edm_files.dumps(guide))
    return f"edm:{FIXTURES / 'edm2_cond.pkl'}?guide={folder / 'guide.pkl'}&guidance=2"


def score_sde(folder, config):
    network = score_sde_files.network(config)
    torch.save(score_sde_files.checkpoint(network), folder / "checkpoint.pth")
    write_json(folder / "checkpoint.pth.json", score_sde_files.said(config))
    return f"score-sde:{folder / 'checkpoint.pth'}"


def pipeline(folder, more="", **options):
    import diffusers_pipelines

    diffusers_pipelines.save(folder, diffusers_pipelines.ddim("cosine", **options))
    return f"diffusers:{folder}{more}"


def prompts(folder, more=""):
    import diffusers_pipelines

    diffusers_pipelines.stable_diffusion(folder)
    return diffusers_pipelines.spec(folder, more)


def transformer(folder, more=""):
    import diffusers_transformers

    diffusers_transformers.dit(
        folder, diffusers_transformers.SCHEDULERS["flow"](), num_embeds_ada_norm=3
    )
    return f"diffusers:{folder}{more}"


def prompts_3(folder, more=""):
    import diffusers_pipelines
    import diffusers_transformers

    diffusers_transformers.stable_diffusion_3(folder)
    return diffusers_pipelines.spec(folder, more)


SPECS = {
    **{f"mixture:{name}": lambda folder, _, name=name: f"mixture:{name}" for name in MIXTURES},
    "digits": lambda folder, _: "digits",
    "glyphs": lambda folder, _: "glyphs",
    "native": native,
    "edm ddpm++": lambda folder, _: f"edm:{FIXTURES / 'edm_ddpmpp_uncond.pkl'}",
    "edm adm": lambda folder, _: f"edm:{FIXTURES / 'edm_adm_cond.pkl'}",
    "edm2": lambda folder, _: f"edm:{FIXTURES / 'edm2_latents.pkl'}",
    "edm2 guided": lambda folder, _: edm2_guided(folder),
    "edm vp": lambda folder, _: edm(folder, "VPPrecond"),
    "edm ve": lambda folder, _: edm(folder, "VEPrecond"),
    "edm iddpm": lambda folder, _: edm(folder, "iDDPMPrecond"),
    "score-sde vp": lambda folder, _: score_sde(
        folder, {**score_sde_files.NCSNPP, "fourier": False}
    ),
    "score-sde ve": lambda folder, _: score_sde(folder, score_sde_files.NCSNPP),
    "lucidrains": lambda folder, _: f"lucidrains:{FIXTURES / 'lucidrains.pt'}?image_size=8",
    "diffusers": lambda folder, _: pipeline(folder, "?sigma_max=80"),
    "diffusers v": lambda folder, _: pipeline(
        folder, "?sigma_max=80", prediction_type="v_prediction"
    ),
    "diffusers text": lambda folder, _: prompts(folder),
    "diffusers guided text": lambda folder, _: prompts(folder, "&guidance=3"),
    "diffusers transformer": lambda folder, _: transformer(folder, "?sigma_max=80"),
    "diffusers guided text 3": lambda folder, _: prompts_3(folder, "&guidance=3&sigma_max=80"),
}
