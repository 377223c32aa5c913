import re
import tomllib

import pytest

from cluster.process_env import OPENMP
from tests.k8s_manifests import K8S, ROOT

DOCKERFILE = (K8S / "Dockerfile").read_text()
RDMA_DRIVERS = (
    "RUN apt-get update && apt-get install -y --no-install-recommends libibverbs1 ibverbs-providers"
    " && rm -rf /var/lib/apt/lists/*\n"
)
RUN_TIME = "FROM ${PYTHON_IMAGE}\n"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDLESS = {"dev", "docs"}  # the image is neither for development nor for building the guide
EXTRAS = PROJECT["optional-dependencies"].keys() - NEEDLESS


def complaints_of_image(text: str) -> list[str]:
    """Return what prevents a Dockerfile's image from running read-only under any user id."""
    found = []
    build, _, last = text.partition(RUN_TIME)
    if text.count("\nFROM ") < 2 or "COPY --from=build" not in last:
        found.append("it has one stage")
    users = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    if not users or not re.fullmatch(r"[1-9]\d*(:\d+)?", users[-1]):
        found.append("it runs as root, or as a name that Kubernetes cannot tell from root")
    if RDMA_DRIVERS not in last:
        found.append("NCCL uses TCP instead of InfiniBand")
    if re.search(r"\b(apt-get|gcc|make|uv|pip install)\b", last.replace(RDMA_DRIVERS, "")):
        found.append("it brings build tools to run time")
    if not re.search(r"rm -rf .*site-packages/pip", last):
        found.append("it keeps pip")
    if "--require-hashes --constraint requirements.lock" not in build:
        found.append("it installs what no hash holds")
    if re.search(r"--all-extras|--extra (dev|docs)\b", build):
        found.append("it installs the tools of development")
    found += [f"it cannot do what the extra {name} is for" for name in EXTRAS if f"--extra {name}" not in build]
    found += complaints_of_mirror(text, build)
    if not re.search(r"uv==\d", build):
        found.append("its installer is not pinned")
    if "UV_COMPILE_BYTECODE=1" not in build:
        found.append("a read-only container compiles all its code at every start")
    found += complaints_of_environment(last)
    if 'ENTRYPOINT ["nightshift"]' not in last:
        found.append("it does not start the command")
    return found


def complaints_of_environment(last: str) -> list[str]:
    """Return what the environment variables of the image that runs do not set."""
    found = []
    environment = dict(re.findall(r"([A-Z_]+)=(\S+)", last))
    if environment.get("HOME") != "/tmp" or not environment.get("USER"):
        found.append("an unknown user has no home and no name")
    if "compute" not in environment.get("NVIDIA_DRIVER_CAPABILITIES", ""):
        found.append("torch sees no GPU")
    if environment.get("GOMP_SPINCOUNT") != OPENMP["GOMP_SPINCOUNT"]:
        found.append("waiting threads of torch take the CPU from other pods")
    return found


def complaints_of_mirror(text: str, build: str) -> list[str]:
    """Return why packages do not come from the mirror that a build argument names, or a secret stays in the image."""
    found = []
    if re.search(r"https?://", re.sub(r"^#.*$", "", text, flags=re.MULTILINE)):
        found.append("it names a package mirror, which a build argument must name")
    if build.count("${UV_INDEX_URL:+") != len(re.findall(r"pip install (?!.*--no-deps)", build)):
        found.append("a package does not come from the mirror")
    if re.search(r"^(ARG|ENV) .*(PASSWORD|TOKEN|SECRET)", text, re.MULTILINE):
        found.append("a build argument, which the image's history keeps, holds a secret")
    return found


def test_the_image_supports_a_read_only_container_with_any_user_id():
    assert complaints_of_image(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("line", "worse"),
    [
        ("USER 1000:1000\n", ""),
        ("USER 1000:1000\n", "USER nightshift\n"),
        ("USER 1000:1000\n", "USER 0\n"),
        ("COPY --from=build", "COPY"),
        ("RUN rm -rf /usr/local/lib/python3.11/site-packages/pip*", "RUN true"),
        ("WORKDIR /tmp\n", "RUN apt-get install -y gcc\n"),
        (" ibverbs-providers", ""),
        ("--require-hashes ", ""),
        ("--extra s3", "--extra s3 --extra dev"),
        ("--extra s3", "--extra s3 --extra docs"),
        (" --extra onnx", ""),
        ("uv==0.13.9", "uv"),
        ("UV_COMPILE_BYTECODE=1 ", ""),
        ("ARG UV_INDEX_URL=\n", "ARG UV_INDEX_URL=https://mirror.example.org/simple\n"),
        ('${UV_INDEX_URL:+--default-index "$UV_INDEX_URL"} ', ""),
        ("ARG UV_INDEX_URL=\n", "ARG UV_INDEX_URL=\nARG MIRROR_PASSWORD\n"),
        ("HOME=/tmp USER=nightshift", "HOME=/root"),
        ("compute,utility", "utility"),
        (" GOMP_SPINCOUNT=3000", ""),
        ('ENTRYPOINT ["nightshift"]', 'ENTRYPOINT ["bash"]'),
    ],
)
def test_an_unsuitable_image_is_detected(line, worse):
    assert line in DOCKERFILE

    assert complaints_of_image(DOCKERFILE.replace(line, worse)) != []


def test_everything_that_the_image_copies_exists_and_is_not_ignored():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for words in copied for source in words.split()}
    allowed = {line[1:] for line in (K8S / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}

    assert all((ROOT / source).exists() for source in sources)
    assert sources == allowed


def test_every_package_of_the_project_is_in_the_image():
    packages = re.search(r"^packages = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert packages
    assert all(f"\nCOPY {name} {name}\n" in DOCKERFILE for name in re.findall(r'"(\w+)"', packages[1]))


def test_the_image_is_built_with_the_readme_and_the_license_that_the_package_names():
    assert f"COPY {' '.join((PROJECT['readme'], *PROJECT['license-files']))} ./\n" in DOCKERFILE


def test_the_image_has_every_module_of_the_project() -> None:
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["py-modules"]
    ignored = (K8S / "Dockerfile.dockerignore").read_text().splitlines()

    copied = {file for line in re.findall(r"^COPY (.+) \./$", DOCKERFILE, re.MULTILINE) for file in line.split()}

    assert {f"{module}.py" for module in modules} <= copied
    assert [module for module in modules if f"!{module}.py" not in ignored] == []
