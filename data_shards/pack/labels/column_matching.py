"""Finds the images that the cells of a column name, each cell in view of the others. Pure."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from data_shards.pack.labels.matching import Ambiguous, ImageMatcher, folders_agree, folders_in
from data_shards.pack.names import normalized_name

Find: TypeAlias = Callable[[ImageMatcher, str, Sequence[str]], str | Ambiguous | None]


@dataclass(frozen=True)
class SourceImages:
    """The images of a source, to be found by what tables say of them.

    Attributes:
        paths: Their paths below the source. Those of a later sequence are meant only if no image of an earlier one is;
            without a row they are not missed.
    """

    paths: Sequence[Sequence[str]]

    @cached_property
    def matchers(self) -> tuple[ImageMatcher, ...]:
        """A matcher of each sequence."""
        return tuple(map(ImageMatcher, self.paths))

    @cached_property
    def matcher(self) -> ImageMatcher:
        """A matcher of all images."""
        if len(self.paths) == 1:
            return self.matchers[0]
        return ImageMatcher(path for some in self.paths for path in some)


@dataclass(frozen=True, kw_only=True)
class MatchedCells:
    """The images that the cells of a column name.

    Attributes:
        images: For each cell its image, the images that it may mean, or None.
        by_name: Positions of the cells that name their image by the file name alone: the folders differ.
    """

    images: tuple[str | Ambiguous | None, ...]
    by_name: frozenset[int]

    def count_by_name(self, start: int, end: int) -> int:
        """Return how many cells from one position to before another name their image by the file name alone."""
        return sum(start <= position < end for position in self.by_name)


def match_cells(
    cells: Sequence[str], matchers: Sequence[ImageMatcher], near: Sequence[Sequence[str]] | None = None
) -> MatchedCells:
    """Return the images that cells name.

    A cell whose folders are not those of the image of its name may be about another image, which is not there. So it
    names none if another cell names that image with its folders, or if cells with different folders do so.

    Args:
        cells: The cells.
        matchers: The images; those of a later matcher are meant only if no image of an earlier one is.
        near: Folders for each cell, as `ImageMatcher.find` takes them.
    """
    near = near if near is not None else [()] * len(cells)
    found = [_first(matchers, ImageMatcher.find_by_folder, *cell) for cell in zip(cells, near, strict=True)]
    by_name = {
        position: image
        for position, cell in enumerate(zip(cells, near, strict=True))
        if found[position] is None and (image := _first(matchers, ImageMatcher.find_by_name, *cell)) is not None
    }
    by_name = _sure(cells, found, by_name)
    images = tuple(by_name.get(position, image) for position, image in enumerate(found))
    return MatchedCells(images=images, by_name=frozenset(by_name))


def _first(matchers: Sequence[ImageMatcher], find: Find, cell: str, folders: Sequence[str]) -> str | Ambiguous | None:
    found = (find(matcher, cell, folders) for matcher in matchers)
    return next((image for image in found if image is not None), None)


def _sure(
    cells: Sequence[str], found: Sequence[str | Ambiguous | None], by_name: Mapping[int, str | Ambiguous]
) -> dict[int, str | Ambiguous]:
    """Return the cells that name an image by its file name alone, without those that may be about another image."""
    naming: dict[str, list[int]] = defaultdict(list)
    for position, image in by_name.items():
        for name in _names(image):
            naming[name].append(position)
    taken = {name for image in found if image is not None for name in _names(image)}
    unsure = {
        position
        for name, positions in naming.items()
        if name in taken or not _are_one_folder([cells[position] for position in positions])
        for position in positions
    }
    return {position: image for position, image in by_name.items() if position not in unsure}


def _are_one_folder(cells: Collection[str]) -> bool:
    """Whether the folders that cells give agree."""
    if len(cells) == 1:
        return True
    given = set(map(folders_in, cells))
    longest = max(given, key=len)
    return all(folders_agree(one, longest) for one in given)


def _names(image: str | Ambiguous) -> Iterable[str]:
    return image.images if isinstance(image, Ambiguous) else (normalized_name(image),)
