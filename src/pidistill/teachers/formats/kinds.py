"""What a folder, a file or a pipeline is that cannot be a teacher, by its content."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pidistill.files import read_json

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.*")
"""Files beside a network that change its weights."""
HOW_TO_FUSE = (
    "make it part of the weights once: pipeline.load_lora_weights(DIR), pipeline.fuse_lora(), "
    "pipeline.unload_lora_weights(), pipeline.save_pretrained(NEW_DIR)"
)
PIPELINES = {
    "StableDiffusionXL": "an SDXL pipeline",
    "StableDiffusion": "a Stable Diffusion pipeline",
    "StableVideoDiffusion": "a Stable Video Diffusion pipeline",
    "IF": "a DeepFloyd IF pipeline",
}
"""Names of pipelines that differ from their class, by how the class begins."""
CONDITIONS = {
    "text_encoder_2": "a second text, and sizes",
    "controlnet": "a control image (ControlNet)",
    "adapter": "a control image (T2I adapter)",
    "motion_adapter": "motion (video)",
    "image_encoder": "an image",
    "depth_estimator": "a depth map",
    "low_res_scheduler": "a smaller image",
    "movq": "an image embedding of a prior",
    "bert": "a text of another encoder than CLIP",
    "vocoder": "sound",
}
"""Components that tell what a U-Net sees besides its noisy sample."""
DISTILLED = "of a few-step model, which is distilled already and is no denoiser"
SCHEDULERS = {
    "LCM": DISTILLED,
    "TCD": DISTILLED,
    "SCM": DISTILLED,
    "FlowMatchLCM": DISTILLED,
    "ScoreSde": "instead, read the original checkpoint as score-sde:FILE",
}
"""Why schedulers are refused, or what to do, by how their class begins."""
NETWORKS = {
    "UNet1D": "a network for one-dimensional signals such as sound",
    "AudioLDM": "a network for sound",
    "UNet3D": "a video network",
    "UNetMotion": "a video network",
    "UNetSpatioTemporal": "a video network",
    "I2VGenXL": "a video network",
    "Prior": "a prior over image embeddings",
    "ControlNet": "a ControlNet, an addition to another network",
    "Autoencoder": "an autoencoder without its diffusion model",
    "VQModel": "an autoencoder without its diffusion model",
}
"""What networks are, by how their class begins."""


def first_match(table: dict[str, str], class_name: str, otherwise: str) -> str:
    """The entry of a table whose key begins `class_name`."""
    return next((text for key, text in table.items() if class_name.startswith(key)), otherwise)


def pipeline_kind(index: dict[str, Any]) -> str:
    """What the pipeline is whose model_index.json has the content `index`."""
    class_name = str(index.get("_class_name", "DiffusionPipeline"))
    name = f"a {class_name.removesuffix('Pipeline')} pipeline"
    return f"{first_match(PIPELINES, class_name, name)} ({class_name})"


def network_kind(class_name: str) -> str:
    """What the network of this class is."""
    return f"{first_match(NETWORKS, class_name, 'a network')} ({class_name})"


def folder_kind(folder: Path) -> str | None:
    """What a folder is that is not a pipeline's; None if its content does not tell."""
    if adapter := adapter_in(folder):
        return f"a LoRA or another adapter ({adapter}), which changes a pipeline; {HOW_TO_FUSE}"
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("_class_name") in ("UNet2DModel", "UNet2DConditionModel"):
        return (
            f"a UNet ({config['_class_name']}) without its scheduler, which has the noise levels: "
            "put its scheduler_config.json beside config.json"
        )
    if "_class_name" in config:
        return network_kind(str(config["_class_name"]))
    if "model_type" in config:
        return f"a model of the transformers library ({config['model_type']})"
    return None


def file_kind(path: Path) -> str:
    """What a single file is."""
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError):
        keys = []
    if any("lora" in key.lower() for key in keys):
        return f"a LoRA, which changes a pipeline; {HOW_TO_FUSE}"
    return "a single file"


def adapter_in(folder: Path) -> str | None:
    """The name of a file of a LoRA or another adapter in a folder; None without one."""
    found = sorted(file.name for pattern in ADAPTERS for file in folder.glob(pattern))
    return found[0] if found else None
