import contextlib
import hashlib
import re
import shutil
import ssl
import subprocess

import pytest
import yaml
from ray._private.gcs_utils import cleanup_redis_storage
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from jobs.queue.embedded_redis import server_program
from tests.k8s_manifests import K8S
from tests.k8s_namespaces import secrets_made
from tests.k8s_policies import SECRETS
from tests.k8s_schemas import complaints_of_schema
from tests.stack import eventually, free_port

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is not installed; it draws the secrets"
)


@pytest.mark.parametrize("options", [(), ("--tls",)])
def test_the_secrets_are_those_that_the_manifests_name(options):
    printed = subprocess.run(["sh", K8S / "secrets.sh", *options], capture_output=True, text=True, check=True).stdout
    manifests = [manifest for manifest in yaml.safe_load_all(printed) if manifest]

    assert [text for manifest in manifests for text in complaints_of_schema(manifest)] == []
    assert {m["metadata"]["name"]: set(m["stringData"]) for m in manifests} == {
        name: keys for name, keys in SECRETS.items() if keys and (name != "redis-tls" or options)
    }


def test_every_call_generates_different_secrets():
    first, second = secrets_made(), secrets_made()

    assert first["ray-token"]["auth_token"] != second["ray-token"]["auth_token"]
    assert first["redis"]["url"] != second["redis"]["url"]
    assert len(first["ray-token"]["auth_token"]) == 64


def test_redis_gets_only_the_hash_of_the_password_in_the_url():
    redis = secrets_made()["redis"]
    password = re.fullmatch(r"redis://nightshift:([0-9a-f]{64})@redis:6379/0", redis["url"])

    assert password
    assert password[1] not in redis["users.acl"]
    assert f"user nightshift on #{hashlib.sha256(password[1].encode()).hexdigest()} " in redis["users.acl"]
    assert redis["users.acl"].startswith("user default off\n")


def test_the_certificate_is_signed_by_the_authority_and_names_every_address_of_redis(tmp_path):
    tls = secrets_made("--tls")["redis-tls"]
    for name, text in tls.items():
        (tmp_path / name).write_text(text)
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname"]

    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    for host in ("redis", "redis.nightshift.svc", "redis.nightshift.svc.cluster.local"):
        command = [*verify, host, "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "tls.crt")]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, host
    other = [*verify, "elsewhere", "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "tls.crt")]
    assert subprocess.run(other, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--ssl"], "usage:"),
        (["--only"], "usage:"),
        (["--only", "rediss"], "usage:"),
        (["--only", "redis-tls"], "--only redis-tls needs --tls; add it"),
        (["--namespace", "Team A"], "--namespace Team A is not a name of a namespace"),
        (["--namespace", ""], "--namespace  is not a name of a namespace"),
    ],
)
def test_an_invalid_option_is_wrong_usage_and_prints_no_secret(options, line):
    done = subprocess.run(["sh", K8S / "secrets.sh", *options], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)


@pytest.mark.parametrize("only", ["ray-token", "redis", "webhook", "dashboard", "redis-tls"])
def test_one_secret_can_be_replaced_without_the_others(only):
    everything, one_secret = secrets_made("--tls"), secrets_made("--tls", "--only", only)

    assert one_secret.keys() == {only}
    assert one_secret[only].keys() == everything[only].keys()
    assert one_secret[only] != everything[only]


def test_no_secret_contains_a_value_of_another():
    secrets = secrets_made()
    values = [(name, value) for name, data in secrets.items() for value in data.values() if len(value) >= 24]

    shared = [(n, other) for n, value in values for other, data in secrets.items() if other != n and value in str(data)]

    assert len(values) > 6
    assert shared == []


def test_all_secrets_and_addresses_are_of_the_named_namespace(tmp_path):
    command = ["sh", K8S / "secrets.sh", "--namespace", "team-a", "--tls"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    manifests = {m["metadata"]["name"]: m for m in yaml.safe_load_all(printed) if m}
    certificate = tmp_path / "tls.crt"
    certificate.write_text(manifests["redis-tls"]["stringData"]["tls.crt"])
    names = subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert {m["metadata"]["namespace"] for m in manifests.values()} == {"team-a"}
    assert manifests["redis"]["stringData"]["scaler-address"] == "redis.team-a.svc:6379"
    assert "DNS:redis.team-a.svc," in names


def test_no_password_stands_in_the_arguments_of_a_program():
    script = (K8S / "secrets.sh").read_text()
    programs = re.findall(r"\b(?:openssl|cut|sed|mktemp)\b[^|)\n]*", script)

    assert programs
    assert not [line for line in programs if re.search(r"\$(password|scaler|viewer|token|key)\b", line)]


def test_ray_may_only_touch_the_keys_of_its_own_state(tmp_path):
    secrets = secrets_made()["redis"]
    (tmp_path / "users.acl").write_text(secrets["users.acl"])
    with redis_with(tmp_path / "users.acl", tmp_path) as port:
        ray = Redis(port=port, username="ray", password=secrets["ray-password"])
        ray.hset("RAYuid@KV", "key", "value")
        for forbidden in (
            ("HSET", "rq:x", "key", "value"),
            ("GET", "nightshift:x"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
        ):
            with pytest.raises(NoPermissionError):
                ray.execute_command(*forbidden)

        # What the pod runs that KubeRay starts when it deletes the cluster.
        removed = cleanup_redis_storage(
            host="127.0.0.1",
            port=port,
            username="ray",
            password=secrets["ray-password"],
            use_ssl=False,
            storage_namespace="uid",
        )

        assert removed
        assert ray.hgetall("RAYuid@KV") == {}


@contextlib.contextmanager
def redis_with(acl, folder):
    """Run a Redis with these users and yield its port."""
    port = free_port()
    command = [server_program(), "--port", str(port), "--dir", folder, "--save", "", "--aclfile", acl]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        assert eventually(lambda: pings(port))
        yield port
    finally:
        process.kill()
        process.wait()


def pings(port):
    try:
        return Redis(port=port, username="probe", password="probe").ping()
    except RedisConnectionError:
        return False
