"""`nightshift ui`: the address that it prints, and the hosts and certificates that it refuses."""

import http.client
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from tests.conftest import Say
from tests.web_page import Client


def test_the_command_prints_the_address_and_ends_at_ctrl_c(settings):
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "ui", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "", "NIGHTSHIFT_STORAGE": str(settings.storage)},
    )
    address = urlsplit(process.stdout.readline().strip())
    client = Client(address.port)

    assert (address.scheme, address.hostname, address.path) == ("http", "127.0.0.1", "/")
    assert client.ask("GET", "/").status == 401
    assert client.ask("GET", f"/?{address.query}").status == 303
    bearer = {"authorization": f"Bearer {address.query.removeprefix('token=')}"}
    connection = http.client.HTTPConnection("127.0.0.1", address.port)
    connection.request("GET", "/changes", headers=bearer)  # an open page
    stream = connection.getresponse()
    assert stream.readline() == b"retry: 3000\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    stream.close()
    connection.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is every address of this machine; add --public-url with the https"),
        (["--host", "::", "--tls-cert", __file__, "--tls-key", __file__], "--host :: is every address of this machine"),
        (["--public-url", "https://[x"], "--public-url 'https://[x' is not an https address without a path"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 would send the token over the network unencrypted"),
        (["--tls-cert", __file__], "--tls-cert and --tls-key belong together; give both"),
        (["--public-url", "http://gpu-1"], "--public-url 'http://gpu-1' is not an https address without a path"),
        (["--public-url", "https://gpu-1/page"], "--public-url 'https://gpu-1/page' is not an https address"),
    ],
)  # fmt: skip
def test_what_would_send_the_token_in_plain_text_is_refused(say: Say, words, error):
    code, _, said = say("ui", *words)

    assert code == 2
    assert error in said


def test_a_port_that_is_taken_and_a_file_that_is_no_certificate_are_one_line(say: Say):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken_said = say("ui", "--port", str(port))
    certificate_said = say("ui", "--port", "0", "--tls-cert", __file__, "--tls-key", __file__)

    assert taken_said == (
        1,
        "",
        f"Error: 127.0.0.1 port {port} cannot be opened (Address already in use); choose another port\n",
    )
    assert certificate_said[0] == 1
    assert certificate_said[2] == (
        f"Error: --tls-cert {__file__} and --tls-key {__file__} are not a certificate and its key in PEM format, or "
        "the key is encrypted; give files that your web server could use\n"
    )


def test_a_host_that_is_not_of_this_machine_is_one_line(say: Say):
    code, _, error = say("ui", "--host", "nowhere.invalid", "--public-url", "https://gpu-1")

    assert (code, error) == (
        1, "Error: --host nowhere.invalid has no address; give a name or IP address of this machine\n"
    )  # fmt: skip


def test_a_port_for_a_page_that_up_would_not_serve_is_refused(say: Say):
    said = say("up", "--ui-port", "8281")

    assert said == (2, "", "Error: --ui-port is the port of the page, which is not served; add --ui\n")
