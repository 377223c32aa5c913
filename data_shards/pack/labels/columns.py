"""Finds the columns of a table: by the option that names them, by the usual names, or by what they hold."""

import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice

from data_shards.errors import OptionError
from data_shards.pack.labels.cells import BINARY, is_missing, loose
from data_shards.pack.labels.matching import WHOLE_NUMBER, ImageMatcher, looks_like_image
from data_shards.pack.labels.tables import Table

# The names in the tables of well-known data sets, as `loose` gives them. The surest name comes first.
IMAGE_NAMES = (
    "path", "imagepath", "imgpath", "filepath", "imageindex", "filename", "imagefilename", "imagefile", "imagename",
    "imgname", "file", "imageid", "imgid", "image", "img", "dicomid", "isicid", "idcode", "sopinstanceuid", "id",
    "name", "fname", "uid", "picture", "photo", "slice", "scan", "study", "patientid",
)  # fmt: skip
LABEL_NAMES = (
    "findinglabels", "findinglabel", "labels", "label", "dx", "diagnosis", "level", "finding", "findings", "class",
    "classname", "classes", "target", "category", "categories", "benignmalignant", "grade", "severity", "pathology",
    "disease", "groundtruth",
)  # fmt: skip
GROUP_NAMES = (
    "patientid", "patient", "patientnumber", "patientno", "patientnr", "patientcode", "patientkey", "patientuid",
    "patientenid", "patientennummer", "patientennr", "idpatient", "patid", "patnr", "mrn", "medicalrecordnumber",
    "patientname", "patientpseudonym", "pseudonym", "subjectid", "subject", "subjectnumber", "subjectno",
    "participantid", "participant", "probandid", "probandenid", "proband", "donorid", "animalid", "personid", "pid",
    "caseid", "case", "casenumber", "caseno", "fallnummer", "fallnr", "fallid", "lesionid", "group", "groupid",
    "studyid", "studyinstanceuid",
)  # fmt: skip
SPLIT_NAMES = ("split", "datasetsplit", "splits", "partition", "subset", "setname")
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
    for same in (str, loose):
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


def find_image_column(table: Table, matcher: ImageMatcher) -> tuple[int, int] | None:
    """Return the column whose cells name most images, and their number; None if no cell names one.

    Columns with a usual name, or with names of image files, are asked first. Of two that name about as many, the one
    with the surer name is meant; but numbers are less sure than names of files: they may count patients or rows. Those
    of patients are only asked where no other column has a usual name.

    Args:
        table: The table.
        matcher: The images. In a column without a usual name, short numbers are more likely counts or classes.

    Raises:
        OptionError: Numbers of patients may name the images, but other numbers may, too.
    """
    usual = by_usual_name(table.columns, IMAGE_NAMES)
    others = [position for position in range(len(table.columns)) if position not in usual]
    numbers = [position for position in usual if _holds(table, position, _is_number)]
    patients = [position for position in numbers if loose(table.columns[position]) in GROUP_NAMES]
    if len(usual) > 1:
        numbers = [position for position in numbers if position not in patients]
    files = [position for position in others if _holds(table, position, looks_like_image)]
    sure = [*(position for position in usual if position not in (*numbers, *patients)), *files, *numbers]
    for positions in (sure, [position for position in others if position not in files]):
        counts = {
            position: matcher.count_images(table.column(position), short_numbers=position in usual)
            for position in positions
        }
        best = max(counts.values(), default=0)
        if best:
            found = next((position, number) for position, number in counts.items() if number > 0.9 * best)
            if found[0] in patients:
                _refuse_rivals(table, found, others, matcher)
            return found
    return None


def _refuse_rivals(table: Table, found: tuple[int, int], others: Iterable[int], matcher: ImageMatcher) -> None:
    """Refuse numbers of patients as names of images where other numbers name as many images."""
    position, number = found
    rivals = [p for p in others if matcher.count_images(table.column(p), short_numbers=True) >= number]
    if rivals:
        names = listed(repr(table.columns[p]) for p in sorted((position, *rivals)))
        raise OptionError(
            f"the numbers in the columns {names} of {table.name} may all name the images; rename the right "
            "one to 'image'"
        )


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
