"""Run pods on this machine as the manifests describe them, each with its own network, mounts and processes.

A pod is a process that `unshare` starts in new namespaces. Its root is this machine's root, read-only; only the volumes
of the manifest can be written. It runs under a user id without an entry in the passwd file. Names and addresses are
those of the manifests (`redis`, `ray-head-svc`), and nftables allows the connections that the NetworkPolicies allow.
When the process that holds a pod ends, its processes, mounts and network are removed.

Not covered: the image, the scheduler, the autoscaler, limits of memory and CPU, real storage classes.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.k8s_manifests import Manifest, Pod, of_kind
from tests.k8s_namespaces import held, image_environment, in_network, quoted, root_lines, wait_until
from tests.k8s_wiring import allowed_ports

RANDOM_USER = 1_000_650_000  # in the range that OpenShift uses
SUBNET = "10.77.0"


@dataclass
class Node:
    """The node that runs the pods: a network bridge, the volumes they share, the Secrets.

    Attributes:
        folder: The folder of volumes and logs.
        manifests: The rendered manifests.
        secrets: Name -> key -> value.
        plan: Every pod that can be started, by its name here.
        services: Name of a Service -> its pod.
    """

    folder: Path
    manifests: list[Manifest]
    secrets: dict[str, dict[str, str]]
    plan: dict[str, Pod]
    services: dict[str, str]
    switch: "subprocess.Popen[bytes]" = field(init=False)
    umask: int = field(init=False)
    running: "list[RunningPod]" = field(default_factory=list)

    def __enter__(self) -> "Node":
        """Start the network bridge, with the umask of containers."""
        self.umask = os.umask(0o022)
        self.switch = held(["unshare", "--net", "sleep", "infinity"])
        _wait_for_own_network(self.switch.pid)
        in_network(
            self.switch.pid,
            f"ip link add bridge type bridge; ip addr add {SUBNET}.1/24 dev bridge; ip link set bridge up",
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all pods and the network bridge."""
        os.umask(self.umask)
        for pod in self.running:
            pod.kill()
        self.switch.kill()
        self.switch.wait()

    def address(self, name: str) -> str:
        """Return a pod's address."""
        return f"{SUBNET}.{10 + list(self.plan).index(name)}"

    def start(self, name: str, command: Sequence[str] | None = None, **more: str) -> "RunningPod":
        """Start a pod's first container, with its own command by default."""
        pod = RunningPod(self, self.plan[name], name)
        environment = {**self.environment(pod.container), **more}
        pod.begin(command or command_of(pod.container), environment)
        self.running.append(pod)
        return pod

    def move_service(self, service: str, name: str) -> None:
        """Let a Service lead to another pod, as when its pod is replaced."""
        self.services[service] = name
        for pod in self.running:
            pod.write_names()

    def environment(self, container: Manifest) -> dict[str, str]:
        """Return a container's environment: from the image, the ConfigMap, the container itself, and Secrets."""
        found = image_environment()
        for source in container.get("envFrom", []):
            secret = source.get("secretRef")
            found |= self.secrets.get(secret["name"], {}) if secret else self.config(source["configMapRef"]["name"])
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            value = self.secrets[reference["name"]][reference["key"]] if reference else variable["value"]
            found[variable["name"]] = value
        return found

    def config(self, name: str) -> dict[str, str]:
        """Return a ConfigMap's data."""
        found: dict[str, str] = next(
            m["data"] for m in of_kind(self.manifests, "ConfigMap") if m["metadata"]["name"] == name
        )
        return found

    def folder_of(self, pod: "RunningPod", volume: Manifest) -> Path:
        """Return the folder of this machine that is used as a volume, created with the pod's group."""
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        place = self.folder / "claims" / claim if claim else self.folder / "volumes" / pod.name / volume["name"]
        if not place.exists():
            group = pod.pod.spec["securityContext"]["fsGroup"]
            place.mkdir(parents=True)
            os.chown(place, 0, group)
            place.chmod(0o2775)
            for key, text in self._files(volume, pod.pod).items():
                (place / key).write_text(text)
                os.chown(place / key, 0, group)
                (place / key).chmod(0o440)
        return place

    def _files(self, volume: Manifest, pod: Pod) -> dict[str, str]:
        if config := volume.get("configMap"):
            return self.config(config["name"])
        if secret := volume.get("secret"):
            values = self.secrets[secret["secretName"]]
            items = secret.get("items", [{"key": key, "path": key} for key in values])
            return {item["path"]: values[item["key"]] for item in items}
        if fields := volume.get("downwardAPI"):
            paths = {item["path"]: item["fieldRef"]["fieldPath"] for item in fields["items"]}
            return {name: pod.annotations[path.split("'")[1]] for name, path in paths.items()}
        return {}


def command_of(container: Manifest) -> list[str]:
    """Return a container's command, or the image's entry point, and its arguments."""
    return [*container.get("command", ["nightshift"]), *container.get("args", [])]


@dataclass
class RunningPod:
    """One pod, with the process that keeps its namespaces."""

    node: Node
    pod: Pod
    name: str
    holder: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def container(self) -> Manifest:
        """Its first container."""
        found: Manifest = self.pod.spec["containers"][0]
        return found

    @property
    def log(self) -> str:
        """The output of its container so far."""
        return (self.node.folder / f"{self.name}.log").read_text(errors="replace")

    @property
    def root(self) -> str:
        """Its root folder, in its mount namespace."""
        return str(self.node.folder / "roots" / self.name)

    @property
    def names(self) -> Path:
        """The file that is its /etc/hosts, in place of the cluster's DNS."""
        return self.node.folder / f"{self.name}.hosts"

    def write_names(self) -> None:
        """Write the addresses of the Services and its own name."""
        found = {"localhost": "127.0.0.1", self.name: self.node.address(self.name)}
        found |= {service: self.node.address(pod) for service, pod in self.node.services.items()}
        self.names.write_text("".join(f"{address} {name}\n" for name, address in found.items()))

    def begin(self, command: Sequence[str], environment: dict[str, str]) -> None:
        """Set up its namespaces, then run the command in them."""
        script = self.node.folder / f"{self.name}.sh"
        script.touch(mode=0o600)
        steps = [*self._mounts(), "echo >&0; read -r _", self._enter(command, environment)]
        script.write_text("\n".join(steps))
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        here, there = socket.socketpair()
        with here:
            with there, (self.node.folder / f"{self.name}.log").open("ab") as log:
                self.holder = held(["unshare", *spaces, "sh", "-eu", str(script)], log.fileno(), there.fileno())
            self._connect()
            assert here.recv(1), f"{self.name} got no root: {self.log}"
            here.sendall(b"\n")

    def exec(self, command: Sequence[str], *, seconds: float = 600, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the pod, as `kubectl exec` and probes do."""
        pid = self.holder.pid
        files = {"net": "net", "mount": "mnt", "pid": "pid_for_children", "uts": "uts"}
        spaces = [f"--{space}=/proc/{pid}/ns/{file}" for space, file in files.items()]
        line = self._enter(command, {**self.node.environment(self.container), **more})
        order = ["nsenter", *spaces, "sh", "-euc", line]
        return subprocess.run(order, capture_output=True, text=True, timeout=seconds, check=False)

    @property
    def first_process(self) -> int:
        """The process id, on this machine, of the container's process 1."""
        return int(Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()[0])

    def terminate(self, seconds: float) -> int:
        """Send SIGTERM to the container's first process, as Kubernetes does, and return its exit code."""
        os.kill(self.first_process, signal.SIGTERM)
        return self.holder.wait(timeout=seconds)

    def kill(self) -> None:
        """Kill all its processes at once, as if its node were lost."""
        with contextlib.suppress(ProcessLookupError):
            self.holder.kill()
        self.holder.wait()

    def unmount(self, volume: str) -> None:
        """Unmount a volume, as when its share is away: an empty folder is in its place. Open files stay open."""
        self._in_mounts(f"umount --lazy {self._place(volume)}")

    def mount(self, volume: str) -> None:
        """Mount a volume again."""
        self._in_mounts(self._mount(self._mount_of(volume), self._volumes[volume]))

    def _in_mounts(self, script: str) -> None:
        order = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "sh", "-euc", script]
        done = subprocess.run(order, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"

    def _mount_of(self, volume: str) -> Manifest:
        return next(mount for mount in self.container["volumeMounts"] if mount["name"] == volume)

    def _place(self, volume: str) -> str:
        return f"{self.root}{self._mount_of(volume)['mountPath']}"

    @property
    def _volumes(self) -> dict[str, Manifest]:
        return {volume["name"]: volume for volume in self.pod.spec.get("volumes", [])}

    def _mounts(self) -> Iterator[str]:
        yield from root_lines(self.root)
        self.write_names()
        yield f"hostname {self.name}; mount --bind {self.names} {self.root}/etc/hosts"
        for mount in self.container["volumeMounts"]:
            yield self._mount(mount, self._volumes.get(mount["name"], {"name": mount["name"]}))
        yield f"mount -o remount,ro {self.root}"

    def _mount(self, mount: Manifest, volume: Manifest) -> str:
        place = f"{self.root}{mount['mountPath']}"
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            return f"mount -t tmpfs -o mode=1777,size={volume['emptyDir']['sizeLimit'].removesuffix('i')} tmpfs {place}"
        mode = "ro" if mount.get("readOnly") else "rw"
        source = self.node.folder_of(self, volume)
        return f"mkdir -p {place}; mount --bind {source} {place}; mount -o remount,bind,{mode} {place}"

    def _enter(self, command: Sequence[str], environment: dict[str, str]) -> str:
        context = self.pod.spec["securityContext"]
        who = f"--userspec={RANDOM_USER}:{context['runAsGroup']} --groups={context['fsGroup']}"
        # The parent-death signal is cleared by the change of user, so it is set again afterwards.
        locked = "setpriv --no-new-privs --pdeathsig KILL"
        values = quoted([f"{name}={value}" for name, value in environment.items()])
        return f"exec chroot {who} {self.root} env -i {values} {locked} env --chdir=/tmp {quoted(command)}"

    def _connect(self) -> None:
        """Set up the pod's veth pair, its firewall and its address, in this order."""
        number = self.node.address(self.name).rsplit(".", 1)[1]
        _wait_for_own_network(self.holder.pid)
        cable = f"ip link add p{number} type veth peer name eth0 netns {self.holder.pid}"
        in_network(self.node.switch.pid, f"{cable}; ip link set p{number} master bridge up")
        in_network(self.holder.pid, "ip link set lo up; nft -f -", self._firewall())
        address = self.node.address(self.name)
        in_network(
            self.holder.pid,
            f"ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default via {SUBNET}.1",
        )

    def _firewall(self) -> str:
        """Return the rules that a network plugin derives from the NetworkPolicies: stateful, deny by default."""
        lines = ["table inet pod {"]
        for direction, hook, side in (("Ingress", "input", "saddr"), ("Egress", "output", "daddr")):
            lines += [f"chain {hook} {{ type filter hook {hook} priority 0; policy drop;"]
            lines += ["ct state established,related accept", f"{'iif' if hook == 'input' else 'oif'} lo accept"]
            lines += [f"ip {side} {self.node.address(self.name)} accept"]
            for name, peer in self.node.plan.items():
                ports = allowed_ports(self.node.manifests, direction, self.pod, peer)
                if ports != set():
                    which = f"tcp dport {{ {', '.join(map(str, ports))} }}" if ports else "meta l4proto { tcp, udp }"
                    lines.append(f"ip {side} {self.node.address(name)} {which} accept")
            lines.append("}")
        return "\n".join([*lines, "}"])


def _wait_for_own_network(pid: int) -> None:
    own = Path("/proc/self/ns/net").readlink()
    wait_until(lambda: Path(f"/proc/{pid}/ns/net").readlink() != own, "a network of its own")
