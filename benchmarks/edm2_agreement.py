"""D of EDM2 checkpoints against the original program, which writes the checkpoints and answers.

    git clone https://github.com/NVlabs/edm2
    python benchmarks/edm2_agreement.py edm2

prints the table of docs/teachers/edm2.md. With `--fixture NAME` it writes the case "everything" as
`NAME.pkl` and `NAME.expected.safetensors` instead, without the original's source text.
"""

import argparse
import json
import pickle
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from pidistill import load_teacher

SIGMAS = torch.tensor([0.002, 0.05, 0.5, 1.7, 20.0, 80.0])
SMALL = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 0,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "channels_per_head": 16,
}
CASES = {
    "unconditional": {},
    "10 classes": {"label_dim": 10},
    "no attention": {"attn_resolutions": [], "channels_per_head": 64},
    "three levels": {"channel_mult": [1, 1, 2], "num_blocks": 2, "label_dim": 3},
    "one level": {"channel_mult": [2]},
    "sigma_data 1": {"sigma_data": 1.0},
    "no clipping": {"clip_act": None},
    "latents": {"img_channels": 4, "label_dim": 3},
    "everything": {
        "img_resolution": 8,
        "img_channels": 4,
        "label_dim": 3,
        "model_channels": 8,
        "attn_resolutions": [8, 4],
        "channels_per_head": 8,
        "channel_mult_noise": 2,
        "channel_mult_emb": 3,
        "label_balance": 0.3,
        "concat_balance": 0.7,
        "res_balance": 0.4,
        "attn_balance": 0.2,
        "clip_act": 1.5,
        "dropout": 0.1,
        "resample_filter": [1, 3, 3, 1],
    },
}


def original(arguments):
    """A random network of the original; its gains, which start at zero, are not zero."""
    from training.networks_edm2 import Precond

    torch.manual_seed(0)
    network = Precond(**arguments).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith("gain"):
            parameter.copy_(0.5 + torch.rand([]))
        else:  # averaged weights are shorter than normalised ones
            parameter.mul_(0.3 + 0.7 * torch.rand(len(parameter), *[1] * (parameter.ndim - 1)))
    return network.half()


def write(network, path, channels):
    """Pickle a snapshot as the original's training does."""
    import dnnlib
    from training.encoders import StabilityVAEEncoder, StandardRGBEncoder
    from training.training_loop import EDM2Loss

    encoder = StabilityVAEEncoder() if channels == 4 else StandardRGBEncoder()
    content = dnnlib.EasyDict(
        encoder=encoder,
        dataset_kwargs=dnnlib.EasyDict(class_name="training.dataset.ImageFolderDataset"),
        loss_fn=EDM2Loss(),
        ema=network,
    )
    path.write_bytes(pickle.dumps(content))


def answers(network, arguments):
    """Inputs, and the D of the original in float32."""
    classes = arguments["label_dim"]
    shape = (arguments["img_channels"], arguments["img_resolution"], arguments["img_resolution"])
    x = torch.randn(len(SIGMAS), *shape) * (0.5 + SIGMAS[:, None, None, None])
    label = torch.tensor([0, 1, 2, -1, 2, 1])
    rows = (label[:, None] == torch.arange(classes)).float()
    denoised = network.float()(x, SIGMAS, rows, force_fp32=True)
    arrays = {"x": x, "sigma": SIGMAS, "denoised": denoised}
    return {**arrays, "label": label} if classes else arrays


def main():
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--fixture", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(options.clone))
    if options.fixture:
        from training import encoders, networks_edm2, training_loop

        for module in (encoders, networks_edm2, training_loop):
            for kind in vars(module).values():
                if hasattr(kind, "_orig_module_src"):
                    kind._orig_module_src = 'raise RuntimeError("executed")\n'
        arguments = {**SMALL, **CASES["everything"]}
        network = original(arguments)
        write(network, options.fixture.with_suffix(".pkl"), arguments["img_channels"])
        expected = options.fixture.with_suffix(".expected.safetensors")
        save_file(answers(network, arguments), expected, {"arguments": json.dumps(arguments)})
        return
    print("| network | largest relative difference of D |\n|---|---|")
    for name, changes in CASES.items():
        arguments = {**SMALL, **changes}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.pkl"
            network = original(arguments)
            write(network, path, arguments["img_channels"])
            arrays = answers(network, arguments)
            teacher = load_teacher(f"edm:{path}")
            with torch.no_grad():
                ours = teacher(arrays["x"], arrays["sigma"], arrays.get("label"))
        off = (ours - arrays["denoised"]).flatten(1).norm(dim=1)
        print(f"| {name} | {(off / arrays['denoised'].flatten(1).norm(dim=1)).max():.1e} |")


if __name__ == "__main__":
    main()
