import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from data_shards.errors import BadImage
from data_shards.pack.encode import encode, encoded_like_packed
from data_shards.pack.metadata import without_metadata
from data_shards.pack.options import LARGEST_MEGAPIXELS, EncodeOptions
from data_shards.pixels import MAX_PACKED_MEGAPIXELS, decode_pixels, open_image
from tests.datasets import encoded, noise

CANARY = b"DOE^JOHN"
SCAN = re.compile(rb"\xff\xda.*\xff\xd9", re.DOTALL)
TABLES = re.compile(rb"\xff\xdb.{2}[^\xff]*", re.DOTALL)
ORIENTATION = 0x0112


def stored(raw, **options):
    return encode(raw, EncodeOptions(**options))[0]


def pixels(raw):
    """Return the pixels that the reader of shards gets."""
    return np.asarray(decode_pixels(open_image(raw)))


def exif(orientation=1):
    tags = Image.Exif()
    tags[0x010E] = tags[0x013B] = CANARY.decode()  # description and artist
    if orientation != 1:
        tags[ORIENTATION] = orientation
    return tags


def with_segment(jpeg, code, content):
    """Return a JPEG file with one more segment behind its start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, code, len(content) + 2) + content + jpeg[2:]


def with_chunk(png, name, content):
    """Return a PNG file with one more chunk before its pixels."""
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize("options", [{}, {"image_size": 0}, {"encoding": "lossless"}, {"image_size": 36}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"quality": 31, "subsampling": 2}, {"optimize": True}])
def test_a_small_jpeg_keeps_its_compressed_data_byte_for_byte(mode, kind, options):
    raw = encoded(noise(1, mode=mode), "JPEG", exif=exif(), comment=CANARY, icc_profile=CANARY * 9, **kind)

    image = stored(raw, **options)

    assert image.suffix == "jpg"
    assert SCAN.search(image.data)[0] == SCAN.search(raw)[0]
    assert TABLES.findall(image.data) == TABLES.findall(raw)
    assert (pixels(image.data) == pixels(raw)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_small_file_without_metadata_is_stored_byte_for_byte(kind, mode):
    raw = encoded(noise(2, mode=mode), kind)

    assert stored(raw).data == raw


def named_files():
    """Yield files that name a patient in each place that the formats have for it."""
    text = PngInfo()
    text.add_text("Patient", CANARY.decode())
    text.add_text("Comment", CANARY.decode(), zip=True)
    text.add_itxt("XML:com.adobe.xmp", CANARY.decode())
    jpeg, png = encoded(noise(3), "JPEG"), encoded(noise(3))
    thumbnail = b"JFIF\0\x01\x02\0\0\x01\0\x01\x02\x01" + CANARY[:6]
    yield "png text", encoded(noise(3), pnginfo=text)
    yield "png exif", encoded(noise(3), exif=exif())
    yield "png profile", encoded(noise(3), icc_profile=CANARY * 9)
    yield "png private chunk", with_chunk(png, b"paTy", CANARY)
    yield "png behind the end", png + CANARY
    yield "jpeg exif", encoded(noise(3), "JPEG", exif=exif())
    yield "jpeg comment", encoded(noise(3), "JPEG", comment=CANARY)
    yield "jpeg behind the end", jpeg + CANARY
    yield "jpeg thumbnail", with_segment(jpeg[:2] + jpeg[20:], 0xE0, thumbnail)
    yield "jpeg adobe", with_segment(jpeg, 0xEE, b"Adobe" + CANARY[:6] + b"\0" + CANARY)
    for number in range(0xE0, 0xF0):
        yield f"jpeg segment {number:x}", with_segment(jpeg, number, b"X\0" + CANARY)
    yield "bmp behind the end", encoded(noise(3), "BMP") + CANARY
    yield "gif comment", encoded(noise(3), "GIF", comment=CANARY)
    yield "tiff description", encoded(noise(3), "TIFF", description=CANARY.decode())
    yield "webp exif", encoded(noise(3), "WEBP", exif=exif())


@pytest.mark.parametrize("options", [{}, {"image_size": 20}])
@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in named_files()])
def test_no_place_of_a_file_brings_a_patient_into_a_shard(raw, options):
    image = stored(raw, **options)

    assert CANARY[:6] in raw + unpacked_chunks(raw)
    assert CANARY[:6] not in image.data + unpacked_chunks(image.data)


def unpacked_chunks(data):
    """Return the compressed texts and profiles of a PNG file."""
    packed = [data[match.end() :] for match in re.finditer(rb"(zTXt|iCCP)[^\0]*\0\0", data)]
    return b"".join(zlib.decompressobj().decompress(content) for content in packed)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_orientation_is_applied_and_not_stored(kind, orientation):
    raw = encoded(noise(4), kind, exif=exif(orientation), **({"quality": 95} if kind == "JPEG" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))))

    image = stored(raw, image_size=0)

    found = Image.open(io.BytesIO(image.data))
    assert not found.getexif()
    assert (image.width, image.height) == found.size == upright.shape[::-1]
    if kind == "PNG":
        assert (np.asarray(found) == upright).all()
    else:
        assert np.abs(np.asarray(found).astype(int) - upright).max() < 16


def translucent():
    image = noise(5, mode="RGB").convert("RGBA")
    image.putalpha(noise(6))
    return image


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(encoded(noise(5).convert("I;16").point(lambda value: value * 16)), id="16 bits"),
        pytest.param(encoded(noise(5, mode="RGB").quantize(16)), id="palette"),
        pytest.param(encoded(noise(5, mode="RGB").quantize(16), transparency=3), id="transparent palette"),
        pytest.param(encoded(noise(5, mode="RGB"), transparency=noise(5, mode="RGB").getpixel((0, 0))), id="color key"),
        pytest.param(encoded(translucent()), id="alpha"),
        pytest.param(encoded(noise(5).convert("LA")), id="gray with alpha"),
        pytest.param(encoded(noise(5).convert("1")), id="1 bit"),
        pytest.param(encoded(noise(5).convert("P")), id="gray palette"),
    ],
)
def test_a_png_of_any_kind_keeps_every_pixel_as_plain_gray_or_color(raw):
    image = stored(raw)

    found = Image.open(io.BytesIO(image.data))
    assert (image.suffix, found.mode) in [("png", "L"), ("png", "RGB")]
    assert "transparency" not in found.info
    assert (np.asarray(found.convert("RGB")) == np.asarray(Image.fromarray(pixels(raw)).convert("RGB"))).all()


@pytest.mark.parametrize("keep_rgb", [False, True])
def test_the_color_space_of_a_jpeg_survives(keep_rgb):
    raw = encoded(noise(7, mode="RGB"), "JPEG", keep_rgb=keep_rgb, comment=CANARY)

    image = stored(raw)

    assert SCAN.search(image.data)[0] == SCAN.search(raw)[0]
    assert (pixels(image.data) == pixels(raw)).all()


def test_a_cmyk_jpeg_becomes_a_color_jpeg_that_every_reader_shows():
    raw = encoded(noise(8, mode="RGB").convert("CMYK"), "JPEG", quality=95)

    image = stored(raw)

    found = Image.open(io.BytesIO(image.data))
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - pixels(raw)).mean() < 4


def test_the_previews_of_an_mpo_file_are_dropped():
    buffer = io.BytesIO()
    noise(9, mode="RGB").save(buffer, "MPO", save_all=True, append_images=[noise(10, mode="RGB")])

    image = stored(buffer.getvalue())

    assert Image.open(io.BytesIO(image.data)).format == "JPEG"
    assert image.data.count(b"\xff\xd9") == 1
    assert (pixels(image.data) == pixels(buffer.getvalue())).all()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: raw[:2] + b"junk" + raw[2:], id="bytes between segments"),
        pytest.param(lambda raw: with_segment(raw, 0xE1, b"x")[:4] + b"\0\1" + raw[2:], id="length of 1"),
    ],
)
def test_a_jpeg_of_unusual_structure_is_encoded_again_or_refused(damage):
    raw = damage(encoded(noise(12), "JPEG"))

    assert without_metadata(raw) is None
    try:
        found = stored(raw).data
    except BadImage:
        return
    assert np.abs(pixels(found).astype(int) - pixels(raw)).max() < 16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_an_image_above_the_size_is_reduced_and_encoded_as_the_options_say(kind):
    raw = encoded(noise(13, (80, 60)), kind)

    as_jpeg, as_png = stored(raw, image_size=30), stored(raw, image_size=30, encoding="lossless")

    assert (as_jpeg.suffix, as_png.suffix) == ("jpg", "png")
    assert {Image.open(io.BytesIO(image.data)).size for image in (as_jpeg, as_png)} == {(40, 30)}
    assert (as_jpeg.width, as_jpeg.height) == (80, 60)


def test_a_data_set_of_version_0_1_encoded_small_files_again():
    raw = encoded(noise(14), "JPEG", quality=40)
    old = EncodeOptions.of_index({"image_size": 256, "encoding": "jpeg", "quality": 95, "seed": 0})

    found = encoded_like_packed(raw, old)

    assert not old.keep_small
    assert found == encoded(Image.open(io.BytesIO(raw)), "JPEG", quality=95, subsampling=0)


def test_a_data_set_of_version_0_1_in_the_original_size_held_the_files_themselves():
    raw = encoded(noise(15), "JPEG", exif=exif(6))
    old = EncodeOptions.of_index({"image_size": 0, "encoding": "jpeg", "quality": 95})

    assert encoded_like_packed(raw, old) == raw


def test_an_index_without_options_says_nothing_of_its_packing():
    assert EncodeOptions.of_index({}) is None


def test_the_reader_takes_every_image_that_packing_takes():
    assert MAX_PACKED_MEGAPIXELS == LARGEST_MEGAPIXELS
