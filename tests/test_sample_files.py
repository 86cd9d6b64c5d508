"""Files of samples: ours, and those of guided-diffusion's evaluations."""

import numpy as np
import pytest
import torch

from pidistill import PidistillError
from pidistill.images import from_uint8
from pidistill.sample_files import read_pixels, read_samples, write_samples


def test_our_own_form_is_read_as_it_was_written(tmp_path):
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    write_samples(tmp_path / "x.npz", x)
    assert torch.equal(read_samples(tmp_path / "x.npz"), x)
    assert torch.equal(read_pixels(tmp_path / "x.npz"), x)


def test_8_bit_images_with_channels_last(tmp_path):
    """`arr_0` is what `np.savez(file, array)` writes."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", pixels, np.arange(5))
    x = read_pixels(tmp_path / "x.npz")
    assert x.dtype == torch.uint8
    assert x.shape == (5, 3, 4, 6)
    assert x[2, 1, 3, 5] == pixels[2, 3, 5, 1]
    assert torch.equal(read_samples(tmp_path / "x.npz"), from_uint8(x))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((5, 2))}, "contains images; expected an array 'samples' or 'arr_0'"),
        ({"arr_0": np.zeros((5, 4, 4, 3))}, "arr_0 is float64"),
        ({"arr_0": np.zeros((5, 3, 4, 4), dtype=np.uint8)}, r"\(5, 3, 4, 4\).*\(n, h, w, 3\)"),
        ({"samples": np.zeros((5, 2), dtype=np.int64)}, "samples is int64"),
        ({"samples": np.full((5, 2), np.nan)}, "not finite"),
        ({"samples": np.full((5, 3, 4, 4), 255.0)}, r"reaches 255; expected images in \[-1, 1\]"),
        ({"samples": np.zeros((3, 2))}, "contains 3 sample"),
    ],
)
def test_what_is_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(PidistillError, match=words):
        read_samples(tmp_path / "x.npz")


def test_points_may_be_anywhere(tmp_path):
    np.savez(tmp_path / "x.npz", samples=np.full((5, 2), 40.0))
    assert read_samples(tmp_path / "x.npz").max() == 40
