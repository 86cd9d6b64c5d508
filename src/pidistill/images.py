"""Pictures: 8-bit conversion, grids, and image files of every kind."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageOps
from torch import Tensor

from pidistill.errors import PidistillError, one_line
from pidistill.files import replacing


def is_image(sample_shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are images with 1 or 3 channels."""
    return len(sample_shape) == 3 and sample_shape[0] in (1, 3)


def is_plane(sample_shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are points in the plane."""
    return tuple(sample_shape) == (2,)


def require_image(sample_shape: tuple[int, ...]) -> None:
    """Raise `PidistillError` unless samples of this shape are images."""
    if not is_image(sample_shape):
        raise PidistillError(
            f"samples of shape {tuple(sample_shape)} are not images with 1 or 3 channels; "
            "write them to an .npz file"
        )


def picture_of(x: Tensor, *, columns: int | None = None) -> np.ndarray:
    """A grid of images, or a scatter plot of points in the plane.

    Arguments, result and errors as in `grid`.
    """
    return scatter(x) if is_plane(tuple(x.shape[1:])) else grid(x, columns=columns)


def to_uint8(x: Tensor) -> Tensor:
    """Round samples in [-1, 1] to 8 bits, as published metrics do; clips values outside."""
    return (x.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """8-bit pixels as float32 in [-1, 1]; `to_uint8` is the exact inverse."""
    return pixels.float() / 127.5 - 1


def grid(
    x: Tensor, *, columns: int | None = None, zoom: int | None = None, titles: Sequence[str] = ()
) -> np.ndarray:
    """Arrange samples in one picture, row by row, with thin white borders.

    Args:
        x: Images in [-1, 1], shape (n, c, h, w), with 1 or 3 channels.
        columns: Number of columns; None makes the grid roughly square.
        zoom: Integer magnification; None enlarges small images to about 48 pixels.
        titles: Titles of the columns, cut where they are too long; none by default.

    Returns:
        Shape (height, width, 3), uint8.

    Raises:
        PidistillError: The samples are not images.
    """
    require_image(tuple(x.shape[1:]))
    num, _, height, _ = x.shape
    columns = columns or math.ceil(math.sqrt(num))
    zoom = zoom or max(1, round(48 / height))
    tiles = to_uint8(x.cpu()).expand(-1, 3, -1, -1)
    tiles = tiles.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=255)
    blank = -num % columns
    tiles = torch.cat([tiles, tiles.new_full((blank, *tiles.shape[1:]), 255)])
    rows = tiles.unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    picture = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).contiguous().numpy()
    return np.concatenate([_headings(titles, tiles.shape[-1]), picture]) if titles else picture


def _headings(titles: Sequence[str], width: int) -> np.ndarray:
    """Titles of columns of this width, as a strip of a picture."""
    strip = Image.new("RGB", (width * len(titles), 14), "white")
    draw = ImageDraw.Draw(strip)
    for column, title in enumerate(titles):
        while title and draw.textlength(title) > width - 2:
            title = title[:-1]
        draw.text((column * width + width // 2, 1), title, fill=GREY, anchor="ma")
    return np.asarray(strip)


SIDE = 480
"""Pixels of a scatter plot's side."""
INK = np.array([194, 65, 12])
GREY = (107, 114, 128)
"""The colour of text."""


def scatter(x: Tensor, *, reach: float | None = None) -> np.ndarray:
    """Points as a scatter plot around the origin, darker where many coincide.

    Args:
        x: Points, shape (n, 2); those that are not finite are left out.
        reach: The largest coordinate that is shown; None is `reach_of` the points.

    Returns:
        Shape (height, width, 3), uint8.
    """
    points = x.double().cpu().numpy()
    points = points[np.isfinite(points).all(1)]
    reach = reach_of(x) if reach is None else reach
    points = points[(np.abs(points) < reach).all(1)]
    centres = ((points * [1, -1] / reach + 1) / 2 * (SIDE - 3)).astype(int)
    counts = np.zeros((SIDE, SIDE))
    for row, column in np.ndindex(3, 3):  # a dot
        np.add.at(counts, (centres[:, 1] + row, centres[:, 0] + column), 1)
    share = 1 - 0.6 ** counts[..., None]
    plane = np.full((SIDE, SIDE, 3), 255.0)
    plane[[0, SIDE // 2, -1]] = plane[:, [0, SIDE // 2, -1]] = 220
    canvas = Image.fromarray((plane * (1 - share) + INK * share).round().astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    draw.text((SIDE - 4, SIDE // 2 + 3), f"{reach:.3g}", fill=GREY, anchor="ra")
    draw.text((SIDE // 2 + 4, 3), f"{reach:.3g}", fill=GREY)
    return np.asarray(canvas)


def reach_of(x: Tensor) -> float:
    """A round number that nearly all coordinates of points (n, 2) are below."""
    farthest = x.double().abs().amax(1).cpu()
    farthest = farthest[farthest.isfinite()]
    most = farthest.quantile(0.999).item() if len(farthest) else 0.0
    unit = 10.0 ** math.floor(math.log10(most or 1.0))
    return math.ceil((1.05 * most or 1.0) / unit * 2) * unit / 2


MOST_COLUMNS = 20
"""More classes than this do not make a grid of one column each."""


def columns_by_class(num: int, num_classes: int) -> int | None:
    """Columns of a grid of `num` samples, nearly square, in which classes in turn line up.

    None if that needs none, or more than `MOST_COLUMNS`.
    """
    if not 1 < num_classes <= MOST_COLUMNS:
        return None
    return num_classes * max(1, round(math.sqrt(num) / num_classes))


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture (height, width, 3), uint8, as PNG, atomically."""
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="png")


GREY_MODES = ("1", "L")
COLOUR_MODES = ("RGB", "CMYK", "YCbCr", "LAB", "HSV")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
FORMATS_OF_16_BITS = ("PNG", "PPM")
"""Formats whose images of mode `I` have 16 bits."""


def read_image(
    file: str | Path | io.BytesIO,
    *,
    background: str | None = None,
    size: int | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Read an image file as 8-bit pixels (height, width, channels), 1 channel if it is grey.

    16 bits become 8 (value / 257, rounded), and EXIF orientation is applied.

    Args:
        file: A file in any format that Pillow reads, or its content.
        background: The colour behind transparent pixels, such as `white` or `#808080`; None
            refuses images with any.
        size: Resize the shorter side to this (bilinear), then crop the centre to a square, as the
            training scripts of diffusers do; None keeps the size.
        name: What errors call it; None means its path.

    Raises:
        PidistillError: The file is damaged, has several frames, has transparent pixels but
            `background` is None, or its numbers have no fixed range, as in the mode `F`.
    """
    name = name or str(file)
    try:
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise PidistillError(f"{name} has {image.n_frames} frames; expected a still image")
            is_deep = image.mode in DEEP_MODES or (
                image.mode == "I" and image.format in FORMATS_OF_16_BITS
            )
            plain = _plain(ImageOps.exif_transpose(image), name, background, is_deep=is_deep)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, PidistillError):
            raise
        raise PidistillError(f"{name} is not a readable image: {one_line(error)}") from error
    if size is not None:
        plain = _square(plain, size)
    return np.atleast_3d(np.asarray(plain))


def opaque_colour(name: str) -> tuple[int, int, int]:
    """The RGB levels of a colour such as `white` or `#808080`.

    Raises `PidistillError` if it is none that Pillow knows, or is transparent itself.
    """
    try:
        levels = ImageColor.getrgb(name)
    except ValueError:
        levels = (0, 0, 0, 0)
    if len(levels) != 3:
        raise PidistillError(
            f"background is {name!r}; expected an opaque colour, such as white or #808080"
        )
    return levels


def _plain(image: Image.Image, name: str, background: str | None, *, is_deep: bool) -> Image.Image:
    """An image as one of mode `L` or `RGB`, without transparency."""
    if is_deep and "transparency" in image.info:
        raise PidistillError(
            f"{name} has 16 bits and a transparent level; remove the transparency first"
        )
    if is_deep:
        deep = np.asarray(image).astype(np.float64)
        return Image.fromarray((deep / 257).round().clip(0, 255).astype(np.uint8))
    has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
    if image.mode == "P" and not has_alpha:
        colours = np.asarray(image.convert("RGB"))
        is_grey = bool((colours == colours[..., :1]).all())
        return image.convert("L" if is_grey else "RGB")
    if has_alpha and image.mode in (*ALPHA_MODES, *GREY_MODES, "P", "RGB"):
        return _opaque(image, name, background)
    if image.mode in (*GREY_MODES, *COLOUR_MODES):
        return image.convert("L" if image.mode in GREY_MODES else "RGB")
    raise PidistillError(
        f"{name} is of Pillow's mode {image.mode!r}, whose numbers have no fixed range; convert it "
        "to 8 or 16 bits"
    )


def _opaque(image: Image.Image, name: str, background: str | None) -> Image.Image:
    is_grey = image.mode in ("L", "1", "LA", "La")
    layer = image.convert("LA").convert("RGBA") if is_grey else image.convert("RGBA")
    if not (np.asarray(layer.getchannel("A")) == 255).all():
        if background is None:
            raise PidistillError(
                f"{name} has transparent pixels; choose what is behind them with the option "
                "?background=white"
            )
        colour = opaque_colour(background)
        layer = Image.alpha_composite(Image.new("RGBA", layer.size, colour), layer)
        is_grey = is_grey and len(set(colour)) == 1
    return layer.convert("RGB").getchannel(0) if is_grey else layer.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    """The centre of an image, resized so that its shorter side is `size`."""
    width, height = image.size
    short = min(width, height)
    image = image.resize(
        (int(size * width / short), int(size * height / short)), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def image_suffixes() -> frozenset[str]:
    """The suffixes of the formats that Pillow reads, such as `.png`, in lower case."""
    extensions = Image.registered_extensions().items()
    return frozenset(suffix for suffix, format in extensions if format in Image.OPEN)
