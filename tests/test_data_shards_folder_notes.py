import pytest

from data_shards.pack.groups import groups_of
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import LabelOptions, PackOptions
from tests.adding import added, new_images
from tests.datasets import packed


def notes_of(folder, **chosen):
    found = scan_source(folder, PackOptions(**{"split": "60/20/20", "plain_groups": True, **chosen}))
    return found.labels.notes if found.labels else ()


def images(folder, below, each=2):
    """Write empty image files: so many in each folder below the classes a and b."""
    for number, name in enumerate(below):
        for n in range(each):
            path = folder / "ab"[number % 2] / name / f"{number}-{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


PATIENTS = [f"patient{number:02}" for number in range(12)]


def test_folders_below_the_classes_may_be_patients_and_the_option_keeps_them_together(tmp_path):
    folder = images(tmp_path / "images", PATIENTS)

    (note,) = notes_of(folder)

    assert note == (
        "--split divides the images of 12 folders; if each is a patient, a series or a camera, keep its images in one "
        "split with --group-by '^[^/]+/([^/]+)/'"
    )
    assert notes_of(folder, group_by="^[^/]+/([^/]+)/") == ()


def test_folders_of_images_that_a_table_labels_may_be_patients(tmp_path):
    names = [f"{patient}/study1/{n}{patient}.png" for patient in PATIENTS for n in range(2)]
    folder = new_images(tmp_path / "images", names)
    rows = [f"{name},{'ab'[number % 2]},{number // 2}" for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["file,label,patient", *rows]))

    def told(column):
        return notes_of(folder, labels=LabelOptions(tables=(str(tmp_path / "t.csv"),), group_column=column))

    assert any(note.endswith("in one split with --group-by '^([^/]+)/'") for note in told("none"))
    assert not any("--group-by" in note for note in told(None))


@pytest.mark.parametrize(
    ("below", "each"), [(["images"] * 4, 9), (["x"] * 20, 1), (PATIENTS[:6], 2), ([""] * 20, 1), (PATIENTS, 1)]
)
def test_few_folders_and_folders_of_one_image_need_no_note(tmp_path, below, each):
    assert notes_of(images(tmp_path / "images", below, each)) == ()


def test_folders_further_down_may_be_patients(tmp_path):
    names = [f"train/{patient}/study{n}/film{n}.png" for patient in PATIENTS for n in range(2)]  # as in CheXpert
    folder = new_images(tmp_path / "images", names)
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["Path,label", *rows]))
    table = LabelOptions(tables=(str(tmp_path / "t.csv"),))

    (note,) = (note for note in notes_of(folder, labels=table) if "--group-by" in note)

    assert note.startswith("--split divides the images of 12 folders; ")
    assert note.endswith(" with --group-by '^[^/]+/([^/]+)/'")


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        ([f"{c}/{n}_{eye}.jpeg" for n, c in enumerate("ab" * 6) for eye in ("left", "right")], "in left and right"),
        ([f"{c}/OAS1_{n:04}_{k}.jpg" for n, c in enumerate("ab" * 6) for k in (100, 101)], "in their last number"),
    ],
)
def test_names_may_say_which_images_are_of_one_patient_and_the_option_keeps_them_together(tmp_path, names, difference):
    folder = new_images(tmp_path / "images", names)

    (note,) = notes_of(folder)
    expression = note.partition("--group-by '")[2].removesuffix("'")
    of_image = groups_of(names, expression).of_image
    groups = [of_image[name] for name in names]

    assert note.startswith(
        f"--split divides images whose names differ only {difference} (12 such names); if those are "
    )
    assert groups[::2] == groups[1::2]
    assert len(set(groups)) == 12
    assert notes_of(folder, group_by=expression) == ()


@pytest.mark.parametrize(
    "names",
    [
        [f"{label}/image_{n:04}.jpg" for label in "ab" for n in range(12)],
        [f"n0{c}/images/n0{c}_{n}.JPEG" for c in range(12) for n in range(3)],  # a folder and a number for each class
        [f"{label}/ISIC_{n:07}.jpg" for label in "ab" for n in range(12)],
        [f"{label}/{n:0250}.jpg" for label in "ab" for n in range(12)],
    ],
)
def test_names_that_are_counted_or_those_of_classes_need_no_note(tmp_path, names):
    assert notes_of(new_images(tmp_path / "images", names)) == ()


def test_splits_in_the_class_folders_are_said_to_be_divided_anew(tmp_path):
    folder = images(tmp_path / "images", [split for split in ("train", "test") for _ in range(2)], each=6)

    (note,) = notes_of(folder)

    assert note == "the folders test and train in the class folders are not used: --split divides their images again"


def test_given_splits_need_no_note(tmp_path):
    folder = tmp_path / "images"
    for split in ("train", "test"):
        images(folder / split, PATIENTS)

    assert notes_of(folder, split=None) == ()


def test_images_added_to_a_data_set_without_groups_are_not_advised_to_have_some(tmp_path):
    shards, _ = packed(tmp_path, {"a": 8, "b": 8}, split="60/20/20")
    new = new_images(tmp_path / "new", [f"{'ab'[n % 2]}/{name}/{n}.png" for name in PATIENTS for n in range(2)])

    assert added(shards, new).folder.labels is None
