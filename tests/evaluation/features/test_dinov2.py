"""DINOv2 with small random weights in the published format."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pidistill import PidistillError
from pidistill.evaluation.features import load_features
from pidistill.evaluation.features.dinov2 import load_dinov2

transformers = pytest.importorskip("transformers")

PUBLISHED_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
"""Published weight names, by their names in newer versions of transformers."""


@pytest.fixture(scope="module")
def model():
    """A small DINOv2 with random weights, at an image size it was not trained for."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=70, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def folder(model, tmp_path):
    weights = {}
    for key, value in model.state_dict().items():
        for new, published in PUBLISHED_NAMES.items():
            key = key.replace(new, published)
        weights[key] = value.contiguous()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    return tmp_path


def images(channels, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, channels, size, size), generator=generator) / 127.5 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_the_models_pooled_output(model, folder, channels):
    network = load_features("dinov2", weights=folder)
    assert network.num_features == 24
    x = images(channels)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    pixels = (x.expand(-1, 3, -1, -1) * 127.5 + 127.5) / 255
    large = torch.nn.functional.interpolate(pixels, 224, mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = model((large - mean) / std).pooler_output
        features, logits = network(x)
    assert logits is None
    assert expected.std(0).min() > 1e-4
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_the_preprocessing_is_that_of_pillow(folder):
    """To 8-bit accuracy: the reference code of the published distances resizes with Pillow."""
    import numpy as np
    from PIL import Image

    network = load_dinov2(folder, allow_download=False)
    seen = []
    network.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    pixels = (images(3, 64)[:1] * 127.5 + 127.5).round().byte()
    smooth = torch.nn.functional.avg_pool2d(pixels.float(), 9, 1, 4).byte()
    network(smooth.float() / 127.5 - 1)
    ours = (seen[0] * network.std + network.mean)[0].permute(1, 2, 0) * 255
    picture = Image.fromarray(smooth[0].permute(1, 2, 0).numpy())
    theirs = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC)).astype(np.float32)
    assert np.abs(ours.numpy() - theirs).max() < 1.5
    assert np.abs(ours.numpy() - theirs).mean() < 0.4


def test_weights_that_are_missing_unknown_or_misshapen_are_refused(folder):
    file = folder / "model.safetensors"
    whole = load_file(file)
    key = "layernorm.weight"
    others = {k: v for k, v in whole.items() if k != key}
    for weights in (others, {**whole, "extra": torch.zeros(2)}, {**others, key: torch.zeros(5)}):
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(PidistillError, match=r"another network.*(layernorm\.weight|extra)"):
            load_dinov2(folder, allow_download=False)
    file.write_bytes(b"damaged")
    with pytest.raises(PidistillError, match="holds no DINOv2"):
        load_dinov2(folder, allow_download=False)


def test_pickled_weights_are_not_looked_at(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(PidistillError, match=r"model\.safetensors does not exist"):
        load_dinov2(folder, allow_download=False)


def test_the_hugging_face_cache_is_looked_at_and_nothing_fetched(folder, tmp_path, monkeypatch):
    asked = []

    def snapshot(repository, allow_patterns, local_files_only):
        asked.append((repository, local_files_only))
        if len(asked) < 3:
            raise FileNotFoundError("no such snapshot")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(PidistillError, match="set allow_download"):
        load_dinov2(None, allow_download=False)
    with pytest.raises(PidistillError, match="cannot download"):
        load_dinov2(None, allow_download=True)
    load_dinov2(None, allow_download=False)
    repository = "facebook/dinov2-large"
    assert asked == [(repository, True), (repository, False), (repository, True)]
