"""Refuses a layout that would be packed wrong, with what was probably meant."""

import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from data_shards.errors import OptionError, SourceError
from data_shards.pack.file_tree import FileTree, join
from data_shards.pack.label_tables import LabelTable
from data_shards.pack.layout import Layout
from data_shards.pack.names import (
    are_numbered_parts,
    are_numbers,
    differ_in_splits_alone,
    have_common_stem,
    is_container,
    is_mask_folder,
    is_side,
    loose_name,
    normalized_name,
    split_of,
)
from data_shards.pack.options import PackOptions

SHOWN = 3  # names in an error
CONTROL = frozenset({"Cc", "Zl", "Zp"})  # Unicode categories: control characters, line and paragraph separators
LONGEST = 255  # characters of a class name, as of a folder
FORMULA = re.compile(r"[=@]|[+-].*[(|!]")


def check_layout(
    tree: FileTree, layout: Layout, table: LabelTable | None, options: PackOptions, *, is_addition: bool = False
) -> None:
    """Refuse a source whose folders are no classes, and a `--split` that does not fit them.

    Without a folder of valid images, `--split` divides those of train, unless they are added to a data set.

    Raises:
        SourceError: The text says what was probably meant.
    """
    names = sorted({normalized_name(name) for _, name, _ in layout.class_folders(tree)})
    _refuse_flat(tree, layout, names, table, options.classes)
    _refuse_odd_classes([name for name in names if name not in (*options.classes, *options.drop_classes)], table)
    if not options.classes:
        _refuse_patients(tree, layout, names)
        _refuse_flat_splits(tree, layout, table)
    _refuse_outside(tree, layout)
    divides_train = "train" in layout.split_folders and "valid" not in layout.split_folders and not is_addition
    if layout.split_folders and (options.split_files or (options.split and not divides_train)):
        given = "--split" if options.split else "--split-file"
        raise SourceError(f"the source is laid out split/class/image already; leave out {given}, or rename its folders")
    if not layout.split_folders and not options.split and not options.split_files:
        raise SourceError("the source has no folders train, valid and test; add --split 70/15/15")


def check_class_names(tree: FileTree, layout: Layout, options: PackOptions) -> None:
    """Refuse two spellings of one class, and names of `--classes` and `--drop-class` that no class has.

    Raises:
        OptionError: `--classes` or `--drop-class` names a class that there is not.
        SourceError: Two classes have the same name. The text names the classes.
    """
    names = {name for _, name, _ in layout.class_folders(tree)}
    labels = {normalized_name(name) for name in names}
    for asked in (*options.classes, *options.drop_classes):
        if asked not in labels:
            raise OptionError(f"the source has no class {asked!r}; it has {', '.join(sorted(labels))}")
    taken = {name for name in names if not options.classes or normalized_name(name) in options.classes}
    taken = {name for name in taken if normalized_name(name) not in options.drop_classes}
    _refuse_two_spellings(taken, "class folders")
    _refuse_unsafe(map(normalized_name, taken))


def check_label_names(names: Collection[str]) -> None:
    """Refuse two spellings of one label, and names that a terminal or a spreadsheet would execute.

    Raises:
        SourceError: The text names the labels.
    """
    _refuse_two_spellings(names, "labels")
    _refuse_unsafe(names)


def _refuse_two_spellings(names: Iterable[str], what: str) -> None:
    spellings: dict[str, set[str]] = defaultdict(set)
    for name in names:
        spellings[loose_name(name)].add(name)
    for same in spellings.values():
        if len(same) > 1:
            first, second = sorted(same)[:2]
            raise SourceError(
                f"the {what} {_shown(first)} and {_shown(second)} differ only in upper case, blanks or "
                "Unicode form; give both one name"
            )


def _refuse_unsafe(names: Iterable[str]) -> None:
    for name in names:
        if any(unicodedata.category(character) in CONTROL for character in name):
            raise SourceError(f"the class {name!r} has a control character in its name; rename it")
        if len(name) > LONGEST:
            raise SourceError(f"a class name has {len(name)} characters, {name[:40]!r}...; use at most {LONGEST}")
        if FORMULA.match(name):
            raise SourceError(f"the class {name!r} is a formula to a spreadsheet; rename it")


def _refuse_flat(
    tree: FileTree, layout: Layout, names: Sequence[str], table: LabelTable | None, classes: Collection[str]
) -> None:
    """Refuse images that lie in no class folder: straight in the source, in its split folders, or in `images/`."""
    folders = list(layout.split_folders.values()) or [layout.root]
    flat = [folder for folder in folders if tree.images[folder]]
    if layout.split_folders and folders[0] not in flat and tree.subfolders[folders[0]]:
        flat = []  # the first split, train if there is one, has class folders
    names = [name for name in names if not is_mask_folder(name)] or names
    generic = bool(names) and all(map(is_container, names))
    single = len(names) == 1 and not layout.split_folders and table is not None
    if not classes and (generic or single or (flat and (table or not names))):
        where = [normalized_name(folder) for folder in flat if folder] or names[:SHOWN]
        raise SourceError(
            f"the images{' in ' + ', '.join(f'{name}/' for name in where) if where else ''} have no class folders; "
            f"{_labels_cure(table, layout.layout)}{_if_classes(layout)}"
        )


def _if_classes(layout: Layout) -> str:
    passed_over = [folder for folder in layout.passed_over if folder.rpartition("/")[0] == layout.root]
    if not layout.split_folders or not passed_over:
        return ""
    beside = [folder.rpartition("/")[2] for folder in (*layout.split_folders.values(), *passed_over)]
    return f", or take these folders as classes with --classes {','.join(map(normalized_name, beside))}"


def _refuse_odd_classes(names: Sequence[str], table: LabelTable | None) -> None:
    listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    as_classes = f"--classes {shlex.quote(','.join(names))}"
    cure = f"{_labels_cure(table, 'class/image')}, or take them as classes with --classes"
    splits = [name for name in names if split_of(name)]
    masks = [name for name in names if is_mask_folder(name)]
    if differ_in_splits_alone(names):
        raise SourceError(f"the folders {listed} look like splits, not classes; {cure}")
    if splits:
        raise SourceError(f"the folder {splits[0]}/ looks like a split, not a class; {cure}")
    if masks:
        raise SourceError(
            f"the folder {masks[0]}/ looks like segmentation masks, not a class; leave it out with "
            f"--drop-class {shlex.quote(masks[0])}, or take it as a class with {as_classes}"
        )
    if table and names and are_numbers(names):
        raise SourceError(f"the folders {listed} are numbers beside a table, not classes; {cure}")
    if are_numbered_parts(names) or (table and have_common_stem(names)):
        raise SourceError(f"the folders {listed} look like parts of one set, not classes; {cure}")


def _refuse_patients(tree: FileTree, layout: Layout, names: Sequence[str]) -> None:
    """Refuse numbered folders that have the same folders, as `12/benign` and `13/benign` have.

    Single digits are rather grades, and what lies in classes too are splits, masks, `images/` and sides of the body.
    """
    folders = [folder for _, _, folder in layout.class_folders(tree)]
    inner = Counter(normalized_name(name) for folder in folders for name in tree.subfolders[folder])
    if not are_numbers(names) or max(map(len, names), default=1) == 1 or any(tree.images[folder] for folder in folders):
        return
    if any(split_of(name) or is_mask_folder(name) or is_container(name) or is_side(name) for name in inner):
        return
    if len(names) > len(inner) > 1 and all(2 * count > len(folders) for count in inner.values()):
        same, more = " and ".join(sorted(inner)[:SHOWN]), ", ..." if len(names) > SHOWN else ""
        raise SourceError(
            f"the folders {', '.join(names[:SHOWN])}{more} are numbers, and most of them have the folders {same}, "
            "which look like the classes of patients; move the images to CLASS/NUMBER/image, and add --group-by "
            f"'^[^/]+/([^/]+)/', or take the numbers as classes with --classes {','.join(names[:SHOWN])}"
            f"{more.replace(' ', '')}"
        )


def _refuse_flat_splits(tree: FileTree, layout: Layout, table: LabelTable | None) -> None:
    """Refuse `val/images/1.png` beside `train/CLASS/1.png`."""
    train = layout.split_folders.get("train", "")
    for folder in layout.split_folders.values():
        names = tree.subfolders[folder]
        if names and all(map(is_container, names)) and not all(map(is_container, tree.subfolders[train])):
            by_table = f" by {table.name}" if table else ""
            raise SourceError(
                f"the images in {normalized_name(join(folder, names[0]))}/ have no class folders, as those in "
                f"{normalized_name(train)}/ have; sort them into class folders{by_table}, or give the folder "
                f"{normalized_name(train)}/ as SOURCE, with --split 70/15/15"
            )


def _refuse_outside(tree: FileTree, layout: Layout) -> None:
    for folder in layout.split_folders.values() or (layout.root,):
        for name in tree.images[folder]:
            path = normalized_name(join(folder, name))
            raise SourceError(
                f"{path} lies outside the layout {layout.layout}; move it into a class folder"
                f"{_if_unlabelled(tree, layout, folder)}"
            )


def _if_unlabelled(tree: FileTree, layout: Layout, folder: str) -> str:
    """Return the cure for a split without any class folder, such as the images of a competition that are to be
    predicted.
    """
    train = layout.split_folders.get("train", folder)
    if folder == train or any(tree.has_images(join(folder, name)) for name in tree.subfolders[folder]):
        return ""
    bare, given = normalized_name(folder), normalized_name(train)
    return f", or, if the images in {bare}/ have no labels, give the folder {given}/ as SOURCE, with --split 70/15/15"


def _labels_cure(table: LabelTable | None, layout: str) -> str:
    """Say where the labels come from."""
    if table is None:
        return f"sort them into class folders {layout}, or give a table of labels with --labels"
    return (
        f"{table}: the labels must come from a table; give it with --labels {shlex.quote(table.name)}, or sort the "
        f"images into class folders {layout} by it"
    )


def _shown(name: str) -> str:
    """Return a name so that blanks at its end and decomposed characters can be seen."""
    return ascii(name) if loose_name(name) != name.casefold() else repr(name)
