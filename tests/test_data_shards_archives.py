import io
import random
import stat
import tarfile
import zipfile

import pytest

from data_shards.errors import SourceError
from data_shards.pack.archives import ArchiveLimits, is_archive, unpack
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


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    archive = tar_of(tmp_path / "images.tar", link("a/x.png", "/etc/passwd", kind))

    with pytest.raises(SourceError, match=r"'a/x.png' is a link or device"):
        unpack(archive, tmp_path / "out")


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("a/x.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16

    with pytest.raises(SourceError, match=r"'a/x.png' is a link or device"):
        unpack(zip_of(tmp_path / "images.zip", (info, b"/etc/passwd")), tmp_path / "out")


@pytest.mark.parametrize("make", [zip_of, lambda path, *members: tar_of(path, *members, mode="w:gz")])
def test_a_bomb_is_stopped_by_the_bytes_it_unpacks_to(tmp_path, make):
    ending = "zip" if make is zip_of else "tar.gz"
    archive = make(tmp_path / f"bomb.{ending}", ("a/zeros.png", bytes(50_000_000)))

    with pytest.raises(SourceError, match=r"'a/zeros.png' unpacks beyond"):
        unpack(archive, tmp_path / "out", ArchiveLimits(spare_bytes=1000))

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
