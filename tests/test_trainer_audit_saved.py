"""A kept audit is read only if it is complete and of this version of the method."""

import json

import pytest

from tests.audited import CHECK
from trainer.audit.saved import METHOD, has_outdated_audit, read_audit, save_audit


def stored(**differs):
    """Return the file of an audit without checks."""
    return json.dumps({"method": METHOD, "checks": [], "sentence": "s", "images": 1, "total": 1} | differs)


@pytest.mark.parametrize("content", [
    None, "no json", "[]", "{}", stored(checks=7), stored(images="many"), stored(sentence=None),
    stored(checks=[{**CHECK, "auroc": float("nan")}]), stored(checks=[{**CHECK, "alarm": "no"}]),
    *(stored(checks=[{name: value for name, value in CHECK.items() if name != missing}]) for missing in CHECK),
])  # fmt: skip
def test_a_missing_or_damaged_audit_is_no_audit(tmp_path, content):
    if content is not None:
        (tmp_path / "audits").mkdir()
        (tmp_path / "audits" / "digest.json").write_text(content)

    assert read_audit(tmp_path, "digest") is None


def test_an_audit_that_is_complete_is_read(tmp_path):
    kept = stored(checks=[CHECK, {**CHECK, "low": None, "high": None}])
    (tmp_path / "audits").mkdir()
    (tmp_path / "audits" / "digest.json").write_text(kept)

    assert read_audit(tmp_path, "digest") == json.loads(kept)
    assert not has_outdated_audit(tmp_path, "digest")


@pytest.mark.parametrize("method", [1, METHOD + 1])
def test_an_audit_of_another_version_of_the_method_is_not_read_but_known_until_it_is_made_anew(tmp_path, method):
    of_other = {name: value for name, value in json.loads(stored(checks=[CHECK])).items() if name != "method"}
    if method > 1:  # version 1 wrote no number
        of_other["method"] = method
    (tmp_path / "audits").mkdir()
    (tmp_path / "audits" / "digest.json").write_text(json.dumps(of_other))

    before = read_audit(tmp_path, "digest"), has_outdated_audit(tmp_path, "digest")
    save_audit(tmp_path, "digest", {name: value for name, value in of_other.items() if name != "method"})
    after = read_audit(tmp_path, "digest"), has_outdated_audit(tmp_path, "digest")

    assert before == (None, True)
    assert after == (json.loads(stored(checks=[CHECK])), False)
