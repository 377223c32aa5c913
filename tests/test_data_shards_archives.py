import errno
import io
import random
import stat
import tarfile
import zipfile

import pytest

from data_shards.errors import SourceError
from data_shards.pack import archives
from data_shards.pack.archives import ArchiveLimits, is_archive, unpack
from data_shards.pack.names import normalized_name
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from tests.datasets import encoded, noise


def tar_of(path, *members, mode="w"):
    """Write a tar of (name, bytes) pairs and ready-made TarInfos."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def zip_of(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def names_below(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "TGZ"])
def test_an_archive_is_unpacked_with_its_names(tmp_path, ending):
    members = [("train/a/x.png", encoded(noise(1))), ("train/b/naïve ünïcode.png", encoded(noise(2)))]
    path = tmp_path / f"images.{ending}"
    make = zip_of if ending == "zip" else lambda p, *m: tar_of(p, *m, mode="w:gz" if "g" in ending.lower() else "w")

    unpack(make(path, *members), tmp_path / "out")

    assert is_archive(path)
    assert names_below(tmp_path / "out") == {"train/a/x.png", "train/b/naïve ünïcode.png"}


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/tmp/evil.png", "C:\\evil.png", "..\\evil.png", "\\evil.png"]
)
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_name_that_leaves_the_folder_is_refused_and_nothing_appears(tmp_path, make, name):
    archive = make(tmp_path / f"images.{make.__name__[:3]}", ("a/fine.png", b"x"), (name, b"evil"))

    with pytest.raises(SourceError, match="would be written outside its folder; do not trust this archive"):
        unpack(archive, tmp_path / "deep" / "out")

    assert not (tmp_path / "deep" / "out").exists()
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_time_in_the_name_of_a_folder_is_no_drive(tmp_path, make):
    archive = make(tmp_path / f"images.{make.__name__[:3]}", ("2026-11-27T10:30:00/a/x.png", b"x"))

    unpack(archive, tmp_path / "out")

    assert names_below(tmp_path / "out") == {"2026-11-27T10:30:00/a/x.png"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    archive = tar_of(tmp_path / "images.tar", link("a/x.png", "/etc/passwd", kind))

    with pytest.raises(SourceError, match=r"'a/x.png' is a link or device; create .* with `tar .* --hard-dereference`"):
        unpack(archive, tmp_path / "out")


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("a/x.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16

    with pytest.raises(SourceError, match=r"'a/x.png' is a link or device; create .* without `zip --symlinks`"):
        unpack(zip_of(tmp_path / "images.zip", (info, b"/etc/passwd")), tmp_path / "out")


@pytest.mark.parametrize("make", [zip_of, lambda path, *members: tar_of(path, *members, mode="w:gz")])
def test_a_bomb_is_stopped_by_the_bytes_it_unpacks_to(tmp_path, make):
    ending = "zip" if make is zip_of else "tar.gz"
    archive = make(tmp_path / f"bomb.{ending}", ("a/zeros.png", bytes(50_000_000)))

    with pytest.raises(SourceError, match=r"'a/zeros.png' unpacks beyond"):
        unpack(archive, tmp_path / "out", ArchiveLimits(spare_bytes=1000))

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_is_undone_without_a_limit_of_memory_is_refused(tmp_path, monkeypatch, compression):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/zeros.png", bytes(1_000_000))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("the member was opened"))

    with pytest.raises(
        SourceError, match=r"'a/zeros.png' is compressed in a way that Nightshift does not read; unpack"
    ):
        unpack(path, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_too_many_files_are_refused(tmp_path):
    archive = zip_of(tmp_path / "many.zip", *((f"a/{number}.png", b"x") for number in range(6)))

    with pytest.raises(SourceError, match="more than 5 files"):
        unpack(archive, tmp_path / "out", ArchiveLimits(files=5))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"twice.zip: the member 'a/x.png' is in it twice; create the archive again"):
        unpack(zip_of(tmp_path / "twice.zip", ("a/x.png", b"1"), ("a/x.png", b"2")), tmp_path / "out")


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize(("names", "member"), [(("a", "a/x.png"), "a/x.png"), (("a/x.png", "a"), "a")])
def test_a_file_with_the_name_of_a_folder_is_refused_by_its_name(tmp_path, make, names, member):
    archive = make(tmp_path / f"images.{make.__name__[:3]}", *((name, b"data") for name in names))

    with pytest.raises(SourceError, match=f"the member '{member}' has the name of a folder or lies in a file"):
        unpack(archive, tmp_path / "out")

    assert {path.name for path in tmp_path.iterdir()} == {archive.name}


def test_an_encrypted_zip_is_refused(tmp_path):
    path = zip_of(tmp_path / "secret.zip", ("a/x.png", b"data"))
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + offset] |= 1
    path.write_bytes(raw)

    with pytest.raises(SourceError, match=r"'a/x.png' is encrypted"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_an_archive_cut_anywhere_is_refused_and_leaves_nothing(tmp_path, ending):
    members = [(f"a/{number}.png", encoded(noise(number))) for number in range(6)]
    path = tmp_path / f"images.{ending}"
    if ending == "zip":
        zip_of(path, *members)
    else:
        tar_of(path, *members, mode="w:gz" if ending == "tar.gz" else "w")
    raw = path.read_bytes()
    end = len(raw) if ending != "tar" else sum(512 + -(-len(data) // 512) * 512 for _, data in members)

    for cut in random.Random(0).sample(range(end), 60):
        path.write_bytes(raw[:cut])
        with pytest.raises(SourceError):
            unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_tar_with_other_bytes_than_were_packed_is_refused(tmp_path, mode):
    pixels = random.Random(0).randbytes(1_000_000)
    path = tar_of(tmp_path / f"images.tar.{mode[2:]}", ("a/1.png", pixels), ("a/2.png", pixels), mode=mode)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 0xFF  # random bytes are stored as they are: nothing but the sum tells

    path.write_bytes(raw)

    with pytest.raises(SourceError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoil", [lambda raw: raw + raw, lambda raw: raw[:1024] + bytes(512) + raw[1536:]])
def test_a_tar_with_a_hole_or_another_behind_it_is_refused(tmp_path, spoil):
    path = tar_of(tmp_path / "images.tar", ("a/1.png", b"1" * 512), ("a/2.png", b"2"), ("a/3.png", b"3"))
    path.write_bytes(spoil(path.read_bytes()))

    with pytest.raises(SourceError, match="has data behind its end, so files may be missing"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    member = tarfile.TarInfo("a/1.png")
    member.pax_headers = {"comment": "x" * (2 << 20)}
    path = tmp_path / "images.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)

    with pytest.raises(SourceError, match=r"a header of 20971.. bytes; unpack it yourself if you trust it"):
        unpack(path, tmp_path / "out")


def named(path, raw, *, system):
    """Write a zip with one image in each class, one of which has a name of these bytes, without the flag for UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, member in enumerate(("train/a/" + "x" * len(raw), "train/a/1.png", "train/b/2.png")):
            info = zipfile.ZipInfo(member)
            info.create_system = system
            archive.writestr(info, encoded(noise(number)))
    path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))
    return path


@pytest.mark.parametrize(
    ("raw", "system", "name"),
    [
        ("café.png".encode(), 3, "café.png"),
        ("café.png".encode(), 0, "café.png"),
        (b"caf\xe9.png", 3, "caf\\xe9.png"),  # Latin-1 on a disk of Unix
        (b"caf\x82.png", 0, "café.png"),  # code page 437 of DOS and Windows
    ],
)
def test_a_name_in_a_zip_has_the_spelling_of_the_same_file_in_a_folder(tmp_path, raw, system, name):
    unpack(named(tmp_path / "names.zip", raw, system=system), tmp_path / "out")

    assert sorted(normalized_name(file.name) for file in (tmp_path / "out/train/a").iterdir()) == ["1.png", name]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is damaged, or no archive of the kind that its name says; copy it again"),
        (b"hello", "it is damaged, or no archive of the kind that its name says; copy it again"),
    ],
)
@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_file_that_is_no_archive_is_refused_in_our_words(tmp_path, content, fault, ending):
    archive = tmp_path / f"images.{ending}"
    archive.write_bytes(content)

    with pytest.raises(SourceError) as error:
        unpack(archive, tmp_path / "out")

    assert str(error.value) == f"{archive} cannot be unpacked: {fault}"


def test_a_damaged_member_is_named(tmp_path):
    archive = zip_of(tmp_path / "images.zip", ("train/a/x.png", encoded(noise(1))))
    raw = bytearray(archive.read_bytes())
    start = raw.index(b"IDAT")
    raw[start + 20 : start + 24] = bytes(4)
    archive.write_bytes(raw)

    with pytest.raises(SourceError, match=r"the member 'train/a/x.png' is damaged; copy the archive again"):
        unpack(archive, tmp_path / "out")


def test_a_member_with_a_name_too_long_for_a_disk_is_named(tmp_path):
    archive = zip_of(tmp_path / "images.zip", (f"train/a/{'x' * 300}.png", encoded(noise(1))))

    with pytest.raises(
        SourceError, match="has a name of 304 bytes, above the 255 that disks allow; unpack it yourself"
    ):
        unpack(archive, tmp_path / "out")


def test_a_full_disk_is_told_from_a_damaged_archive(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = zip_of(tmp_path / "images.zip", ("train/a/x.png", encoded(noise(1))))
    monkeypatch.setattr(archives, "_write", full)

    with pytest.raises(SourceError, match="the disk of the target is full; free some space"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["images.rar", "images.7z", "images.tar.zst", "IMAGES.ZIP.001"])
def test_an_archive_of_another_kind_has_its_cure(tmp_path, name):
    (tmp_path / name).write_bytes(b"Rar!\x1a\x07\0")

    with pytest.raises(SourceError, match=f"{name} is an archive of a kind that Nightshift does not unpack; unpack it"):
        pack(tmp_path / name, tmp_path / "shards", PackOptions(processes=1))


@pytest.mark.parametrize("content", [b"damaged", None])
def test_a_refused_archive_leaves_no_folder_behind(tmp_path, content):
    archive = zip_of(tmp_path / "images.zip", ("train/a/x.png", encoded(noise(1))))
    if content:
        archive.write_bytes(content)

    with pytest.raises(SourceError):
        pack(archive, tmp_path / "new" / "deeper" / "shards", PackOptions(processes=1))

    assert [file.name for file in tmp_path.iterdir()] == ["images.zip"]


def test_a_refused_pack_keeps_a_folder_that_was_there(tmp_path):
    archive = zip_of(tmp_path / "images.zip", ("train/a/x.png", encoded(noise(1))))
    (tmp_path / "empty").mkdir()

    with pytest.raises(SourceError):
        pack(archive, tmp_path / "empty" / "shards", PackOptions(processes=1))

    assert list((tmp_path / "empty").iterdir()) == []
