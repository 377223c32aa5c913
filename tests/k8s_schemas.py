"""Strict schemas: an unknown field is an error; it is not ignored."""

import functools
import json
import warnings
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s_manifests import ROOT, Manifest

KUBERNETES_VERSION = "1.33"  # the version that the tests target; kubernetes-validate contains the schemas
CRDS = ROOT.parent / "shared" / "k8s-schemas"
UNPUBLISHED = {"keda.sh", "kueue.x-k8s.io", "monitoring.coreos.com"}  # groups whose schemas the tests do not have

needs_kuberay_schemas = pytest.mark.skipif(
    not CRDS.is_dir(), reason="KubeRay's CRDs are not at ../shared/k8s-schemas; RayCluster and RayJob go unchecked"
)


def group_of(manifest: Manifest) -> str:
    """Return the API group, "" for the core one."""
    return str(manifest["apiVersion"]).rpartition("/")[0]


def complaints_of_schema(manifest: Manifest) -> list[str]:
    """Return the errors of a manifest under its strict schema."""
    return list(_complaints(json.dumps(manifest, sort_keys=True)))


@functools.cache  # most manifests are the same in most overlays
def _complaints(text: str) -> tuple[str, ...]:
    manifest = json.loads(text)
    label = f"{manifest['kind']} {manifest['metadata']['name']}"
    if group_of(manifest) == "ray.io":
        validator = jsonschema.Draft202012Validator(kuberay_schema(manifest["kind"]))
        return tuple(f"{label}: {error.json_path}: {error.message[:200]}" for error in validator.iter_errors(manifest))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kubernetes-validate falls back to the nearest version with a warning
            kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{label}: {error.message[:200]}",)
    return ()


@functools.cache
def kuberay_schema(kind: str) -> Manifest:
    """Return the CRD's schema of `ray.io/v1`, which rejects unknown fields."""
    return crd_schema(CRDS / f"ray.io_{kind.lower()}s.yaml", "v1")


def crd_schema(file: Path, version: str) -> Manifest:
    """Return the strict JSON schema of one version of a CRD file."""
    crd = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
    schema = next(v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version)
    schema["properties"]["metadata"] = {"type": "object"}
    return _strict(schema)


def _strict(schema: Manifest) -> Manifest:
    """Reject unknown fields in every object, and convert int-or-string and nullable to JSON Schema."""
    closed = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("format", "default")
    }
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    if closed.pop("nullable", False):
        closed["type"] = [closed["type"], "null"]
    if "items" in schema:
        closed["items"] = _strict(schema["items"])
    if "properties" in schema:
        closed["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        closed["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _strict(schema["additionalProperties"])
    return closed
