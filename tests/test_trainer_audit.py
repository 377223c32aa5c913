"""`shards audit`: a planted marker, an image size or a file format that gives the class away raises an alarm."""

import errno
import html
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from data_shards.index import read_index
from tests.audited import SIDE, digits, packed
from tests.compared import predictions_of
from tests.test_trainer_report_page import report_data
from tests.trained import lease_in
from trainer.audit import __main__ as audit_process
from trainer.audit.audit import NO_ALARM, Audit, Check, audit
from trainer.audit.cross_validation import best_feature_scores, classifier_scores, make_folds, mark_scores
from trainer.audit.describe import edge_cells, edge_patches
from trainer.audit.page import write_page
from trainer.audit.saved import AuditScores
from trainer.errors import SpecError
from trainer.report.environment import area_percent
from trainer.report.page import render

MARK = "constant mark near the edge"


def with_marker(squares: np.ndarray, labels: np.ndarray, *, label: int, seed: int, value: int = 255) -> np.ndarray:
    """A square of 6 x 6 pixels of one brightness in a random corner of each image of one class."""
    top, left = np.random.default_rng(seed).integers(0, 3, 2)
    bottom_right = np.random.default_rng(seed + 1).integers(0, 2, 2) * (SIDE - 9)
    marked = squares.copy()
    top, left = top + bottom_right[0], left + bottom_right[1]
    marked[labels == label, top : top + 6, left : left + 6] = value
    return marked


def audited(location: str) -> Audit:
    return audit(location, read_index(location), image_size=SIDE, processes=1)


def alarms(found: Audit) -> set[str]:
    return {check.name for check in found.checks if check.alarm}


def mark_area(squares: np.ndarray, labels: np.ndarray) -> float:
    folds = make_folds(labels, [""] * len(labels))
    scores = mark_scores(np.stack([edge_cells(square) for square in squares]), labels, folds, 2)
    return float(roc_auc_score(labels, scores[:, 1]))


@pytest.mark.parametrize("seed", range(20))
def test_a_mark_in_a_corner_is_found_whatever_its_place_and_the_digits(seed):
    squares, labels = digits(*sorted(np.random.default_rng(seed).choice(10, 2, replace=False)), seed=seed)

    marked = [with_marker(squares, labels, label=label, seed=seed) for label in (1, 0)]

    assert mark_area(marked[0], labels) > 0.95
    assert mark_area(marked[1], labels) > 0.95
    assert mark_area(squares, labels) == 0.5


def test_a_single_patch_that_tells_two_digits_apart_is_no_mark():
    squares, labels = digits(3, 7, seed=0)
    folds = make_folds(labels, [""] * len(labels))

    patches = best_feature_scores(np.stack([edge_patches(square) for square in squares]), labels, folds, 2)

    assert roc_auc_score(labels, patches[:, 1]) > 0.95
    assert mark_area(squares, labels) == 0.5


def test_clean_digits_raise_no_alarm(tmp_path):
    found = audited(packed(tmp_path, *digits(0, 4, 7, seed=0)))

    assert alarms(found) == set()
    assert found.sentence == NO_ALARM
    assert found.checks[0].auroc > 0.98  # the thumbnail shows the subject: no alarm
    assert [(check.auroc, check.low) for check in found.checks if check.name == "image size"] == [(0.5, None)]


def test_a_marker_on_one_class_of_three_raises_an_alarm_that_names_the_class(tmp_path):
    squares, labels = digits(0, 4, 7, seed=1)

    found = audited(packed(tmp_path, with_marker(squares, labels, label=1, seed=1), labels))

    assert alarms(found) == {MARK}
    assert found.sentence.startswith("Constant mark near the edge alone reaches an AUROC of ")


def test_an_image_size_that_tells_the_class_raises_an_alarm_though_it_is_no_monotonic_function(tmp_path):
    squares, labels = digits(3, 7, seed=2)
    sides = np.where(labels == 1, 40, np.where(np.arange(len(labels)) % 2, 32, 64))
    images = [
        np.asarray(Image.fromarray(square).resize((side, side))) for square, side in zip(squares, sides, strict=True)
    ]

    found = audited(packed(tmp_path, images, labels))

    assert alarms(found) == {"image size"}
    assert found.sentence.startswith("Image size alone reaches an AUROC of 1.000: ")


def test_images_that_look_alike_with_different_labels_are_listed_once(tmp_path):
    squares, labels = digits(3, 7, seed=3, each=20)
    squares[labels == 1] = np.where(np.arange(20)[:, None, None] == 4, squares[0], squares[labels == 1])

    found = audited(packed(tmp_path, squares, labels))
    write_page(tmp_path / "page.html", "<script>", found, ("a", "b"))

    assert "<script>" not in (tmp_path / "page.html").read_text()
    assert [(pair.first_label, pair.second_label, pair.bits) for pair in found.contradictions] == [
        ("class 0", "class 1", 0)
    ]
    assert {pair.first.split()[0] for pair in found.contradictions} <= {"train", "valid", "test"}


def test_images_of_a_group_are_never_in_two_folds():
    labels = np.array([0, 1] * 30)
    groups = [f"patient {number // 4}" for number in range(60)]

    folds = make_folds(labels, groups)

    assert len(folds) == 5
    assert sorted(np.concatenate([score for _, score in folds]).tolist()) == list(range(60))
    for fit, score in folds:
        assert not {groups[row] for row in fit} & {groups[row] for row in score}


def test_features_without_information_score_about_chance():
    labels = np.array([0, 1] * 100)
    noise = np.random.default_rng(0).normal(size=(200, 20)).astype(np.float32)

    scores = classifier_scores(noise, labels, make_folds(labels, [""] * 200), 2)

    assert 0.35 < roc_auc_score(labels, scores[:, 1]) < 0.65


def test_a_class_of_one_group_cannot_be_audited(tmp_path):
    squares, labels = digits(3, 7, seed=4, each=6)
    location = packed(tmp_path, squares, labels)
    index = read_index(location)

    with pytest.raises(SpecError, match="has images of a single group; an audit needs at least two groups in each"):
        audit(location, index, image_size=SIDE, max_images=1, processes=1)


def test_classes_that_no_fold_can_score_are_refused_not_given_a_figure():
    labels = np.array([0] * 12 + [1] * 2)
    groups = [f"{number}" for number in range(12)] + ["a", "b"]
    refused = []

    for seed in range(40):
        order = np.random.default_rng(seed).permutation(len(labels))
        try:
            folds = make_folds(labels[order], [groups[number] for number in order])
        except ValueError as error:
            refused.append(str(error))
        else:
            assert len(np.unique(np.concatenate([labels[order][score] for _, score in folds]))) == 2

    assert set(refused) <= {"all images of a class are in one fold; an audit needs more groups in each class"}


def test_a_sample_without_an_image_of_a_class_is_refused_with_the_cure(tmp_path):
    squares, labels = digits(3, 7, seed=4, each=40)
    location = packed(tmp_path, squares[:43], labels[:43])  # three of the second class

    with pytest.raises(SpecError, match="none of the 4 images that were read is of class class 1; use a larger --max"):
        audit(location, read_index(location), image_size=SIDE, max_images=4, processes=1)


def request_on_stdin(monkeypatch, location, *, storage, html=None, predictions=None):
    """Give the process that audits its request."""
    request = {"shards": str(location), "html": html, "storage": str(storage), "cache_bytes": 10**9}
    request |= {"predictions": predictions}
    request |= {"image_size": SIDE, "processes": 1}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request) + "\n"))


def test_a_file_that_the_system_cannot_read_is_one_line_without_an_error_number(
    tmp_path, digits_shards, monkeypatch, capsys
):
    def unreadable(*_args, **_options):
        raise OSError(errno.EIO, "Input/output error", "/data/train-00000.tar")

    monkeypatch.setattr(audit_process, "audit", unreadable)
    request_on_stdin(monkeypatch, digits_shards, storage=tmp_path)

    with pytest.raises(SystemExit):
        audit_process.main()

    expected = "/data/train-00000.tar cannot be read (Input/output error); check the path, its permissions and its disk"
    assert json.loads(capsys.readouterr().out) == {"error": expected}


def scored_audit(labels, checks):
    """An audit whose checks gave the images these scores of the second class."""
    samples = np.arange(len(labels), dtype=np.uint8)[:, None] + np.ones((len(labels), 16), dtype=np.uint8)
    scores = {name: np.stack([1 - one, one], axis=1) for name, one in checks.items()}
    found = AuditScores(samples=samples, labels=labels, scores=scores)
    checks = tuple(
        Check(name=name, explanation="x", auroc=0.6, low=0.5, high=0.7, worst_class="b", worst_auroc=0.6, alarm=False)
        for name in checks
    )
    return Audit(checks=checks, contradictions=(), images=24, total=24, sentence="No alarm.", scores=found)


def test_an_audit_compares_a_model_with_each_check_on_the_same_images(tmp_path, digits_shards, monkeypatch, capsys):
    model = predictions_of(0, "test", "w" * 64)
    weak = np.linspace(0, 1, 24)
    found = scored_audit(model.labels, {"rim": weak, "size": np.zeros(24)})
    monkeypatch.setattr(audit_process, "audit", lambda *_args, **_options: found)
    model.write(tmp_path / "p.safetensors", lease_in(tmp_path))
    page = tmp_path / "a.html"
    request_on_stdin(
        monkeypatch, digits_shards, storage=tmp_path, html=str(page), predictions=str(tmp_path / "p.safetensors")
    )

    audit_process.main()

    beside = json.loads(capsys.readouterr().out)["audit"]["model"]
    rim = beside["differences"]["rim"]
    hits = model.labels == 0
    assert (beside["split"], beside["classes"], [*beside["differences"]]) == ("test", ["covid", "normal"], ["rim"])
    assert rim["model"] == pytest.approx(roc_auc_score(hits, model.probabilities[:, 0]))
    assert rim["check"] == pytest.approx(roc_auc_score(hits, 1 - weak))
    assert rim["interval"][0] < rim["difference"] == pytest.approx(rim["model"] - rim["check"])
    assert "images of the test split that both have scored" in page.read_text()


@pytest.mark.parametrize("unwritable", ["storage", "html"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, digits_shards, monkeypatch, capsys, unwritable):
    found = Audit(checks=(), contradictions=(), images=0, total=0, sentence="")
    monkeypatch.setattr(audit_process, "audit", lambda *_args, **_options: found)
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "below")
    request_on_stdin(monkeypatch, digits_shards, **{"storage": str(tmp_path), unwritable: below})

    with pytest.raises(SystemExit):
        audit_process.main()

    expected = f"{below} cannot be written (Not a directory); check the path and its free space"
    assert json.loads(capsys.readouterr().out) == {"error": expected}


@pytest.mark.parametrize(("area", "percent"), [(0.5, 0), (1, 100), (0.75, 50), (0.3, 0)])
def test_an_area_has_its_place_on_the_scale_from_chance_to_one(area, percent):
    assert area_percent(area) == percent


def test_the_report_shows_the_audit_beside_the_model_or_says_how_to_make_one():
    data = report_data()
    check = {"name": "image size", "explanation": "x", "auroc": 0.95, "low": 0.9, "high": 0.99, "alarm": True}
    kept = {"checks": [check], "sentence": "Image size alone reaches an AUROC of 0.950.", "images": 60, "total": 60}

    page, without = render(replace(data, audit=kept)), render(data)

    assert "Image size alone reaches an AUROC of 0.950. This model reaches" in page
    assert "0.900 to 0.990" in page
    assert "nightshift shards audit" in without


def test_the_report_says_which_command_makes_an_outdated_audit_anew():
    data = report_data()
    of_spaces = replace(data, spec={**data.spec, "shards": "my shards"}, has_outdated_audit=True)

    page = " ".join(html.unescape(render(of_spaces)).split())

    assert "the stored audit is of another version of the checks" in page
    assert "nightshift shards audit 'my shards'" in page
    assert "There is no audit." not in page
