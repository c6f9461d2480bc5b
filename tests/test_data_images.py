"""Pictures of all kinds as squares of uint8."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pd_jax.data._images import Unreadable, decode, resize


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("side", "size"), [(32, 8), (33, 33), (30, 7), (37, 24), (9, 8)]
)
@pytest.mark.parametrize("bands", [(3,), ()])
def test_smaller_is_the_mean_over_areas(side, size, bands):
    pixels = noise(side, side, *bands)
    # With every pixel repeated `size` times, areas are whole numbers of pixels.
    fine = pixels.repeat(size, 0).repeat(size, 1).astype(np.float64)
    blocks = fine.reshape(size, side, size, side, *bands).mean((1, 3))
    small = resize(Image.fromarray(pixels), size)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(small, np.floor(blocks + 0.5))


def test_larger_keeps_levels():
    flat = Image.new("RGB", (1, 1), (3, 200, 255))
    assert np.all(resize(flat, 5) == [3, 200, 255])


def test_crop_is_central():
    pixels = noise(7, 12, 3)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(decode(encoded(image), 7), pixels[:, 2:9])
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    np.testing.assert_array_equal(
        decode(encoded(turned), 7), pixels[:, 2:9].swapaxes(0, 1)
    )


def test_exif_orientation():
    pixels = noise(6, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    data = encoded(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(decode(data, 6), np.rot90(pixels, -1))


def test_kinds_of_pixels():
    grey = noise(5, 5)
    as_rgb = np.stack([grey] * 3, -1)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey)), 5), as_rgb)
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(grey)), 5, 1), grey[..., None]
    )
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode(encoded(deep), 5), as_rgb)
    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(
        decode(encoded(bits), 5), np.where(as_rgb > 127, 255, 0)
    )
    palette = Image.fromarray(as_rgb).quantize(256)
    np.testing.assert_array_equal(
        decode(encoded(palette), 5), np.asarray(palette.convert("RGB"))
    )
    inks = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    colour = decode(encoded(inks, "JPEG"), 4)[0, 0].astype(int)
    assert colour[0] < 10
    assert colour[1] > 245
    webp = encoded(Image.new("RGB", (4, 4), (9, 90, 200)), "WEBP", lossless=True)
    assert np.all(decode(webp, 4) == [9, 90, 200])


def test_transparent_is_white():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    clear.putpixel((1, 0), (200, 0, 0, 255))
    pixels = decode(encoded(clear), 4)
    assert np.all(pixels[0, 1] == [200, 0, 0])
    assert np.sum(np.any(pixels != 255, axis=-1)) == 1
    palette = clear.convert("RGB").quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert np.any(decode(encoded(palette), 4) == 255)


def test_first_frame():
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (10, 250)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert decode(data, 4)[0, 0, 0] < 100


def chunk(kind, content):
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def bomb():
    """A PNG that says it is 100,000 pixels wide and high."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def test_what_cannot_be_read_says_why():
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    png = encoded(Image.fromarray(noise(64, 64, 3)))
    cases = [
        (b"", "format"),
        (b"some text", "format"),
        (whole[: len(whole) // 2], "truncated"),
        (png[: len(png) // 2], "truncated"),
        (bomb(), "DecompressionBomb"),
    ]
    for data, says in cases:
        with pytest.raises(Unreadable, match=says):
            decode(data, 8)
    rng = np.random.default_rng(0)
    for good in (whole, png):
        for _ in range(50):  # wherever the damage is: pixels, or this one error
            bad = np.frombuffer(good, np.uint8).copy()
            bad[rng.integers(len(bad), size=20)] = rng.integers(256, size=20)
            with contextlib.suppress(Unreadable):
                assert decode(bad.tobytes(), 8).shape == (8, 8, 3)
