"""Finds the image that a cell of a table names: by path, by file name, or by id without ending. Pure."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath

from data_shards.pack.names import normalized_name, split_of
from data_shards.pixels import IMAGE_SUFFIXES

SHORT_NUMBER = 4  # digits below which a number is more likely a count or a class than the id of an image
OTHER_ENDINGS = frozenset({".dcm", ".dicom", ".jp2", ".nii", ".heic", ".avif"})  # what images were converted from
WHOLE_NUMBER = re.compile(r"([0-9]+)\.0+")  # an id as pandas writes it in a column with gaps
OWN_ENDING = re.compile(r"[a-z][a-z0-9]{0,4}")  # of an image file whose content alone says its format
MOST_COMPARED = 5000  # images among which the nearest name is searched
FIRST_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


@dataclass(frozen=True)
class Ambiguous:
    """A cell that names several images."""

    images: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    """An image and the forms of its path that cells are compared with."""

    path: str
    exact: str
    parts: tuple[str, ...]


class ImageMatcher:
    """The images of a source, to be found by what a table says of them.

    Upper and lower case, the Unicode form, backslashes for slashes and the ending may differ, unless two images differ
    in that alone. Folders that both the cell and the path have must agree, as far as the shorter one goes. Where all
    images have different file names and no folders agree, other folders may differ too, except those of splits.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_name: dict[str, list[_Image]] = defaultdict(list)
        self._by_stem: dict[str, list[_Image]] = defaultdict(list)
        self._by_number: dict[str, list[_Image]] = defaultdict(list)
        for path in paths:
            exact = normalized_name(path)
            parts = tuple(exact.casefold().split("/"))
            image = _Image(path, exact, parts)
            self._by_name[parts[-1]].append(image)
            stem = _stem(parts[-1], also=OWN_ENDING)
            self._by_stem[stem].append(image)
            if stem.isdecimal():
                self._by_number[stem.lstrip("0")].append(image)
        self._has_own_names = all(len(images) == 1 for images in self._by_name.values())

    @property
    def names(self) -> list[str]:
        """Paths of the images in composed Unicode."""
        return [image.exact for images in self._by_name.values() for image in images]

    def find(self, cell: str, near: Sequence[str] = ()) -> str | Ambiguous | None:
        """Return the path of the image that a cell names.

        Args:
            cell: A path, a file name, or an id.
            near: Folders; of several images of one name, the one that lies in one of them is meant.
        """
        return self.find_by_folder(cell, near) or self.find_by_name(cell, near)

    def find_by_folder(self, cell: str, near: Sequence[str] = ()) -> str | Ambiguous | None:
        """Return the path of the image that a cell names, if the folders of both agree."""
        return self._find(cell, near, folders_agree)

    def find_by_name(self, cell: str, near: Sequence[str] = ()) -> str | Ambiguous | None:
        """Return the path of the image that a cell names by its file name alone. Another cell may name it better."""
        return self._find(cell, near, _splits_agree) if self._has_own_names else None

    def _find(
        self, cell: str, near: Sequence[str], fits: Callable[[Sequence[str], Sequence[str]], bool]
    ) -> str | Ambiguous | None:
        """Return the image whose folders fit those of a cell, both from the innermost folder on."""
        cell = unicodedata.normalize("NFC", cell)
        for text in dict.fromkeys((cell, cell.replace("\\", "/"))):
            for candidates, named in self._candidates(_parts(text)):
                fitting = [image for image in candidates if fits(named[-2::-1], image.parts[-2::-1])]
                if fitting:
                    return _chosen(fitting, text, near)
        return None

    def count(self, cells: Iterable[str]) -> int:
        """Return how many cells name an image. A short number is taken as a count or class."""
        return sum(image is not None for image in self._found(cells, short_numbers=False))

    def count_images(self, cells: Iterable[str], *, short_numbers: bool) -> int:
        """Return how many images cells name. Without `short_numbers`, such a cell is taken as a count or class."""
        return len(set(self._found(cells, short_numbers=short_numbers)) - {None})

    def _found(self, cells: Iterable[str], *, short_numbers: bool) -> Iterator[str | Ambiguous | None]:
        for cell in cells:
            if cell and (short_numbers or not cell.isdecimal() or len(cell) >= SHORT_NUMBER):
                yield self.find(cell)

    def _candidates(self, parts: tuple[str, ...]) -> Iterable[tuple[list[_Image], tuple[str, ...]]]:
        """Yield images that may be meant, the surest first, with the parts of the cell that name them."""
        if not parts:
            return
        *folders, last = parts
        yield self._by_name.get(last, []), parts
        yield self._by_stem.get(last, []), (*folders, "")
        if _stem(last) != last:
            yield self._by_stem.get(_stem(last), []), (*folders, "")
        whole = WHOLE_NUMBER.fullmatch(last)
        number = whole[1] if whole else last
        if number.isdecimal():
            yield self._by_stem.get(number, []), (*folders, "")
            yield self._by_number.get(number.lstrip("0"), []), (*folders, "")  # a spreadsheet drops leading zeros


def folders_agree(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two paths have the same folders, from the innermost on as far as the shorter one goes."""
    return all(one == other for one, other in zip(first, second, strict=False))


def folders_in(cell: str) -> tuple[str, ...]:
    """Return the folders that a cell gives, the innermost first."""
    return _parts(unicodedata.normalize("NFC", cell).replace("\\", "/"))[-2::-1]


def _splits_agree(first: Sequence[str], second: Sequence[str]) -> bool:
    return len({_split_among(first), _split_among(second)} - {None}) <= 1


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.casefold().split("/") if part not in ("", ".", ".."))


def _chosen(fitting: Sequence[_Image], text: str, near: Sequence[str]) -> str | Ambiguous:
    """Return the one image that is meant: the one at this very path, in a near folder, or with this very name."""
    text = text.removeprefix("./")
    if len(fitting) > 1:
        folders = [f"{normalized_name(folder)}/" if folder else "" for folder in near]
        for better in (
            [image for image in fitting if image.exact == text],
            [image for image in fitting if image.exact in [folder + text for folder in folders]],
            [image for image in fitting if any(folder and image.exact.startswith(folder) for folder in folders)],
            [image for image in fitting if image.exact.endswith(f"/{text}")],
            [image for image in fitting if image.exact.rpartition("/")[2] == text.rpartition("/")[2]],
        ):
            if better:
                fitting = better
            if len(fitting) == 1:
                break
    if len(fitting) == 1:
        return fitting[0].path
    return Ambiguous(tuple(sorted(image.exact for image in fitting)))


def near_folders(table: str, split_folders: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the folders that a table is about: its own one, and those of the split that its name starts with.

    Args:
        table: Path of the table below the source.
        split_folders: Each split and its folder below the source.
    """
    folder, _, name = table.rpartition("/")
    word = FIRST_WORD.match(name)
    split = split_of(word[0]) if word else None
    return (folder, *(path for of_split, path in split_folders if of_split == split))


def nearest(cell: str, images: Sequence[str]) -> str | None:
    """Return the name that is spelt most like a cell, None if none is close."""
    last = cell.replace("\\", "/").rpartition("/")[2]
    by_last = {image.rpartition("/")[2]: image for image in images[:MOST_COMPARED]}
    found = get_close_matches(last, by_last, n=1) or get_close_matches(last, {_stem(name): 0 for name in by_last}, n=1)
    return next((image for name, image in by_last.items() if found and found[0] in (name, _stem(name))), None)


def looks_like_image(cell: str) -> bool:
    """Whether a cell ends like the name of an image file."""
    return PurePosixPath(cell).suffix.lower() in IMAGE_SUFFIXES | OTHER_ENDINGS


def _stem(name: str, also: re.Pattern[str] | None = None) -> str:
    """Return a file name without its ending, if that is one of images or matches `also`: an id may have dots."""
    stem, dot, ending = name.rpartition(".")
    known = f".{ending.lower()}" in IMAGE_SUFFIXES | OTHER_ENDINGS or (also is not None and also.fullmatch(ending))
    return stem if dot and stem and known else name


def _split_among(folders: Iterable[str]) -> str | None:
    return next((split for split in map(split_of, folders) if split), None)
