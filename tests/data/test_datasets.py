"""Data sets: their spec, shapes and range, and what is said about folders that will not do."""

import gzip
import logging
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill import PidistillError
from pidistill.data import load_data
from pidistill.images import to_uint8


def save(path, grey, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, dtype=np.uint8)).save(path)


def test_the_digits_are_images_in_range_with_labels():
    data = load_data("digits")
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == torch.float32
    assert (data.images.min(), data.images.max()) == (-1, 1)
    assert data.labels.dtype == torch.int64
    assert data.labels.unique().tolist() == list(range(10)) == list(range(data.num_classes))


def test_a_flat_folder_has_no_labels(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name, grey in [("b.png", 255), ("a.PNG", 0), ("c.tif", 51), (".hidden.png", 7)]:
        save(tmp_path / name, grey)
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data(f"folder:{tmp_path}")
    assert data.images.shape == (3, 3, 4, 6)
    levels = [image.unique().item() for image in data.images]
    assert levels == pytest.approx([-1, 1, 51 / 127.5 - 1])
    assert (data.labels, data.num_classes) == (None, 0)
    assert "ignored 1 other file(s) (1 .txt)" in caplog.text


def test_subfolders_are_classes_in_natural_order(tmp_path):
    names = ["10/1.png", "2/2.png", "2/10.webp", "1/deep/3.bmp", ".ipynb_checkpoints/2.png"]
    for grey, name in enumerate([*names, "__MACOSX/2/._2.png"]):
        save(tmp_path / name, grey)
    (tmp_path / "empty").mkdir()
    (tmp_path / "1" / "circle").symlink_to(tmp_path, target_is_directory=True)
    data = load_data(f"folder:{tmp_path}")
    assert (data.num_classes, data.class_names) == (3, ("1", "2", "10"))
    assert data.labels.tolist() == [0, 1, 1, 2]
    greys = ((data.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert greys == [3, 1, 2, 0]
    save(tmp_path / "beside.png", 0)
    with pytest.raises(PidistillError, match=r"1 image\(s\) beside class folders.*labels=false"):
        load_data(f"folder:{tmp_path}")
    data = load_data(f"folder:{tmp_path}?labels=false")
    assert (len(data.images), data.labels, data.class_names) == (5, None, ())


GREYS = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
PALETTE = [channel for grey in range(256) for channel in (grey, 255 - grey, 0)]


def coloured():
    image = Image.fromarray(GREYS)
    image.putpalette(PALETTE)
    return image


def with_alpha(image, alpha):
    image.putalpha(Image.new("L", image.size, alpha))
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "channels"),
    [
        (Image.fromarray(GREYS), "png", 1),
        (Image.fromarray(GREYS.astype(np.uint16) * 257), "png", 1),
        (Image.fromarray(GREYS.astype(np.uint16) * 257), "tif", 1),
        (Image.fromarray(GREYS.astype(">u2") * 257), "tif", 1),
        (Image.fromarray(GREYS).convert("P"), "png", 1),
        (Image.fromarray(GREYS).convert("RGB"), "png", 3),
        (Image.fromarray(GREYS).convert("RGB").convert("CMYK"), "tif", 3),
        (with_alpha(Image.fromarray(GREYS), 255), "png", 1),
        (with_alpha(Image.fromarray(GREYS).convert("RGB"), 255), "png", 3),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_of_grey_levels_is_read_as_those_levels(tmp_path, image, suffix, channels):
    for i in range(2):
        image.save(tmp_path / f"{i}.{suffix}")
    images = load_data(f"folder:{tmp_path}").images
    assert images.shape == (2, channels, 4, 6)
    assert np.array_equal(to_uint8(images)[1, 0].numpy(), GREYS)


def test_palettes_and_two_levels(tmp_path):
    coloured().save(tmp_path / "a.png")
    x = to_uint8(load_data(f"folder:{tmp_path}").images)
    assert np.array_equal(x[0, :2].numpy(), np.stack([GREYS, 255 - GREYS]))
    (tmp_path / "a.png").unlink()
    Image.fromarray(GREYS > 100).save(tmp_path / "a.png")
    x = to_uint8(load_data(f"folder:{tmp_path}").images)
    assert np.array_equal(x[0, 0].numpy(), 255 * (GREYS > 100))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_refused_or_composited(tmp_path, mode):
    if mode == "P":
        coloured().save(tmp_path / "a.png", transparency=0)
    else:
        with_alpha(Image.fromarray(GREYS).convert(mode[:-1]), 0).save(tmp_path / "a.png")
    with pytest.raises(PidistillError, match=r"a\.png has transparent pixels.*background=white"):
        load_data(f"folder:{tmp_path}")
    x = to_uint8(load_data(f"folder:{tmp_path}?background=white").images)
    assert (x[0, :, 0, 0] == 255).all()
    x = to_uint8(load_data(f"folder:{tmp_path}?background=#102030").images)
    assert x[0, :, 0, 0].tolist() == [16, 32, 48]


@pytest.mark.parametrize("kind", ["float", "int", "frames", "truncated"])
def test_what_has_no_8_bit_pixels_is_refused_by_name(tmp_path, kind):
    file = tmp_path / "a.tif"
    if kind == "frames":
        Image.fromarray(GREYS).save(file, save_all=True, append_images=[Image.fromarray(GREYS)])
    elif kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(file)
        file.write_bytes(file.read_bytes()[:1000])
    else:
        Image.fromarray(GREYS.astype(np.float32 if kind == "float" else np.int32)).save(file)
    words = {"float": "'F'", "int": "'I'", "frames": "2 frames", "truncated": "not a readable"}
    with pytest.raises(PidistillError, match=rf"a\.tif .*{words[kind]}"):
        load_data(f"folder:{tmp_path}")


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(GREYS).save(tmp_path / "a.png", exif=exif)
    x = to_uint8(load_data(f"folder:{tmp_path}").images)
    assert np.array_equal(x[0, 0].numpy(), np.rot90(GREYS, -1))


def test_a_mixture_of_grey_and_colour_becomes_colour(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    Image.fromarray(GREYS).save(tmp_path / "a.png")
    save(tmp_path / "b.png", 90)
    assert load_data(f"folder:{tmp_path}").images.shape == (2, 3, 4, 6)
    assert "1 of 2 images are grey" in caplog.text
    assert load_data(f"folder:{tmp_path}?channels=1").images.shape == (2, 1, 4, 6)
    (tmp_path / "b.png").unlink()
    assert load_data(f"folder:{tmp_path}?channels=3").images.shape == (1, 3, 4, 6)


def test_images_are_resized_cropped_and_mirrored(tmp_path):
    """As `Resize` (bilinear, antialiased) and `CenterCrop` of the training scripts of diffusers."""
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(12, 20), (20, 12), (8, 8)]):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / f"{i}.png")
    data = load_data(f"folder:{tmp_path}?size=8&flip=true")
    assert data.images.shape == (6, 1, 8, 8)
    assert torch.equal(data.images[3:], data.images[:3].flip(3))
    with Image.open(tmp_path / "0.png") as image:
        expected = np.asarray(image.resize((13, 8), Image.Resampling.BILINEAR))[:, 2:10]
    assert np.array_equal(to_uint8(data.images)[0, 0].numpy(), expected)
    for option in ("size=0", "size=x", "channels=2", "flip=maybe", "colour=red"):
        with pytest.raises(PidistillError, match=option.partition("=")[0]):
            load_data(f"folder:{tmp_path}?{option}")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dash", ["-idx3-ubyte", ".idx3-ubyte"])
def test_files_of_the_mnist_family(tmp_path, zipped, dash):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 3, 4), np.uint8)
    labels = np.array([1, 3, 3, 26, 1], np.uint8)
    for split in ("train", "t10k"):
        head = struct.pack(">4B3I", 0, 0, 8, 3, 5, 3, 4), struct.pack(">4BI", 0, 0, 8, 1, 5)
        files = {
            f"x-{split}-images{dash}": head[0] + pixels.tobytes(),
            f"x-{split}-labels{dash.replace('3', '1')}": head[1] + labels.tobytes(),
        }
        for name, content in files.items():
            (tmp_path / (name + zipped * ".gz")).write_bytes(
                gzip.compress(content) if zipped else content
            )
    for spec in (f"idx:{tmp_path}", f"idx:{tmp_path}?split=test"):
        data = load_data(spec)
        assert np.array_equal(to_uint8(data.images)[:, 0].numpy(), pixels)
        assert (data.class_names, data.labels.tolist()) == (("1", "3", "26"), [0, 1, 1, 2, 0])
    for file in tmp_path.glob("*images*"):
        file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(PidistillError, match="images"):
        load_data(f"idx:{tmp_path}")


def test_arrays_with_labels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.array([5, 7, 5, 5, 9]))
    data = load_data(f"npz:{tmp_path / 'x.npz'}")
    assert np.array_equal(to_uint8(data.images).numpy(), pixels.transpose(0, 3, 1, 2))
    assert (data.class_names, data.labels.tolist()) == (("5", "7", "9"), [0, 1, 0, 0, 2])
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.zeros(4, int))
    with pytest.raises(PidistillError, match=r"labels .*\(5,\)"):
        load_data(f"npz:{tmp_path / 'x.npz'}")
    np.savez(tmp_path / "x.npz", arr_0=pixels.transpose(0, 3, 1, 2) / 127.5 - 1)
    assert load_data(f"npz:{tmp_path / 'x.npz'}").labels is None


def test_what_will_not_do_is_named(tmp_path):
    with pytest.raises(PidistillError, match="is not a folder"):
        load_data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(PidistillError, match="holds no image"):
        load_data(f"folder:{tmp_path}")
    save(tmp_path / "1.png", 0)
    save(tmp_path / "2.png", 0, size=(5, 5))
    with pytest.raises(PidistillError, match=r"2\.png is 5x5 pixels, but 1\.png is 6x4"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(PidistillError, match=r"2\.png is not a readable image"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("spec", ["", "mnist", "folder:", "folder", "digits:0"])
def test_an_unknown_spec_is_refused(spec):
    with pytest.raises(PidistillError, match="unknown data"):
        load_data(spec)


def test_what_is_missing_or_empty_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("a/1.png", "c/1.png"):
        save(tmp_path / name, 9)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert load_data(f"folder:{tmp_path}").class_names == ("a", "c")
    assert "no class without images: b" in caplog.text
    np.savez(tmp_path / "x.npz", images=np.zeros((0, 8, 8, 1), np.uint8))
    with pytest.raises(PidistillError, match="holds no images"):
        load_data(f"npz:{tmp_path / 'x.npz'}")
    np.savez(tmp_path / "x.npz", images=np.ones((4, 8, 6), np.uint8) * 7)
    assert load_data(f"npz:{tmp_path / 'x.npz'}").images.shape == (4, 1, 8, 6)
    np.savez(tmp_path / "x.npz", images=np.eye(8, dtype=np.uint8)[None])
    with pytest.raises(PidistillError, match=r"0 \.\. 1; .* 255 \* x"):
        load_data(f"npz:{tmp_path / 'x.npz'}")
    for colour in ("nonsense", "rgba(0,0,0,0)"):
        with pytest.raises(PidistillError, match="background"):
            load_data(f"folder:{tmp_path}?background={colour}")


def test_a_16_bit_pgm(tmp_path):
    Image.fromarray(GREYS.astype(np.uint16) * 257).save(tmp_path / "a.pgm")
    x = to_uint8(load_data(f"folder:{tmp_path}").images)
    assert np.array_equal(x[0, 0].numpy(), GREYS)
