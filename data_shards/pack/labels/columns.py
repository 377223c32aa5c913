"""Finds the columns of a table: by the option that names them, by the usual names, or by what they hold."""

import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from data_shards.errors import OptionError
from data_shards.pack.labels.cells import BINARY, column_key, is_missing, loose
from data_shards.pack.labels.matching import WHOLE_NUMBER, ImageMatcher, looks_like_image
from data_shards.pack.labels.tables import Table

# The names in the tables of well-known data sets, as `loose` gives them. The surest name comes first.
IMAGE_NAMES = (
    "path", "imagepath", "imgpath", "filepath", "imageindex", "filename", "imagefilename", "imagefile", "imagename",
    "imgname", "file", "imageid", "imgid", "image", "img", "bildid", "bild", "dicomid", "isicid", "idcode",
    "sopinstanceuid", "id", "name", "fname", "uid", "picture", "photo", "slice", "scan", "study", "patientid",
)  # fmt: skip
# Those under which numbers may just as well count rows, patients or examinations.
COUNTING_NAMES = frozenset({"id", "idcode", "name", "uid", "slice", "scan", "study", "patientid"})
LABEL_NAMES = (
    "findinglabels", "findinglabel", "labels", "label", "dx", "diagnosis", "level", "finding", "findings", "class",
    "classname", "classes", "target", "category", "categories", "benignmalignant", "grade", "severity", "pathology",
    "disease", "groundtruth", "choice",
)  # fmt: skip
MASK_NAMES = frozenset({"seg", "segmentation", "segmentations", "segmentationfile", "segmentationpath", "gt"})
GROUP_NAMES = (
    "patientid", "patient", "patientnumber", "patientno", "patientnr", "patientcode", "patientkey", "patientuid",
    "patientenid", "patientennummer", "patientennr", "idpatient", "patid", "patnr", "mrn", "medicalrecordnumber",
    "patientpseudonym", "pseudonym", "subjectid", "subject", "subjectnumber", "subjectno",
    "participantid", "participant", "probandid", "probandenid", "proband", "donorid", "animalid", "personid", "pid",
    "caseid", "case", "casenumber", "caseno", "fallnummer", "fallnr", "fallid", "lesionid", "group", "groupid",
    "studyid", "studyinstanceuid",
)  # fmt: skip
SPLIT_NAMES = ("split", "datasetsplit", "splits", "partition", "subset", "setname")
# Whoever gave the labels of a row.
READER_NAMES = (
    "radid",
    "radiologist",
    "radiologistid",
    "reader",
    "readerid",
    "rater",
    "raterid",
    "annotator",
    "annotatorid",
    "grader",
    "graderid",
    "observer",
    "observerid",
)
# Labels of CheXpert, MIMIC-CXR, NIH ChestX-ray14, ISIC 2018 and 2019: a column each.
FINDING_NAMES = frozenset({
    "nofinding", "enlargedcardiomediastinum", "cardiomegaly", "lungopacity", "lunglesion", "edema", "consolidation",
    "pneumonia", "atelectasis", "pneumothorax", "pleuraleffusion", "pleuralother", "fracture", "supportdevices",
    "effusion", "infiltration", "mass", "nodule", "emphysema", "fibrosis", "pleuralthickening", "hernia",
    "mel", "nv", "bcc", "ak", "akiec", "bkl", "df", "vasc", "scc", "unk",
})  # fmt: skip
PROBED_ROWS = 200  # of which the cells show what a column holds
SHOWN = 12  # columns in an error
NO_COLUMN = "none"  # for an option: use no column, although one has a usual name


def position_of(columns: Sequence[str], name: str, option: str, where: str) -> int:
    """Return the position of the column that an option names; upper case and blanks . - _ # may differ.

    Raises:
        OptionError: There is none, or there are several. The text names the table and its columns.
    """
    for same in (str, column_key, loose):
        found = [position for position, column in enumerate(columns) if same(column) == same(name)]
        if len(found) > 1:
            raise OptionError(f"{where} has {len(found)} columns named {name!r}; rename all but one")
        if found:
            return found[0]
    raise OptionError(f"{option} {name}: {where} has no such column; it has {listed(columns)}")


def listed(names: Iterable[str]) -> str:
    """Return names for an error, not too many."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def by_usual_name(columns: Sequence[str], usual: Sequence[str]) -> list[int]:
    """Return the positions of the columns that have a usual name, the surest first."""
    found = {loose(column): position for position, column in reversed(list(enumerate(columns)))}
    return [found[name] for name in usual if name in found]


def find_group_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], usual: Sequence[str] = GROUP_NAMES
) -> list[int]:
    """Return the columns with a usual name for groups that have a value in a row, the surest first."""
    found = by_usual_name(columns, usual)
    return [position for position in found if not all(is_missing(row[position]) for row in rows)]


@dataclass(frozen=True, kw_only=True)
class ImageColumn:
    """The column of a table that names images.

    Attributes:
        position: Its position.
        named: How many images it names; of names of files under a usual name, how many rows.
        may_count: Whether it holds numbers that may count rows, patients or examinations.
        is_first_of_files: Whether it was taken as the first of the columns of image files, which have no usual name.
    """

    position: int
    named: int
    may_count: bool
    is_first_of_files: bool = False


def find_image_column(table: Table, matcher: ImageMatcher) -> int | None:
    """Return the position of the column that names the images; None if no cell names one.

    Raises:
        OptionError: Numbers of rows or patients may name the images, but other numbers may, too; or file names.
    """
    found = likely_image_column(table, matcher)
    if found is None:
        return None
    refuse_rivals(table, found, matcher)
    return found.position


def likely_image_column(table: Table, matcher: ImageMatcher) -> ImageColumn | None:
    """Return the column whose cells name images; None if no cell names one.

    Asked in turn, until one names an image: columns with a usual name that hold no numbers, numbers under a name that
    means images, each other column of image files, numbers that may count something else, all others, and columns of
    masks. Of two usual names that name about as many, the surer one is meant. Numbers of patients are only asked where
    no other column has a usual name.

    Args:
        table: The table.
        matcher: The images. In a column without a usual name, short numbers are more likely counts or classes.
    """
    usual = by_usual_name(table.columns, IMAGE_NAMES)
    numbers = [position for position in usual if _holds(table, position, _is_number)]
    counting = [position for position in numbers if loose(table.columns[position]) in COUNTING_NAMES]
    if len(usual) > 1:
        asked = [position for position in counting if loose(table.columns[position]) not in GROUP_NAMES]
    else:
        asked = counting
    masks = [position for position, name in enumerate(table.columns) if _is_mask_name(name)]
    others = [position for position in range(len(table.columns)) if position not in (*usual, *masks)]
    files = [position for position in others if _holds(table, position, looks_like_image)]
    names = [position for position in usual if position not in numbers]
    sure_numbers = [position for position in numbers if position not in counting]
    rest = [position for position in others if position not in files]
    for positions in (names, sure_numbers, *([position] for position in files), asked, rest, masks):
        counts = {
            position: matcher.count(table.column(position))
            if positions is names
            else matcher.count_images(table.column(position), short_numbers=position in usual)
            for position in positions
        }
        best = max(counts.values(), default=0)
        if best:
            position, named = next(item for item in counts.items() if item[1] > 0.9 * best)
            return ImageColumn(
                position=position, named=named, may_count=positions is asked, is_first_of_files=position in files
            )
    return None


def refuse_rivals(table: Table, found: ImageColumn, matcher: ImageMatcher, option: str | None = None) -> None:
    """Refuse a column that is taken for that of the images where another one may as well be, and differs in a row.

    Beside numbers of rows or patients, this is one that names as many images; beside file names, file names of as many
    images, such as masks, or of the same ones, such as earlier films.

    Args:
        table: The table.
        found: Its column.
        matcher: The images.
        option: The option that names the column, for the error.

    Raises:
        OptionError: There is such a column.
    """
    if not (found.may_count or found.is_first_of_files):
        return
    usual = by_usual_name(table.columns, (*IMAGE_NAMES, *LABEL_NAMES))
    own = [matcher.find(cell) for cell in table.column(found.position)]
    rivals = []
    for position in range(len(table.columns)):
        images = [] if position in usual else [matcher.find(cell) if cell else None for cell in table.column(position)]
        differ = any(image and other and image != other for image, other in zip(images, own, strict=False))
        named, ours = set(images) - {None}, set(own) - {None}
        if found.may_count:
            is_rival = len(named) >= found.named
        else:
            is_file = _holds(table, position, looks_like_image) and not _is_mask_name(table.columns[position])
            is_rival = is_file and (len(named) == len(ours) or not named.isdisjoint(ours))
        if differ and is_rival:
            rivals.append(position)
    if rivals:
        what = "numbers" if found.may_count else "file names"
        names = listed(repr(table.columns[position]) for position in sorted((found.position, *rivals)))
        raise OptionError(
            f"the {what} in the columns {names} of {table.name} may all name the images; rename the right one to "
            f"'image'{f', or give it with {option}' if option else ''}"
        )


def _is_mask_name(column: str) -> bool:
    """Whether a column's name says that it has masks, which belong to images and are none."""
    name = loose(column)
    return "mask" in name or name in MASK_NAMES


def _holds(table: Table, position: int, kind: Callable[[str], bool]) -> bool:
    """Whether most of the first cells of a column are of a kind."""
    cells = list(islice((row[position] for row in table.rows if row[position]), PROBED_ROWS))
    return 2 * sum(map(kind, cells)) > len(cells)


def _is_number(cell: str) -> bool:
    return cell.isdecimal() or WHOLE_NUMBER.fullmatch(cell) is not None


def find_label_column(columns: Sequence[str], where: str) -> int | None:
    """Return the one column with a usual name for labels, None if there is none.

    Raises:
        OptionError: There are several.
    """
    found = by_usual_name(columns, LABEL_NAMES)
    if len(found) > 1:
        names = listed(columns[position] for position in sorted(found))
        raise OptionError(f"the columns {names} of {where} may all be the labels; choose one with --label-column")
    return found[0] if found else None


def find_label_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], used: Collection[int], where: str
) -> list[int]:
    """Return the columns of 1 and 0 that are labels: those named like findings, or else all, if nothing else is there.

    Args:
        columns: Names of the columns.
        rows: Their cells.
        used: Positions of the columns that have another meaning.
        where: Name of the table, for the error.

    Raises:
        OptionError: Other columns of 1 and 0 may be labels too.
    """
    rest = [position for position in range(len(columns)) if position not in used]
    binary = [position for position in rest if is_binary(row[position] for row in rows)]
    named = [position for position in binary if loose(columns[position]) in FINDING_NAMES]
    others = [p for p in binary if p not in named and not all(is_missing(row[p]) for row in rows)]
    if len(named) > 1 and others:
        every = ",".join(columns[position] for position in sorted((*named, *others)))
        raise OptionError(
            f"{where} has columns of 1 and 0 beside those named like findings: "
            f"{listed(columns[position] for position in others)}; give those that are labels, such as --label-columns "
            f"{shlex.quote(every)}"
        )
    if len(named) > 1:
        return named
    return binary if len(binary) > 1 and binary == rest else []


def is_binary(cells: Iterable[str]) -> bool:
    """Whether every cell is 1, 0, -1, blank, or another spelling of these."""
    distinct = set(cells)
    return all(is_missing(cell) or cell.casefold() in BINARY for cell in distinct)
