"""Makes classes of the labels that tables give: one for each image, or a target for each label. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_shards.errors import OptionError, SourceError
from data_shards.pack.labels.columns import listed
from data_shards.pack.labels.labelled import LabelledImage, LabelledImages
from data_shards.pack.names import normalized_name
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.targets import ABSENT, PRESENT, UNKNOWN, Targets


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a data set whose labels come from tables.

    Attributes:
        label_of: The class of each image that has one of them, by its path; empty with several labels per image.
        targets_of: With several labels per image the targets of each one.
        label_names: With several labels per image the names of the labels in the order of the targets.
        left_out: Number of images of each class or label that is left out.
    """

    label_of: dict[str, str]
    targets_of: dict[str, Targets]
    label_names: tuple[str, ...]
    left_out: dict[str, int]


def make_classes(labelled: LabelledImages, options: PackOptions, known: Sequence[str] | None = None) -> Classes:
    """Return the classes of labelled images.

    Images that are added to a data set have its classes, `known`: some of them may be missing, or always be present.

    Raises:
        OptionError: `--classes` or `--drop-class` names a label that there is not.
        SourceError: An image has no label or several, or a label cannot be learned.
    """
    seen = {label for image in labelled.images for label in image.findings.present | image.findings.unknown}
    listed_alone = set(known or ()) if not labelled.label_columns else set()  # a label that is not listed is absent
    names = tuple(sorted(seen | set(labelled.label_columns) | listed_alone))
    for asked in (*options.classes, *options.drop_classes):
        if asked not in names:
            raise OptionError(f"the tables have no label {asked!r}; they have {listed(names)}")
    counts = Counter(label for image in labelled.images for label in image.findings.present)
    for name in labelled.label_columns:
        if known is None and not counts[name] and not labelled.is_found and options.takes(name):
            raise SourceError(f"no image has the label {name!r}; leave it out of --label-columns")
    if options.multi_label:
        return _targets(labelled, names, counts, options, is_addition=known is not None)
    return _single_labels(labelled, names, counts, options)


def _single_labels(
    labelled: LabelledImages, names: Sequence[str], counts: Counter[str], options: PackOptions
) -> Classes:
    _refuse_not_one(labelled)
    label_of = {image.path: next(iter(image.findings.present)) for image in labelled.images}
    return Classes(
        label_of={path: label for path, label in label_of.items() if options.takes(label)},
        targets_of={},
        label_names=(),
        left_out={name: counts[name] for name in names if not counts[name] or not options.takes(name)},
    )


def _refuse_not_one(labelled: LabelledImages) -> None:
    """Refuse images that have several labels, an unknown one, or none."""

    def refuse(which: Callable[[LabelledImage], bool], fault: str, cure: str) -> None:
        found = [image for image in labelled.images if which(image)]
        if found:
            labels = sorted(found[0].findings.unknown or found[0].findings.present)
            shown = f"{normalized_name(found[0].path)}{f' ({listed(labels)})' if labels else ''}"
            raise SourceError(f"{len(found)} of {len(labelled.images)} images {fault}, such as {shown}; {cure}")

    refuse(
        lambda image: len(image.findings.present) > 1,
        "have several labels",
        "use --multi-label, or a column with one label per image with --label-column",
    )
    refuse(
        lambda image: bool(image.findings.unknown),
        "have a label that is unknown",
        "take it as 1 or 0 with --uncertain positive or negative, or use --multi-label",
    )
    refuse(
        lambda image: not image.findings.present,
        f"have no label, that is no 1 in the columns {listed(labelled.label_columns)}",
        "add the column of their label to --label-columns, leave them out with --where, or use --multi-label",
    )


def _targets(
    labelled: LabelledImages, names: Sequence[str], counts: Counter[str], options: PackOptions, *, is_addition: bool
) -> Classes:
    unknown = Counter(label for image in labelled.images for label in image.findings.unknown)
    taken = [name for name in names if options.takes(name)]
    for name in taken if labelled.label_columns and not is_addition else ():
        if counts[name] and counts[name] + unknown[name] == len(labelled.images):
            _refuse_always_present(name, unknown[name], options.labels)
    constant = {name for name in taken if counts[name] in (0, len(labelled.images))}
    constant = constant if labelled.is_found and labelled.label_columns and not is_addition else set()
    learned = tuple(name for name in taken if name not in constant or name in options.classes)
    if not learned:
        raise SourceError(f"no label is left of {listed(names)}; name labels that some images have and some lack")
    return Classes(
        label_of={},
        targets_of=_vectors(labelled.images, learned),
        label_names=learned,
        left_out={name: counts[name] for name in names if name not in learned},
    )


def _refuse_always_present(name: str, unknown: int, labels: LabelOptions | None) -> None:
    """Refuse a label that is never absent because blank cells are unknown."""
    if unknown and labels is not None and labels.blank is None:
        raise SourceError(
            f"no image is known to lack the label {name!r}: its cells are 1, blank or unknown; take blank cells as 0 "
            f"with --blank negative, or leave the label out with --drop-class {name!r}"
        )


def _vectors(images: Sequence[LabelledImage], names: Sequence[str]) -> dict[str, Targets]:
    """Return the targets of each image; images with the same labels share one tuple."""
    known: dict[object, Targets] = {}
    vectors = {}
    for image in images:
        if image.findings not in known:
            present, unknown = image.findings.present, image.findings.unknown
            known[image.findings] = tuple(
                PRESENT if name in present else UNKNOWN if name in unknown else ABSENT for name in names
            )
        vectors[image.path] = known[image.findings]
    return vectors
