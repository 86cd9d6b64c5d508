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
        ({"arr_0": np.zeros((5, 4, 4, 5), dtype=np.uint8)}, r"\(5, 4, 4, 5\).*\(n, h, w, 3\)"),
        ({"arr_0": np.zeros((5, 4, 4, 3), dtype=complex)}, "complex128"),
        ({"arr_0": np.zeros((5, 4, 4, 3), dtype=bool)}, "bool"),
        ({"arr_0": np.full((5, 4, 4, 3), 256)}, "256 .. 256; expected integers in 0 .. 255"),
        ({"samples": np.zeros((5, 2), dtype=np.int64)}, "samples is int64"),
        ({"samples": np.full((5, 2), np.nan)}, "10 numbers that are not finite"),
        ({"samples": np.full((5, 2), 1e39)}, "10 numbers that are not finite"),
        ({"samples": np.full((5, 3, 4, 4), 255.0)}, r"255 .. 255; expected images in \[-1, 1\]"),
        ({"samples": np.full((5, 3, 4, 4), 0.5)}, r"0.5 .. 0.5; expected images in \[-1, 1\]"),
        ({"samples": np.zeros((3, 2))}, "contains 3 sample"),
    ],
)
def test_what_is_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(PidistillError, match=words):
        read_samples(tmp_path / "x.npz")


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", np.longdouble, ">f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_byte_order_precision_and_layout(tmp_path, dtype, order):
    x = np.linspace(-1, 1, 5 * 3 * 4 * 6).reshape(5, 3, 4, 6)
    expected = torch.from_numpy(x).float()
    np.savez(tmp_path / "x.npz", samples=np.asarray(x, dtype, order=order))
    np.savez(tmp_path / "y.npz", np.asarray(x.transpose(0, 2, 3, 1), dtype, order=order))
    for name in "xy":
        assert torch.allclose(read_samples(tmp_path / f"{name}.npz"), expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i2", np.uint16])
def test_integers_are_8_bit_pixels_wherever_the_channels_are(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6)).astype(dtype)
    np.savez(tmp_path / "x.npz", samples=pixels)
    np.savez(tmp_path / "y.npz", pixels.transpose(0, 2, 3, 1))
    for name in "xy":
        x = read_pixels(tmp_path / f"{name}.npz")
        assert x.dtype == torch.uint8
        assert np.array_equal(x.numpy(), pixels)


def test_points_may_be_anywhere(tmp_path):
    np.savez(tmp_path / "x.npz", samples=np.full((5, 2), 40.0))
    assert read_samples(tmp_path / "x.npz").max() == 40
