"""The Linux features that emulate a pod: namespaces, an overlay root file system, veth pairs, a firewall."""

import ctypes
import functools
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from tests.k8s_manifests import K8S, ROOT

FOLDERS = sorted({ROOT, Path(sys.prefix), Path(sys.base_prefix)})  # the content of the image
NEEDED = ("unshare", "nsenter", "setpriv", "chroot", "mount", "ip", "nft", "openssl", "kubectl")
PR_SET_PDEATHSIG = 1


@functools.cache
def why_not_here() -> str | None:
    """Return why this machine cannot run pods, None if it can."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed; pods need them"
    probe = (
        "mount --make-rprivate / && mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w /mnt/r && nft add table inet probe"
        " && mount -t overlay none -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w,metacopy=on /mnt/r"
    )
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"namespaces, overlays or nftables not permitted: {done.stderr[:80]}"


needs_pods = pytest.mark.skipif(why_not_here() is not None, reason=str(why_not_here()))


def held(
    command: Sequence[str], output: int = subprocess.DEVNULL, standard_input: int = subprocess.DEVNULL
) -> "subprocess.Popen[bytes]":
    """Start a process that ends when this process ends, even if this one is killed."""
    library = ctypes.CDLL(None)

    def die_with_parent() -> None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        command, stdin=standard_input, stdout=output, stderr=output, start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads run before exec
    )  # fmt: skip


def in_network(pid: int, script: str, standard_input: str | None = None) -> None:
    """Run a shell line as root in another process's network namespace."""
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "sh", "-euc", script]
    done = subprocess.run(command, input=standard_input, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stderr}"


def root_lines(root: str) -> Iterator[str]:
    """Yield the shell lines that mount an overlay of this machine's root at `root`, with our folders in it.

    Writes go to memory. All users can read the folders, as in an image, whatever the permissions of the checkout:
    missing read permissions are added in the overlay, where metacopy stores only the mode of a file.
    """
    scratch = f"{root}.scratch"
    yield f"mount --make-rprivate /; mkdir -p {root} {scratch}; mount -t tmpfs tmpfs {scratch}"
    yield _overlay("/", root, f"{scratch}/root")
    yield f"mount -t proc proc {root}/proc; mount --rbind /dev {root}/dev; mount --rbind /sys {root}/sys"
    for number, folder in enumerate(FOLDERS):
        place = f"{root}{folder}"
        yield f"mkdir -p {place}; {_overlay(str(folder), place, f'{scratch}/{number}')}"
        yield f"find {place} -xdev ! -type l ! -perm -o=r -exec chmod o+rX {{}} +; mount -o remount,ro {place}"
        yield from (f"chmod o+rx {root}{parent}" for parent in reversed(folder.parents) if not _is_within(parent))
    yield f"mkdir -p {root}/opt/image"
    for name, program in programs_of_images().items():
        yield f"cp {program} {root}/opt/image/{name}; chmod 755 {root}/opt/image/{name}"


def _overlay(lower: str, place: str, scratch: str) -> str:
    layers = f"lowerdir={lower},upperdir={scratch}/u,workdir={scratch}/w,metacopy=on"
    return f"mkdir -p {scratch}/u {scratch}/w; mount -t overlay overlay -o {layers} {place}"


def _is_within(parent: Path) -> bool:
    return any(parent == folder or folder in parent.parents for folder in FOLDERS)


def programs_of_images() -> dict[str, Path]:
    """Return the programs of the Redis image that this machine has; prefer a server with TLS."""
    from jobs.queue.embedded_redis import server_program  # noqa: PLC0415 - only where pods can run

    server = shutil.which("valkey-server") or shutil.which("redis-server") or str(server_program())
    client = shutil.which("valkey-cli") or shutil.which("redis-cli")
    return {"valkey-server": Path(server)} | ({"valkey-cli": Path(client)} if client else {})


def quoted(words: Sequence[str]) -> str:
    """Return words as a quoted shell line."""
    return " ".join(shlex.quote(word) for word in words)


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, for ten minutes at most, so that a busy machine does not fail a test.

    Raises:
        AssertionError: It did not hold in time.
    """
    until = time.monotonic() + 600
    while not is_so():
        assert time.monotonic() < until, f"not within ten minutes: {what}"
        time.sleep(0.1)


def redis_has_tls() -> bool:
    """Whether the Redis server of this machine was built with TLS; the one from the wheel is not."""
    return b"SSL_CTX_" in programs_of_images()["valkey-server"].read_bytes()


def secrets_made(*options: str) -> dict[str, dict[str, str]]:
    """Return the Secrets that `k8s/secrets.sh` prints, as name -> key -> value."""
    if shutil.which("openssl") is None:
        pytest.skip("k8s/secrets.sh needs openssl")
    done = subprocess.run(["sh", str(K8S / "secrets.sh"), *options], capture_output=True, text=True, check=True)
    return {secret["metadata"]["name"]: secret["stringData"] for secret in yaml.safe_load_all(done.stdout) if secret}


def image_environment() -> dict[str, str]:
    """Return the variables of the Dockerfile's last ENV, with this machine's PATH."""
    text = (K8S / "Dockerfile").read_text().replace("\\\n", " ")
    last = [line for line in text.splitlines() if line.startswith("ENV ")][-1]
    path = f"/opt/image:{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
    return {**dict(re.findall(r"(\w+)=(\S+)", last)), "PATH": path}
