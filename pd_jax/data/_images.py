"""From the bytes of a picture to a square of uint8."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class Unreadable(ValueError):
    """Bytes that are no picture, or not a whole one."""


def decode(data: bytes, size: int, channels: int = 3) -> np.ndarray:
    """A picture's central square, resized, as [size, size, channels] uint8.

    Raises:
      Unreadable: with the cause.
    """
    return resize(square(data, channels), size).reshape(size, size, channels)


def square(data: bytes, channels: int = 3) -> Image.Image:
    """A picture's central square, 8 bits a channel.

    Turned as its EXIF data say; of an animation the first frame; transparent parts on
    white; 16-bit grey levels to the nearest of 256.

    Args:
      data: a file in any format that Pillow reads.
      channels: 3 for RGB, 1 for grey.

    Raises:
      Unreadable: with the cause.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _eight_bits(_central_square(image), channels)
    except UnidentifiedImageError as error:
        raise Unreadable("not a picture in a format that Pillow reads") from error
    # Decoders fail in many ways on damaged bytes: OSError, SyntaxError, struct.error,
    # DecompressionBombError, ...
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _eight_bits(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):  # grey, 16 bits in 16 or 32
        levels = np.clip(np.rint(np.asarray(image) / 257.0), 0, 255)
        image = Image.fromarray(levels.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB" if channels == 3 else "L")


def resize(image: Image.Image, size: int) -> np.ndarray:
    """A square RGB or grey picture as [size, size, 3] or [size, size] uint8.

    Smaller: the mean over each new pixel's area, to the nearest level. Larger: bicubic.
    """
    side = image.width
    if side % size == 0:  # the same means as below, many times faster
        return np.asarray(image.reduce(side // size))
    if side < size:
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    pixels = np.asarray(image)
    total = _sums(_sums(pixels, size).swapaxes(0, 1), size).swapaxes(0, 1)
    return np.floor(total / side**2 + 0.5).astype(np.uint8)


def _sums(pixels: np.ndarray, size: int) -> np.ndarray:
    """Sums over `size` equal parts of axis 0, in 1/size pixels: whole numbers."""
    side = len(pixels)
    edges = np.arange(size + 1) * side
    total = np.zeros((size, *pixels.shape[1:]))
    for k in range(side // size + 2):  # at most so many pixels touch a part
        pixel = edges[:-1] // size + k
        inside = np.minimum(edges[1:], (pixel + 1) * size)
        inside = np.maximum(inside - np.maximum(edges[:-1], pixel * size), 0)
        inside = inside.reshape(-1, *[1] * (pixels.ndim - 1)).astype(np.float32)
        total += inside * pixels[np.minimum(pixel, side - 1)]
    return total
