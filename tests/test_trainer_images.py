import numpy as np
import psutil
import pytest
from PIL import Image

from cluster.files import write_json
from cluster.settings import Settings
from data_shards.pack.options import EncodeOptions
from tests.datasets import encoded, noise
from trainer.data import images
from trainer.data.images import ImageFiles, image_sources, sample_images
from trainer.errors import SpecError
from trainer.model.head import HeadConfig

CONFIG = HeadConfig(classes=("a", "b"), width=8, dropout=0.0, image_size=32, pack=EncodeOptions())


@pytest.fixture(scope="module")
def digits(digits_shards):
    """The folder of images that the shards were packed from."""
    return digits_shards.parent / "images" / "test"


def test_any_fault_of_a_decoder_concerns_one_image(tmp_path, monkeypatch):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.new("L", (40, 40)).save(file)
    decode, sizes = images.decode_square, iter([None, 1])

    def fail_first(data, **options):
        if next(sizes) is None:
            raise MemoryError("not enough for /films/a.png")
        return decode(data, **options)

    monkeypatch.setattr(images, "decode_square", fail_first)

    [batch] = ImageFiles(tuple(map(str, files))).batches(CONFIG, batch_size=2, loader_workers=0)

    assert batch.errors == ("its pixels cannot be decoded (MemoryError)", None)
    assert batch.pixels.shape == (1, 3, 32, 32)


def test_samples_are_drawn_from_the_images_of_a_folder_and_not_from_other_files(tmp_path):
    Image.new("L", (40, 40), 7).save(tmp_path / "film.webp", lossless=True)
    for number in range(40):
        (tmp_path / f"notes-{number}.txt").write_text("no image")

    samples = sample_images(str(tmp_path), Settings(storage=tmp_path), {}, config=CONFIG)

    assert samples.shape == (1, 3, 32, 32)
    assert (samples == 7).all()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("absent", "absent does not exist; give image files"),
        ("empty", "empty has no files; give a folder with images"),
    ],
)
def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path, given, error):
    (tmp_path / "empty").mkdir()

    with pytest.raises(SpecError, match=error):
        image_sources((str(tmp_path / given),))


def test_files_and_folders_that_follow_each_other_are_one_source(tmp_path, digits_shards):
    for name in ("films/b.png", "films/.DS_Store", "a.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    first, *shards, last = image_sources(
        (*(str(tmp_path / name) for name in ("c.png", "films", "a.png")), str(digits_shards), str(tmp_path / "a.png"))
    )

    assert first == ImageFiles(tuple(str(tmp_path / name) for name in ("c.png", "films/b.png", "a.png")), ignored=1)
    assert [part.split for part in shards] == ["train", "valid", "test"]
    assert last == ImageFiles((str(tmp_path / "a.png"),))


def test_a_missing_split_is_refused(digits_shards):
    with pytest.raises(SpecError, match="has no split 'night'; it has train, valid, test"):
        image_sources((str(digits_shards),), "night")


def test_loader_workers_keep_the_order(digits):
    files = ImageFiles(tuple(sorted(str(file) for file in digits.rglob("*.png"))))

    batches = list(files.batches(CONFIG, batch_size=4, loader_workers=2))

    assert tuple(file for chunk in batches for file in chunk.files) == files.paths
    assert sum(len(chunk.pixels) for chunk in batches) == len(files)


def test_reading_four_thousand_images_does_not_grow_memory(tmp_path):
    picture = tmp_path / "one.png"
    Image.fromarray(np.zeros((64, 64), dtype=np.uint8)).save(picture)
    many = ImageFiles((str(picture),) * 4_000).batches(
        CONFIG.model_copy(update={"image_size": 64}), batch_size=64, loader_workers=0
    )
    for _ in range(10):
        next(many)
    before = psutil.Process().memory_info().rss

    read = sum(len(chunk.pixels) for chunk in many)

    assert read == 4_000 - 640
    assert psutil.Process().memory_info().rss - before < 20 * 10**6  # the pixels alone are 41 MB


def test_a_model_that_records_no_packing_gets_the_pixels_of_the_file():
    raw = encoded(noise(1, (80, 70)), "JPEG")

    found = images.input_pixels(raw, CONFIG.model_copy(update={"pack": None}))

    assert (found == images.decode_square(raw, size=32, color="RGB")).all()


def test_a_head_of_version_0_1_records_no_packing(tmp_path):
    content = CONFIG.model_dump(mode="json", exclude={"pack"})
    write_json(tmp_path / "head.json", content)

    assert HeadConfig.read(tmp_path / "head.json").pack is None


def test_a_film_above_the_limit_has_a_row_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_MEGAPIXELS", 1)
    config = CONFIG.model_copy(update={"pack": EncodeOptions(max_megapixels=1)})
    Image.new("L", (2000, 1000)).save(tmp_path / "film.png")

    [batch] = ImageFiles((str(tmp_path / "film.png"),)).batches(config, batch_size=1, loader_workers=0)

    assert batch.errors == ("2000 x 1000 are 2 megapixels, above the limit of 1; scale it down",)


def test_a_model_of_gray_images_takes_a_color_image_as_gray():
    raw = encoded(noise(1, (80, 70), "RGB"), "PNG")

    found = images.input_pixels(raw, CONFIG.model_copy(update={"color": "L"}))

    assert (found == images.decode_square(raw, size=32, color="L")).all()
    assert found.shape == (3, 32, 32)
