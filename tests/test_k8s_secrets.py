import hashlib
import re
import shutil
import ssl
import subprocess

import pytest
import yaml

from tests.k8s_manifests import K8S
from tests.k8s_namespaces import secrets_made
from tests.k8s_policies import SECRETS
from tests.k8s_schemas import complaints_of_schema

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is not installed; it draws the secrets"
)


@pytest.mark.parametrize("options", [(), ("--tls",)])
def test_the_secrets_are_those_that_the_manifests_name(options):
    printed = subprocess.run(["sh", K8S / "secrets.sh", *options], capture_output=True, text=True, check=True).stdout
    manifests = list(yaml.safe_load_all(printed))

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


def test_an_unknown_option_is_wrong_usage_and_prints_no_secret():
    done = subprocess.run(["sh", K8S / "secrets.sh", "--ssl"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage:")


def test_no_password_stands_in_the_arguments_of_a_program():
    script = (K8S / "secrets.sh").read_text()
    programs = re.findall(r"\b(?:openssl|cut|sed|mktemp)\b[^|)\n]*", script)

    assert programs
    assert not [line for line in programs if re.search(r"\$(password|scaler|viewer|token|sight)", line)]
