"""The groups of images, and the names of both, as a data set stores them: without the identifiers of patients."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from data_shards.counted import counted
from data_shards.errors import OptionError, SourceError
from data_shards.pack.groups import NamedGroups, groups_of
from data_shards.pack.hidden_names import SUCH_AS, HiddenNames
from data_shards.pack.identifiers import loose_identifier, other_spellings
from data_shards.pack.labels.labelled import LabelReport
from data_shards.pack.options import DICOM_PREFIX, PackOptions
from data_shards.pack.pseudonyms import GROUP, key_fingerprint, own_group, pseudonym
from data_shards.pack.sources import ImageFolder, SourceImage


def check_group_options(options: PackOptions) -> None:
    """Refuse options of groups that cannot be met, before anything is read.

    Raises:
        OptionError: There is no key, or groups from DICOM headers are to be stored as they are.
    """
    if options.groups_in_headers and options.plain_groups:
        raise OptionError(
            f"--plain-groups with --group-by {options.group_by}: identifiers of DICOM headers are only stored as "
            "keyed hashes; leave out --plain-groups"
        )
    if options.group_by and not options.plain_groups:
        group_key_of(options)


def group_key_of(options: PackOptions) -> str:
    """Return the secret that turns identifiers into names of groups.

    Raises:
        OptionError: There is none.
    """
    key = options.group_key() if options.group_key else None
    if not key:
        groups = f"--group-by {options.group_by}" if options.group_by else "the column of groups in the tables"
        plain = "" if options.groups_in_headers else ", or store groups as they are with --plain-groups"
        raise OptionError(
            f"{groups} needs a key for the hashes that replace identifiers, and PackOptions.group_key gives none; "
            f"give one{plain}"
        )
    return key


def named_groups(folder: ImageFolder, options: PackOptions, former: str | None = None) -> NamedGroups:
    """Return the groups of images by `--group-by`, else by their tables or headers; `former` is that of `groups_of`.

    Raises:
        OptionError: `--group-by` cannot be used.
        SourceError: The table of groups cannot be used, or an image has no group.
    """
    if options.group_by and not options.groups_in_headers:
        return groups_of([image.name for image in folder.images], options.group_by, former)
    of_image = {image.name: image.group for image in folder.images if image.group is not None}
    return NamedGroups(of_image=of_image, values=frozenset(of_image.values()), expression=None)


def with_stored_groups(folder: ImageFolder, options: PackOptions, found: NamedGroups | None = None) -> ImageFolder:
    """Return the images with their groups by `--group-by`, else by their tables or headers, as they are stored.

    Unless the options have `plain_groups`, groups are named by keyed hashes, and hashes replace their identifiers in
    the names of images and of all that the report lists. `found` is what `named_groups` returned, if it was asked.

    Raises:
        OptionError: `--group-by` cannot be used, or there is no key.
        SourceError: The table of groups cannot be used, or an image has no group.
    """
    found = named_groups(folder, options) if found is None else found
    if options.group_by:
        folder = replace(folder, group_column=found.column)
    if notes := (*found.notes, *_alike(found.of_image)):
        folder = replace(folder, labels=(folder.labels or LabelReport()).with_notes(notes))
    groups = [found.of_image.get(image.name) for image in folder.images]
    if options.plain_groups or not found.of_image:
        images = zip(folder.images, groups, strict=True)
        return replace(folder, images=tuple(replace(image, group=group) for image, group in images))
    key = group_key_of(options)
    hidden = HiddenNames(key, _keyword(options), found.expression, found.values | folder.other_groups)
    stored = tuple(
        replace(image, name=_hidden_name(image, group, hidden, options), group=group and hidden.group(group))
        for image, group in zip(folder.images, groups, strict=True)
    )
    return replace(
        _with_hidden_lists(folder, hidden),
        images=stored,
        renamed=sum(after.name != before.name for after, before in zip(stored, folder.images, strict=True)),
        group_key=key_fingerprint(key),
        other_groups=frozenset(),
    )


def refuse_other_spellings(
    folder: ImageFolder, options: PackOptions, found: NamedGroups, known: Collection[str]
) -> None:
    """Refuse groups that a data set has in another spelling: it would take them for other patients.

    Args:
        folder: The new images, their groups not yet as they are stored.
        options: How the data set names groups.
        found: What `named_groups` returned.
        known: The groups of the data set as it stores them.

    Raises:
        SourceError: The text says how many and where to look, and no identifier.
    """
    key, keyword = None if options.plain_groups else group_key_of(options), _keyword(options)

    def is_known(group: str) -> bool:
        return (group if key is None else pseudonym(group, keyword, key)) in known

    groups = _named(found.of_image)
    other = [group for group in groups if not is_known(group) and any(map(is_known, other_spellings(group)))]
    if other:
        place = [image.name for image in folder.images].index(groups[other[0]]) + 1
        raise SourceError(
            f"{counted(len(other), 'group')} of the new images, first that of image {place} of {len(folder.images)} in "
            f"order of name, {'is' if len(other) == 1 else 'are'} in the data set with other leading zeros or another "
            "case: a patient would count as two; write groups as in the data set"
        )


def _named(of_image: Mapping[str, str]) -> dict[str, str]:
    """Return the first image of each group; an image that is alone for want of a group is none."""
    found: dict[str, str] = {}
    for image, group in of_image.items():
        if group != own_group(image):
            found.setdefault(group, image)
    return found


def _alike(of_image: Mapping[str, str]) -> tuple[str, ...]:
    """Return a note if groups differ only in how they are spelled: they may be one patient."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for group, image in _named(of_image).items():
        spellings[loose_identifier(group)].append(image)
    alike = [images for images in spellings.values() if len(images) > 1]
    if not alike:
        return ()
    return (
        f"{counted(sum(map(len, alike)), 'group')} differ from another one only in leading zeros or upper case, and "
        "may be in another split; if they are one patient, write them alike; they have images"
        f"{SUCH_AS}{alike[0][0]}",
    )


def _keyword(options: PackOptions) -> str:
    return str(options.group_by)[len(DICOM_PREFIX) :] if options.groups_in_headers else GROUP


def _hidden_name(image: SourceImage, group: str | None, hidden: HiddenNames, options: PackOptions) -> str:
    """Return the name of an image without the identifiers of its group, and of that in the tables of labels."""
    if options.labels and options.groups_in_headers:  # which have taken the place of the latter
        return hidden.of_file(image.name)
    return hidden.of_image(image.name, *filter(None, (group, image.group)))


def _with_hidden_lists(folder: ImageFolder, hidden: HiddenNames) -> ImageFolder:
    return replace(
        folder,
        other_names=tuple(map(hidden.of_file, folder.other_names)),
        passed_over={hidden.of_file(name): count for name, count in folder.passed_over.items()},
        filtered=tuple(map(hidden.of_file, folder.filtered)),
        labels=folder.labels and _hidden_report(folder.labels, hidden),
    )


def _hidden_report(report: LabelReport, hidden: HiddenNames) -> LabelReport:
    return replace(
        report,
        notes=tuple(map(hidden.of_note, report.notes)),
        rows_without_image=tuple(map(hidden.of_row, report.rows_without_image)),
        images_without_row=tuple(map(hidden.of_file, report.images_without_row)),
        images_without_label=tuple(map(hidden.of_file, report.images_without_label)),
    )
