"""Students with random weights, and run folders that hold them."""

import pytest
import torch

from pidistill.files import write_text
from pidistill.model_folder import weights_name, write_description
from pidistill.networks import build_network
from pidistill.precondition import build_precondition
from pidistill.storage import write_tensors
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.trajectory import TrajectoryStudent

SONG_UNET = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 4,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
DHARIWAL_UNET = {**SONG_UNET, "out_channels": 6, "model_channels": 64}  # with a variance
UNET2D = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
LABELLED_UNET2D = {
    "num_class_embeds": 5,
    "time_embedding_type": "learned",
    "num_train_timesteps": 100,
}
TEXT_UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
}

CLASS_TRANSFORMER = {
    "sample_size": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_embeds_ada_norm": 3,
}
PROMPT_TRANSFORMER = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "num_layers": 2,
    "joint_attention_dim": 6,
    "pooled_projection_dim": 5,
    "pos_embed_max_size": 6,
}

EDM = ("edm", {})
FLOW = ("flow", {"sigma_min": 0.01, "sigma_max": 80.0})
VP = (
    "discrete_vp",
    {
        "alphas_cumprod": [0.999 * 0.99**i for i in range(100)],
        "sigma_min": 0.1,
        "sigma_max": 1.2,
    },
)

STUDENTS = {
    # name: network, its arguments, preconditioning, sample shape, classes, anchored
    "mlp": ("mlp", {"sample_shape": [1, 4, 4], "num_classes": 3}, EDM, (1, 4, 4), 3, True),
    "points": ("mlp", {"sample_shape": [2]}, EDM, (2,), 0, False),
    "song_unet": ("song_unet", SONG_UNET, EDM, (3, 8, 8), 4, False),
    "dhariwal_unet": ("dhariwal_unet", DHARIWAL_UNET, ("iddpm", {}), (3, 8, 8), 4, True),
    "diffusers_unet": ("diffusers_unet", UNET2D, VP, (3, 8, 8), 0, True),
    "labelled_diffusers_unet": (
        "diffusers_unet",
        {**UNET2D, **LABELLED_UNET2D, "null_class": 4},
        VP,
        (3, 8, 8),
        4,
        True,
    ),
    "text_unet": (
        "text_unet",
        {"unet": TEXT_UNET, "prompts": ["one", "two"], "prompt_length": 5},
        VP,
        (4, 8, 8),
        2,
        True,
    ),
    "class_transformer": ("class_transformer", CLASS_TRANSFORMER, FLOW, (4, 8, 8), 3, False),
    "prompt_transformer": (
        "prompt_transformer",
        {"transformer": PROMPT_TRANSFORMER, "prompts": ["one", "two"], "prompt_length": 5},
        FLOW,
        (4, 8, 8),
        2,
        True,
    ),
}


def build_student(name, student_class=TrajectoryStudent, **options):
    """The student `name` of the table, or one of another class, without zero weights."""
    network_name, arguments, precondition, shape, num_classes, anchored = STUDENTS[name]
    if network_name not in ("mlp", "song_unet", "dhariwal_unet"):
        pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = build_network(network_name, arguments)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape) / tensor[0].numel() ** 0.5)
    if issubclass(student_class, TrajectoryStudent):
        options = {"anchored": anchored}
    student = student_class(
        network,
        build_precondition(*precondition),
        sample_shape=shape,
        num_classes=num_classes,
        source="distilled from random weights",
        **options,
    )
    if isinstance(student, FlowMapStudent):
        torch.nn.init.normal_(student.second_time.linear1.weight, std=0.3)
    return student.eval().requires_grad_(False)


def save_run(folder, student, config='teacher = "digits"\n\n[method]\nname = "pid"\n'):
    """Write the files of a run: raw weights, different averaged ones, and the config."""
    folder.mkdir()
    averaged = {name: 0.5 * value for name, value in student.state_dict().items()}
    write_tensors(folder / weights_name(0), dict(student.state_dict()))
    write_tensors(folder / weights_name(0.999), averaged)
    write_description(folder, student, 0)
    write_text(folder / "config.toml", config)
    return folder


@pytest.fixture
def student_named():
    """Builds students."""
    return build_student


@pytest.fixture
def run_of():
    """Writes run folders."""
    return save_run


@pytest.fixture
def mlp_run(tmp_path):
    """The run folder of the student `mlp`."""
    return save_run(tmp_path / "run", build_student("mlp"))
