"""Write the Helm chart `k8s/chart` from the kustomize manifests: `make chart`.

The chart is no second source. kubectl renders the overlays with many choices of components; the templates are what
these manifests share, with a condition where they differ. `k8s/chart/sources.sha256` is the digest of the files that
the chart was made of, and of the templates. A test compares it, so that a change of a manifest without a new chart is
detected, and so is an edit of a template by hand.
"""

import hashlib
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from k8s.chart_values import COMPONENTS, CONDITIONS, IMAGES, NAMESPACE, SENTINELS, SIZES, helpers, overridden
from k8s.variants import MISSING, Choice, Node, Writer, merged, value_of

K8S = Path(__file__).resolve().parent
CHART = K8S / "chart"
SOURCES = ("base", "components", "overlays", "images", "make_chart.py", "chart_values.py", "variants.py")
# In the order in which an overlay lists them. The first group changes pods that others define; the second adds objects.
CHANGING = ("tls", "s3", "airgap", "mig", "time-slicing", "kueue", "rayjobs", "rdma", "openshift")
ORDER = tuple(COMPONENTS)
ADDING = ("keda", "dashboard", "ingress", "prometheus", "dcgm", "quota")
SWITCHES = (*SIZES, *ORDER)
OF_GPUS = {"mig", "time-slicing", "rdma"}
HEADER = "# Written by `make chart` from k8s/base, components and overlays: change those.\n"
HASHED = re.compile(r"^(.+)-[2456789bcdfghkmt]{10}$")  # the letters of kustomize's hashes
Manifests = dict[tuple[str, str], Any]


def digest() -> str:
    """Return the sha256 of the files that the chart is made of, and of the templates that were made of them."""
    found = hashlib.sha256()
    for name in SOURCES:
        place = K8S / name
        files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
        for file in files:
            found.update(f"{file.relative_to(K8S)}\0".encode() + file.read_bytes() + b"\0")
    for file in sorted((CHART / "templates").iterdir()):
        if (text := file.read_text()).startswith(HEADER):
            found.update(f"{file.relative_to(K8S)}\0{text}\0".encode())
    return found.hexdigest()


def is_possible(choice: Choice) -> bool:
    """Whether the components of a choice go together; the chart refuses the others."""
    return not (
        {"mig", "time-slicing"} <= choice
        or ("kind" in choice and choice & OF_GPUS)
        or ("rdma" in choice and ("gpu-large" not in choice or "rayjobs" in choice))
        or ("ingress" in choice and "dashboard" not in choice)
    )


def choices() -> list[Choice]:
    """Return the choices to learn from: each component alone, pairs of those that change pods, and some at random."""
    small = frozenset({"gpu-small"})
    alone = [small, *(small | {name} for name in ORDER), *(small | {name, "dashboard"} for name in ADDING)]
    pairs = [small | {*pair, *ADDING} for pair in itertools.combinations(CHANGING, 2)]
    sizes = [
        frozenset({size, *extra, *more}) for size in SIZES for extra in [(), *zip(CHANGING)] for more in ((), ADDING)
    ]
    return [c for c in dict.fromkeys([*alone, *pairs, *sizes, *random_choices(20, seed=0)]) if is_possible(c)]


def random_choices(number: int, *, seed: int) -> list[Choice]:
    """Return possible choices, drawn at random."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    found: list[Choice] = []
    while len(found) < number:
        choice = frozenset({draw.choice(SIZES), *(name for name in ORDER if draw.random() < 0.5)})  # noqa: PLR2004
        if is_possible(choice):
            found.append(choice)
    return found


def rendered(choice: Choice, patch: str = "") -> Manifests:
    """Return the manifests of a choice, with sentinels for the namespace and the images, and ConfigMaps without a hash.

    Args:
        choice: A size and components.
        patch: More lines of the overlay of a site.
    """
    (size,) = choice & set(SIZES)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("base", "components", "images", "overlays"):
            shutil.copytree(K8S / name, tree / name)
        file = tree / "overlays" / size / "kustomization.yaml"
        listed = "".join(f"  - ../../components/{name}\n" for name in ORDER if name in choice)
        file.write_text(file.read_text().replace("  - ../../images\n", f"{listed}  - ../../images\n"))
        site = tree / "overlays" / "site" / "kustomization.yaml"
        site.parent.mkdir()
        site.write_text(_site(size) + patch)
        command = ["kubectl", "kustomize", str(site.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"kubectl kustomize failed for {sorted(choice)}: {done.stderr}")
    return manifests_of(done.stdout)


def manifests_of(text: str) -> Manifests:
    """Return manifests by kind and name; names of ConfigMaps, and references to them, lose their hash."""
    found = [manifest for manifest in yaml.load_all(text, Loader=yaml.CSafeLoader) if manifest]
    names = [m["metadata"]["name"] for m in found if m["kind"] == "ConfigMap"]
    for hashed in (name for name in names if HASHED.match(name)):
        text = text.replace(hashed, HASHED.sub(r"\1", hashed))
    again = [manifest for manifest in yaml.load_all(text, Loader=yaml.CSafeLoader) if manifest]
    return {(m["kind"], m["metadata"]["name"]): m for m in again if not is_of_the_cluster(m)}


def is_of_the_cluster(manifest: Any) -> bool:
    """Whether Helm cannot own a manifest: the release's namespace, the service account that Kubernetes makes."""
    return manifest["kind"] in ("Namespace", "ServiceAccount")


def _site(size: str) -> str:
    images = [
        {"name": name, "newName": f"{key.upper()}-IMAGE", "newTag": f"{key.upper()}-TAG"}
        for key, name in IMAGES.items()
    ]
    site = {"kind": "Kustomization", "namespace": NAMESPACE, "resources": [f"../{size}"], "images": images}
    return str(yaml.safe_dump(site))


def trees(variants: Sequence[tuple[Choice, Manifests]]) -> dict[tuple[str, str], Node]:
    """Return the merged tree of each object."""
    keys = list(dict.fromkeys(key for _, manifests in variants for key in manifests))
    return {key: merged([(c, m.get(key, MISSING)) for c, m in variants], SWITCHES) for key in keys}


def refuse_differences(found: dict[tuple[str, str], Node], variants: Sequence[tuple[Choice, Manifests]]) -> None:
    """End if the trees do not give a choice's manifests."""
    for choice, manifests in variants:
        made = {key: value for key, tree in found.items() if (value := value_of(tree, choice)) is not MISSING}
        for key in made.keys() | manifests.keys():
            if made.get(key) != manifests.get(key):
                raise SystemExit(f"the chart differs from kustomize for {sorted(choice)}: {key}")


def write(found: dict[tuple[str, str], Node]) -> None:
    """Write the chart."""
    for old in (CHART / "templates").iterdir():
        if old.read_text().startswith(HEADER):
            old.unlink()
    writer = Writer(CONDITIONS, SENTINELS)
    texts: dict[str, list[str]] = {}
    for (kind, name), tree in sorted(found.items()):
        lines = list(writer.lines(overridden(kind, name, tree), "", 0))
        texts.setdefault(_file(kind, name), []).append("\n".join(["---", *lines, ""]))
    for file, documents in texts.items():
        (CHART / "templates" / file).write_text(HEADER + "".join(documents))
    (CHART / "templates" / "_helpers.tpl").write_text(HEADER + helpers(found["RayCluster", "ray"]))
    (CHART / "sources.sha256").write_text(f"{digest()}\n")


def _file(kind: str, name: str) -> str:
    if kind == "ConfigMap":
        return "dashboards.yaml" if name.startswith("grafana-") else f"config-{name}.yaml"
    return f"{kind.lower()}.yaml"


def main() -> None:
    """Render, merge, compare, write."""
    learned, others = choices(), random_choices(8, seed=1)
    with ThreadPoolExecutor(2) as pool:
        manifests = list(pool.map(rendered, [*learned, *others]))
    variants = list(zip([*learned, *others], manifests, strict=True))
    found = trees(variants[: len(learned)])
    refuse_differences(found, variants)
    write(found)
    sys.stdout.write(f"{CHART}: {len(found)} objects, compared for {len(variants)} choices of components\n")


if __name__ == "__main__":
    main()
