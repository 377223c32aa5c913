"""Locations of data sets that are not on this machine."""

import base64
import json
import os
import subprocess
import sys

import pytest

from data_shards.errors import SourceError
from data_shards.locations import local_folder
from tests.web_server import Request, web_server

READ = "import sys; from data_shards.locations import read_bytes; sys.stdout.buffer.write(read_bytes(sys.argv[1], 'f'))"


@pytest.mark.parametrize(
    "address",
    [
        "https://mira:hunter2@films.example/chest",
        "http://mira:hun@ter2@films.example:8080/chest",
        "https://:hunter2@films.example",
        "https://hunter2@films.example/",
        "s3://AKIA1:hunter2@films.example/chest",
    ],
)
def test_an_address_with_a_password_is_refused_without_naming_it(address):
    with pytest.raises(
        SourceError, match=r"the address \S+films.example\S* has a user name .* set (FSSPEC|AWS)_"
    ) as refused:
        local_folder(address)

    assert not any(part in str(refused.value) for part in ("hunter2", "hun@", "ter2", "mira", "AKIA1"))


@pytest.mark.parametrize("address", ["https://films.example/chest@2x", "s3://films/mira@site", "http://[::1]:80/a"])
def test_an_at_sign_behind_the_host_is_no_password(address):
    assert local_folder(address) is None


def test_a_server_gets_the_user_name_and_password_that_the_environment_has_for_fsspec():
    """As the guide says."""
    basic = "Basic " + base64.b64encode(b"mira:hunter2").decode()

    def only_with_password(request: Request) -> None:
        if request.headers.get("Authorization") == basic:
            request.good()
        else:
            request.status(401)

    with web_server() as web:
        web.content = b"films"
        web.coming = [only_with_password] * 6
        command = [sys.executable, "-c", READ, web.url]
        denied = subprocess.run(command, capture_output=True, check=False)
        headers = json.dumps({"headers": {"Authorization": basic}})
        allowed = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "FSSPEC_HTTP": headers})

    assert denied.returncode != 0
    assert b"401" in denied.stderr
    assert (allowed.returncode, allowed.stdout) == (0, b"films")
