import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.sparse.csgraph import connected_components

from data_shards.pack import hash_search
from data_shards.pack.hash_search import HASH_BITS, HashSet, near_pairs
from data_shards.pack.near_duplicates import ImageHash, across_splits, find_near_duplicates, perceptual_hash
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from tests.datasets import image_folder, noise

XRAYS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "chest_xray"
OPPOSITE = np.array([2**64 - 2, 2**64 - 1, 2**64 - 1, 2**64 - 1], dtype=np.uint64)  # all bits but the first
INVERT = np.arange(HASH_BITS) > 0


def words(bits):
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint64)


def planted(number, copies, seed):
    """Return the hashes of images, plain and mirrored, many of them copies at a distance of 1 to 44 bits."""
    random = np.random.default_rng(seed)
    plain, mirrored = random.integers(0, 2, (2, number, HASH_BITS)).astype(bool)
    for _ in range(copies):
        source, copy = random.integers(0, number, 2)
        changed = np.isin(np.arange(HASH_BITS), random.choice(HASH_BITS, random.integers(1, 45), replace=False))
        of_mirrored, inverted = random.integers(0, 2, 2)
        plain[copy] = (mirrored if of_mirrored else plain)[source] ^ changed ^ (INVERT & bool(inverted))
    return words(plain), words(mirrored)


def distances(plain, mirrored):
    """Return the distance of each two images by comparing all of them."""
    found = np.full((len(plain),) * 2, HASH_BITS)
    for others in (plain, mirrored):
        for flipped in (np.zeros(4, dtype=np.uint64), OPPOSITE):
            different = np.bitwise_count(plain[:, None] ^ others[None] ^ flipped).sum(axis=2)
            found = np.minimum(found, np.minimum(different, different.T))
    np.fill_diagonal(found, HASH_BITS)
    return found


def meetings(pairs):
    """Return each image with each split that it was found to have a copy in, as bits."""
    found = np.zeros(1 + max(*pairs.first, *pairs.second), dtype=int)
    np.bitwise_or.at(found, pairs.first, pairs.first_meets)
    np.bitwise_or.at(found, pairs.second, pairs.second_meets)
    return found


@pytest.mark.parametrize("few", [20_000, 0])  # 0: the masks for a million hashes
@pytest.mark.parametrize("number", [40, 500])
def test_all_pairs_up_to_40_bits_are_found(monkeypatch, number, few):
    monkeypatch.setattr(hash_search, "FEW", few)
    plain, mirrored = planted(number, number // 3, seed=number)
    splits = 1 << np.random.default_rng(0).integers(0, 3, number)

    pairs = near_pairs(HashSet(plain=plain, mirrored=mirrored, opposite=OPPOSITE, splits=splits))

    expected = distances(plain, mirrored)
    near = expected <= 40
    found = np.zeros_like(near)
    found[pairs.first, pairs.second] = True
    assert (expected == 40).sum() or number < 500
    assert (expected == 41).sum() or number < 500
    assert not (found & ~near).any()
    groups = [connected_components(links)[1].tolist() for links in (near, found | found.T)]
    assert len(set(zip(*groups, strict=True))) == len(set(groups[0])) == len(set(groups[1]))
    other = np.where(near, splits[None] & ~splits[:, None], 0)
    met = meetings(pairs)
    assert met.tolist() == np.bitwise_or.reduce(other, axis=1)[: len(met)].tolist()


@pytest.mark.parametrize(("bits", "radius"), [(12, 3), (32, 3), (26, 4)])
def test_the_masks_leave_out_any_positions_that_differ(bits, radius):
    masks = hash_search._covering_masks(bits, radius)

    differing = np.array([sum(1 << place for place in places) for places in combinations(range(bits), radius)])
    assert len(masks) == 2 ** (radius + 1) - 1
    assert all(masks)
    assert ((differing[:, None] & np.array(masks, dtype=np.int64)) == 0).any(axis=1).all()


def hashed(images):
    return [ImageHash(name=name, sha256=name, phash=perceptual_hash(image)) for name, image in images.items()]


def test_mirrored_and_inverted_copies_are_found_and_named_as_such():
    film = noise(1, (300, 280))
    mirrored, inverted = ImageOps.mirror(film), ImageOps.invert(film)
    images = {"a": film, "b": mirrored, "c": noise(2, (300, 280)), "d": inverted, "e": ImageOps.mirror(inverted)}

    pairs = {(pair.first, pair.second): pair for pair in find_near_duplicates(hashed(images))}

    assert {name for pair in pairs for name in pair} == set("abde")
    for other, kind in (("b", "mirrored"), ("d", "inverted"), ("e", "mirrored and inverted")):
        [pair] = find_near_duplicates(hashed({"a": film, other: images[other]}))
        assert str(pair) == f"a and {other} are near-duplicates, {kind} ({pair.bits} of 256 bits differ)"
        assert pair.bits <= 2


def test_a_mirrored_copy_in_another_split_is_a_leak(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2}, size=(90, 80))
    with Image.open(source / "train/a/image-000.png") as film:
        ImageOps.mirror(film).save(source / "test/b/copy.png")

    report = pack(source, tmp_path / "shards", PackOptions(processes=1, allow_leakage=True))

    [leak] = report.leakage
    assert "test/b/copy.png and train/a/image-000.png are near-duplicates, mirrored" in leak


def test_a_symmetric_image_is_no_copy_of_itself():
    half = noise(3, (100, 180))
    film = Image.new("L", (200, 180))
    film.paste(half, (0, 0))
    film.paste(ImageOps.mirror(half), (100, 0))

    assert find_near_duplicates(hashed({"a": film, "b": noise(4, (200, 180))})) == ()


@pytest.mark.parametrize("changed", [0, 3])
def test_hundreds_of_like_images_give_a_few_pairs_each(changed):
    random, number = np.random.default_rng(0), 900
    bits = np.tile(random.integers(0, 2, 2 * HASH_BITS), (number, 1))
    for row in bits:
        row[random.choice(HASH_BITS, changed, replace=False)] ^= 1
    texts = [np.packbits(row).tobytes().hex() for row in bits]
    images = [ImageHash(name=f"{n:04d}", sha256=f"{n}", phash=text) for n, text in enumerate(texts)]
    splits = {image.name: ("train", "valid", "test")[n * 3 // number] for n, image in enumerate(images)}

    pairs, spread = find_near_duplicates(images), find_near_duplicates(images, splits)

    assert len(pairs) == number - 1
    leaks = across_splits(spread, splits)
    met = {
        (one, splits[other]) for pair in leaks for one, other in ((pair.first, pair.second), (pair.second, pair.first))
    }
    assert len(met) == 2 * number
    assert len(spread) < 4 * number


def test_copies_of_one_file_in_three_splits_are_paired_with_each_other_split():
    images = [ImageHash(name=name, sha256="1", phash="") for name in ("train", "valid", "test")]

    pairs = find_near_duplicates(images, {image.name: image.name for image in images})

    assert all(pair.exact for pair in pairs)
    assert {(pair.first, pair.second) for pair in pairs} == set(combinations(("train", "valid", "test"), 2))


def contrast(film):
    return ImageEnhance.Contrast(film).enhance(1.3)


def cropped(film):
    width, height = film.size
    return film.crop((width // 100, height // 100, width - width // 100, height - height // 100))


def rotated(film):
    return film.rotate(1, Image.Resampling.BILINEAR)


@pytest.mark.skipif(not XRAYS.is_dir(), reason=f"the X-rays are not at {XRAYS}")
@pytest.mark.parametrize("change", [contrast, cropped, rotated])
def test_changed_copies_of_x_rays_are_found(change):
    films = [Image.open(file).convert("L") for file in sorted(XRAYS.rglob("*.jpg"))[::5]]
    images = hashed({f"{n}": film for n, film in enumerate(films)})
    copies = hashed({f"{n} changed": change(film) for n, film in enumerate(films)})

    pairs = find_near_duplicates([*images, *copies])

    found = {pair.first for pair in pairs if pair.second == f"{pair.first} changed"}
    assert len(found) >= 0.98 * len(films)
    assert len(found) == len(pairs)


@pytest.mark.skipif(not XRAYS.is_dir(), reason=f"the X-rays are not at {XRAYS}")
def test_x_rays_of_different_patients_are_no_copies():
    with (XRAYS / "groups.csv").open(newline="") as file:
        patients = {row["file"]: row["group"] for row in csv.DictReader(file)}
    films = {name: Image.open(XRAYS / name) for name in patients}

    pairs = find_near_duplicates(hashed(films))

    assert len(films) == 499
    assert [pair for pair in pairs if patients[pair.first] != patients[pair.second]] == []
