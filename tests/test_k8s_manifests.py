"""The manifests as people write them."""

import re
from pathlib import Path

from tests.k8s_manifests import K8S


def manifest_files() -> list[Path]:
    """Return the manifests that people write; those of the chart are made of them."""
    return [file for file in K8S.rglob("*.yaml") if K8S / "chart" not in file.parents]


def test_every_manifest_says_in_a_comment_why_it_exists():
    files = [file for file in manifest_files() if file.name != "kustomization.yaml"]
    parts = [(file, part) for file in files for part in re.split(r"^---\n", file.read_text(), flags=re.MULTILINE)]
    parts += [(file, file.read_text()) for file in K8S.rglob("kustomization.yaml")]
    bare = [str(file.relative_to(K8S)) for file, part in parts if not part.startswith("#") and "kind:" in part]

    assert bare == []


def test_image_tags_are_set_in_one_place():
    elsewhere = [file for file in manifest_files() if "newTag" in file.read_text()]
    tagged = [file for file in manifest_files() if re.search(r"image: \S+:[\w.]+", file.read_text())]

    assert [str(file.relative_to(K8S)) for file in elsewhere] == ["images/kustomization.yaml"]
    assert tagged == []
