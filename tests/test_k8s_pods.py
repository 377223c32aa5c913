"""The pods' own commands, mounts, users and network, on this machine; test_k8s_cluster.py adds Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s_manifests import one, pods, rendered
from tests.k8s_namespaces import needs_pods, programs_of_images, redis_has_tls, secrets_made, wait_until
from tests.k8s_sandbox import Node, RunningPod

pytestmark = [needs_pods, pytest.mark.slow]
PLAN = {"redis-0": "redis", "cli-0": "cli", "job-worker-0": "job-worker", "head-0": "ray-head", "gpu-0": "ray-worker"}
SERVICES = {"redis": "redis-0", "ray-head-svc": "head-0"}
LISTEN = """
import socketserver, sys, threading
class Silent(socketserver.BaseRequestHandler):
    def handle(self): pass
for port in map(int, sys.argv[1:]):
    server = socketserver.ThreadingTCPServer(("0.0.0.0", port), Silent)
    threading.Thread(target=server.serve_forever).start()
print("listening", flush=True)
"""
CONNECT = """
import concurrent.futures, socket, sys
def outcome(place):
    host, port = place.split(":")
    with socket.socket() as client:
        client.settimeout(2)
        return "reached" if client.connect_ex((host, int(port))) == 0 else "closed"
with concurrent.futures.ThreadPoolExecutor(16) as several:
    for place, how in zip(sys.argv[1:], several.map(outcome, sys.argv[1:])):
        print(place, how)
"""
ASK_REDIS = """
import os, sys, redis
from cluster.settings import Settings
here = Settings.read()
url = sys.argv[1]
options = {"ssl_ca_certs": str(here.redis_ca)} if url.startswith("rediss") and "ssl_ca" not in url else {}
client = redis.Redis.from_url(url, **options)
for line in sys.argv[2:]:
    try:
        client.execute_command(*line.split())
        print(line, "done")
    except redis.ResponseError as error:
        print(line, "refused", type(error).__name__)
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with Redis and the pod `cli`; it uses TLS if a Redis server with TLS is installed."""
    options = ["tls"] if redis_has_tls() else []
    manifests = rendered("kind", options)
    parts = {pod.labels["app.kubernetes.io/component"]: pod for pod in pods(manifests)}
    plan = {name: parts[part] for name, part in PLAN.items()}
    secrets = secrets_made(*(f"--{option}" for option in options))
    with Node(open_folder(tmp_path_factory), manifests, secrets, plan, SERVICES) as machine:
        redis = machine.start("redis-0")
        wait_until(lambda: is_ready(redis), "Redis is ready")
        machine.start("cli-0")
        yield machine


def open_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that the pods' user can reach."""
    folder = factory.mktemp("node")
    for place in (folder, *folder.parents):
        if place.stat().st_mode & 0o777 == 0o700:
            place.chmod(0o711)
    return folder


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_ready(redis: RunningPod) -> bool:
    if "valkey-cli" not in programs_of_images():
        return "Ready to accept connections" in redis.log
    return redis.exec(redis.container["readinessProbe"]["exec"]["command"]).returncode == 0


def started(node: Node, name: str) -> RunningPod:
    return next(pod for pod in node.running if pod.name == name)


def test_the_image_works_with_a_read_only_root_and_any_user_id(node):
    cli = started(node, "cli-0")
    writes = (
        "for place in / /etc /opt /home /usr /root /run; do touch $place/x 2>/dev/null && echo wrote $place; done; true"
    )
    heavy = (
        "import getpass, matplotlib.pyplot, ray, torch, torchvision, torch._inductor.config; print(getpass.getuser())"
    )

    assert cli.exec(["sh", "-c", writes]).stdout == ""
    assert cli.exec(["sh", "-c", "touch /tmp/x /storage/x && id -u"]).stdout == "1000650000\n"
    assert cli.exec(["nightshift", "--version"]).stdout.startswith("nightshift, version")
    assert cli.exec(["python", "-c", heavy]).stdout == "nightshift\n"
    assert "CapEff:\t0000000000000000" in cli.exec(["cat", "/proc/self/status"]).stdout


def test_doctor_finds_redis_and_the_storage_as_the_manifests_configure_them(node):
    answer = started(node, "cli-0").exec(["nightshift", "doctor"])

    lines = {line.split(":")[0]: line for line in answer.stdout.splitlines()}
    assert {"ok     storage", "ok     Redis", "ok     rename", "ok     locks", "FAULT  Ray"} <= lines.keys()


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("NIGHTSHIFT_STORAGE", "/opt/nothing", "NIGHTSHIFT_STORAGE"),
        ("NIGHTSHIFT_REDIS_URL", "redis://nightshift:wrong@redis:6379/0", "NIGHTSHIFT_REDIS_URL"),
        ("NIGHTSHIFT_REDIS_URL", "redis://redis.nowhere:6379/0", "NIGHTSHIFT_REDIS_URL"),
        ("NIGHTSHIFT_RAY_JOBS_URL", "http://head-0:1", "NIGHTSHIFT_RAY_JOBS_URL"),
    ],
)
def test_doctor_explains_each_wrong_setting_in_one_line(node, variable, value, word):
    answer = started(node, "cli-0").exec(["nightshift", "doctor"], **{variable: value})

    cures = [line for line in answer.stdout.splitlines() if line.strip().startswith("cure:")]
    assert answer.returncode == 1
    assert any(word in cure for cure in cures)
    assert "wrong" not in answer.stdout


def test_each_user_of_redis_may_do_its_own_work_and_no_more(node):
    cli, secret = started(node, "cli-0"), node.secrets["redis"]
    scheme, place = secret["url"].split("://")[0], "redis:6379/0"

    def ask(url: str, *lines: str) -> list[str]:
        return cli.exec(["python", "-c", ASK_REDIS, url, *lines]).stdout.splitlines()

    queue = "rq:queue:nightshift-high"
    scaler = f"{scheme}://scaler:{secret['scaler-password']}@{place}"
    work = [f"RPUSH {queue} x", "SET nightshift:bell 1", "INFO server", "CLIENT LIST"]
    assert ask(secret["url"], *work) == [f"{line} done" for line in work]
    beyond = ["SET other 1", "CONFIG GET dir", "FLUSHALL", "ACL LIST", "KEYS *", "DEBUG SLEEP 0"]
    assert all("refused" in line for line in ask(secret["url"], *beyond))
    assert ask(scaler, f"LLEN {queue}", f"EVAL return(redis.call('llen','{queue}')) 0", f"LPOP {queue}") == [
        f"LLEN {queue} done",
        f"EVAL return(redis.call('llen','{queue}')) 0 done",
        f"LPOP {queue} refused NoPermissionError",
    ]
    looks = ask(secret["viewer-url"], f"LRANGE {queue} 0 9", f"DEL {queue}", "KEYS *")
    assert ["refused" in line for line in looks] == [False, True, True]
    pings = ask(f"{scheme}://probe:probe@{place}", "PING", f"LLEN {queue}")
    assert ["refused" in line for line in pings] == [False, True]


def test_a_pod_reaches_only_what_the_network_policies_allow(node):
    """The firewall comes from the rendered NetworkPolicies: the test shows that they allow enough and not more."""
    python = ["python", "-c", LISTEN]
    for name, opened in (
        ("head-0", ["6379", "8265", "10001"]),
        ("gpu-0", ["20000", "8080"]),
        ("job-worker-0", ["9100"]),
    ):
        pod = node.start(name, [*python, *opened])
        wait_until(lambda pod=pod: "listening" in pod.log, f"{name} listens")
    places = ["redis:6379", "ray-head-svc:8265", "ray-head-svc:6379", "ray-head-svc:10001"]
    addresses = [f"{node.address('gpu-0')}:20000", f"{node.address('job-worker-0')}:9100"]

    def reached(name: str) -> set[str]:
        lines = started(node, name).exec(["python", "-c", CONNECT, *places, *addresses]).stdout.splitlines()
        assert len(lines) == len(places) + len(addresses)
        return {line.split(" ")[0] for line in lines if line.endswith("reached")}

    own = f"{node.address('job-worker-0')}:9100"
    assert reached("job-worker-0") == {"redis:6379", "ray-head-svc:8265", own}
    assert reached("cli-0") == {"redis:6379", "ray-head-svc:8265"}
    assert reached("gpu-0") == {"ray-head-svc:8265", "ray-head-svc:6379", "ray-head-svc:10001", addresses[0]}
    assert reached("head-0") == {"ray-head-svc:8265", "ray-head-svc:6379", "ray-head-svc:10001", addresses[0]}
    assert reached("redis-0") == {"redis:6379"}


def test_stopped_pods_leave_no_processes_or_mounts(tmp_path_factory):
    manifests = rendered("kind")
    plan = {"cli-0": next(pod for pod in pods(manifests) if pod.name == "cli")}
    with Node(open_folder(tmp_path_factory), manifests, secrets_made(), plan, {}) as node:
        cli = node.start("cli-0", ["sh", "-c", "sleep 1000 & sleep 1000 & wait"])
        wait_until(lambda: len(children_of(cli.first_process)) == 2, "two sleep")
        processes = [cli.first_process, *children_of(cli.first_process)]

    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "all have ended")
    assert node.switch.poll() is not None
    assert str(node.folder) not in Path("/proc/mounts").read_text()
    assert one(manifests, "Deployment", "cli")
