import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from data_shards.errors import BadImage, TooManyPixels
from data_shards.pack.options import EncodeOptions
from data_shards.pixels import (
    MAX_MEGAPIXELS,
    decode_pixels,
    decode_square,
    is_gray,
    is_image_file,
    open_image,
    read_image_file,
    resize_short_side,
)
from tests.datasets import encoded, noise


def read(data):
    return decode_pixels(open_image(data))


def psnr(ours, reference):
    error = np.mean((ours.astype(float) - np.asarray(reference).astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize(
    ("kind", "mode", "expected"),
    [
        ("JPEG", "L", "L"),
        ("JPEG", "RGB", "RGB"),
        ("JPEG", "CMYK", "RGB"),
        ("PNG", "L", "L"),
        ("PNG", "LA", "RGB"),
        ("PNG", "RGB", "RGB"),
        ("PNG", "RGBA", "RGB"),
        ("PNG", "P", "RGB"),
        ("PNG", "1", "L"),
        ("BMP", "L", "L"),
        ("BMP", "RGB", "RGB"),
        ("TIFF", "L", "L"),
        ("TIFF", "RGB", "RGB"),
        ("TIFF", "CMYK", "RGB"),
        ("WEBP", "RGB", "RGB"),
        ("GIF", "P", "RGB"),
        ("PPM", "L", "L"),
    ],
)
def test_every_listed_kind_of_image_becomes_gray_or_rgb(kind, mode, expected):
    image = read(encoded(noise(1, mode="RGB").convert(mode), kind))

    assert (image.mode, image.size) == (expected, (40, 36))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("depth", "brightest"), [(16, 65535), (14, 16383), (12, 4095), (10, 1023), (8, 255)])
def test_16_bit_pixels_keep_their_contrast_whatever_depth_the_detector_had(kind, depth, brightest):
    ramp = np.linspace(0, brightest, 64 * 4).round().astype(np.uint16).reshape(4, 64)

    pixels = np.asarray(read(encoded(Image.fromarray(ramp), kind)))

    assert pixels.ravel()[[0, -1]].tolist() == [0, 255]
    assert np.abs(pixels.ravel() - np.linspace(0, 255, 256)).max() <= 1


@pytest.mark.parametrize("brightest", [65535, 4095])
def test_a_deep_tiff_whose_zero_is_white_comes_out_as_it_looks(brightest):
    ramp = np.linspace(0, brightest, 256).round().astype(np.uint16).reshape(4, 64)

    pixels = np.asarray(read(encoded(Image.fromarray(ramp), "TIFF", tiffinfo={262: 0}))).ravel()

    assert np.abs(pixels - np.linspace(255, 0, 256)).max() <= 1


def test_colors_of_12_bits_in_16_are_refused_instead_of_black():
    dark, bright = (deep_png(level) for level in (4095, 65535))

    with pytest.raises(BadImage, match="16-bit colors use the low 12 bits alone"):
        read(dark)
    assert np.asarray(read(bright)).max() == 255


def deep_png(level):
    """An RGB PNG of 16 bits, which Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">3H", level, level // 2, 0) * 8 for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_transparent_pixels_are_laid_on_black():
    image = Image.new("RGBA", (4, 4), (255, 200, 100, 0))
    image.putpixel((0, 0), (255, 200, 100, 255))

    pixels = np.asarray(read(encoded(image)))

    assert pixels[0, 0].tolist() == [255, 200, 100]
    assert not pixels[1:].any()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_turned_by_exif_comes_out_upright(orientation, kind):
    upright = Image.new("L", (48, 32))
    upright.paste(255, (0, 0, 24, 16))  # bright in the upper left
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]

    image = read(encoded(stored, kind, exif=exif))

    assert image.size == (48, 32)
    assert psnr(np.asarray(image), upright) > 35


def test_odd_metadata_are_no_reason_to_refuse_an_image():
    broken_exif = b"Exif\0\0II*\0\x08\0\0\0\xff\x7f" + bytes(20)

    assert read(encoded(noise(1), "JPEG", exif=broken_exif)).size == (40, 36)


def test_a_gray_image_stored_in_color_counts_as_gray():
    assert is_gray(noise(3, mode="L").convert("RGB"))
    assert not is_gray(noise(3, mode="RGB"))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_images_are_shrunk_to_the_short_side_and_never_enlarged(width, height, side):
    image = resize_short_side(Image.new("L", (width, height)), side)

    assert min(image.size) == min(width, height, side)
    assert image.size == (width, height) or abs(image.width / image.height - width / height) <= max(image.size) / side


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["L", "RGB"]))
@settings(max_examples=60, deadline=None)
def test_a_square_is_what_torchvision_would_give(width, height, mode):
    image = noise(width * 1000 + height, (width, height), mode)

    ours = decode_square(encoded(image), size=48, color=mode)

    reference = v2.Compose([v2.Resize(48), v2.CenterCrop(48)])(image)
    assert ours.shape == (len(mode), 48, 48)
    assert np.abs(ours.transpose(1, 2, 0).squeeze().astype(int) - np.asarray(reference).astype(int)).max() <= 2


def test_scaled_decoding_of_a_large_jpeg_stays_within_35_db_of_a_full_decode():
    image = noise(5, (1024, 900), "RGB")
    data = encoded(image, "JPEG", quality=92)

    ours = decode_square(data, size=224, color="RGB").transpose(1, 2, 0)

    reference = v2.Compose([v2.Resize(224), v2.CenterCrop(224)])(Image.open(io.BytesIO(data)))
    assert psnr(ours, reference) >= 35


def test_an_image_of_one_pixel_fills_the_square():
    assert (decode_square(encoded(Image.new("L", (1, 1), 77)), size=32, color="L") == 77).all()


def test_a_hair_of_an_image_does_not_become_a_giant():
    assert decode_square(encoded(Image.new("L", (1, 20_000), 9)), size=64, color="L").shape == (1, 64, 64)


def bomb():
    """A PNG of a few hundred bytes that claims 10 gigapixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def many_bands():
    """Return a TIFF of 13 bands, as of a satellite: a directory of tags without pixels."""
    tags = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 1), (277, 13)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def pages():
    first, second = noise(1), noise(2)
    return encoded(first, "TIFF", save_all=True, append_images=[second])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "no readable JPEG, PNG, BMP, TIFF, WebP, GIF, PNM or DICOM"),
        (bytes(128) + b"DICM" + bytes(300), "it has no pixel data, or they are cut off"),
        (b"\0\0\0\x18ftypheic" + bytes(200), "no readable .*, but HEIC or AVIF"),
        (encoded(noise(1), "GIF", save_all=True, append_images=[noise(2)]), "an animated GIF; split it"),
        (encoded(noise(1), "PNG", save_all=True, append_images=[noise(2)]), "an animated PNG; split it"),
        (encoded(noise(1, (300, 300)), "PNG")[:-500], "cannot be decoded"),
        (encoded(noise(1, (300, 300)), "JPEG")[:-500], "cannot be decoded"),
        (encoded(noise(1), "PNG")[:20], "no readable JPEG, PNG, BMP, TIFF, WebP, GIF, PNM or DICOM"),
        (bomb(), "more than 178 megapixels, above the limit of 150"),
        (pages(), "several pages"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "floating point"),
        (many_bands(), "a TIFF that is damaged, or of a kind that is not read, such as one of many bands; save it as"),
    ],
)
def test_a_bad_image_says_what_is_wrong(data, text):
    with pytest.raises(BadImage, match=text):
        read(data)


def test_pages_of_a_tiff_behind_the_second_are_not_looked_for():
    first, second, third = noise(1), noise(2), noise(3)
    data = encoded(first, "TIFF", save_all=True, append_images=[second, third])
    image = Image.open(io.BytesIO(data))
    image.seek(1)
    last = image.tag_v2.next

    with pytest.raises(BadImage, match="a TIFF of several pages; split it into single images"):
        read(data[:last])


@given(st.integers(0, 3), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_pixels_or_a_bad_image_and_nothing_else(kind, data):
    raw = bytearray(encoded(noise(1, mode="RGB"), ("JPEG", "PNG", "BMP", "TIFF")[kind]))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))

    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])

    with contextlib.suppress(BadImage):
        assert read(cut).mode in ("L", "RGB")


@pytest.mark.parametrize(("pixels", "limit"), [(149, 150), (151, 200), (180, 200)])
def test_a_large_film_is_read_up_to_the_limit(pixels, limit):
    film = encoded(Image.new("1", (pixels * 1000, 1000)), "PNG")

    image = open_image(film, max_megapixels=limit)

    assert image.size == (pixels * 1000, 1000)
    with pytest.raises(TooManyPixels, match=f"above the limit of {pixels - 1}"):
        open_image(film, max_megapixels=pixels - 1)


def test_the_limit_of_packing_is_the_limit_of_prediction():
    assert EncodeOptions().max_megapixels == MAX_MEGAPIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"])
@pytest.mark.parametrize("name", ["scan", "scan.dat", "scan.jfif"])
def test_the_content_decides_what_is_an_image(tmp_path, kind, name):
    (tmp_path / name).write_bytes(encoded(noise(1), kind))

    assert is_image_file(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"BMI,weight,height\n", b"P1 is the first patient", bytes(132)])
def test_other_content_under_another_name_is_no_image(tmp_path, data):
    (tmp_path / "notes.txt").write_bytes(data)

    assert not is_image_file(tmp_path / "notes.txt")


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")

    for name in ("pipe.jpg", "endless.jpg"):
        with pytest.raises(BadImage, match="it is a pipe, device or folder, not a regular file"):
            read_image_file(tmp_path / name)
    assert not is_image_file(tmp_path / "pipe")


def test_a_file_above_the_size_limit_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "huge.jpg").touch()
    os.truncate(tmp_path / "huge.jpg", (1 << 30) + 1)  # sparse

    with pytest.raises(BadImage, match="the file has 1073741825 bytes, above the limit of 1073741824"):
        read_image_file(tmp_path / "huge.jpg")
