"""Who may use the page, and what its answers allow a browser."""

import re

import pytest

from jobs.runs import state as run_state
from jobs.web.access import Access
from tests import web_page
from tests.web_page import ADDRESSES, TOKEN, queued, search_of

serving, client = web_page.serving, web_page.client


@pytest.mark.parametrize("path", [*ADDRESSES, "/runs/train-20260102-030405-abcdef", "/?token=wrong", "/?token=%C3%A9"])
def test_without_the_token_every_address_answers_401(client, path):
    answer = client.ask("GET", path)

    assert answer.status == 401
    assert answer.text == "Open the address that `nightshift ui` printed: it contains the token of this page.\n"


@pytest.mark.parametrize("act", ["cancel", "kill", "retry"])
def test_without_the_token_no_act_is_taken(client, settings, act):
    paths = queued(settings)

    answer = client.ask(
        "POST", f"/runs/{paths.run_id}/{act}?token={TOKEN}", body=f"form_token={Access(token=TOKEN).form_token}"
    )

    assert answer.status == 401
    assert run_state.read_state(paths).state == "queued"


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(client):
    answer = client.ask("GET", f"/?state=queued&token={TOKEN}")

    assert answer.status == 303
    assert answer.headers["location"] == "/?state=queued"
    assert answer.headers["set-cookie"] == f"nightshift_token={TOKEN}; HttpOnly; Path=/; SameSite=lax"
    assert client.get("/?state=queued").status == 200


def test_the_redirect_stays_on_this_host(client):
    assert client.ask("GET", f"//evil.example/?token={TOKEN}").headers["location"] == "/evil.example/"


def test_over_https_the_cookie_is_never_sent_in_plain_text(serving):
    client = serving(access=Access(token=TOKEN, is_secure=True))

    assert client.ask("GET", f"/?token={TOKEN}").headers["set-cookie"].endswith("; Secure")


def test_a_program_gives_the_token_as_a_bearer_token(client):
    asked = {"accept": "application/json"}

    assert client.ask("GET", "/", headers=asked | {"authorization": f"Bearer {TOKEN}"}).json() == {
        "runs": [],
        "older": None,
    }
    assert client.ask("GET", "/", headers=asked | {"authorization": "Bearer wrong"}).status == 401
    assert client.ask("GET", "/", headers=asked | {"authorization": f"Basic {TOKEN}"}).status == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "[::2]", "a[", ""])
def test_another_site_whose_name_leads_here_is_refused(client, host):
    answer = client.get("/", host=host)

    assert answer.status == 400
    assert answer.text.startswith(f"{host} is not an address of this page; open the one that `nightshift ui` printed")
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8280", "[::1]:8280", "GPU-1:443"])
def test_an_address_of_the_page_may_have_any_port_and_case(serving, host):
    assert serving(hosts=["127.0.0.1", "::1", "gpu-1"]).get("/", host=host).status == 200


@pytest.mark.parametrize("path", ADDRESSES)
def test_every_answer_restricts_the_browser(client, path):
    headers = client.get(path).headers

    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_a_page_needs_nothing_from_another_host_and_has_no_inline_script(client, settings):
    search = search_of(settings, [[2.0, 1.0], [3.0]])

    for path in ("/", "/models", "/queue", f"/runs/{search.run_id}"):
        page = client.get(path).text
        links = re.findall(r"""\b(?:src|href|action)=["']([^"']*)""", page)
        assert all(link.startswith(("/", "#", "?", "data:,")) and not link.startswith("//") for link in links)
        assert re.findall(r"<script[^>]*>", page) == ['<script src="/static/page.js" defer>']
        assert not re.search(r"\son[a-z]+=", page)


def test_the_report_can_run_nothing_and_load_nothing(client, settings):
    paths = queued(settings)
    paths.report.write_text("<h1>Report</h1><script>alert(1)</script>")

    answer = client.get(f"/runs/{paths.run_id}/report")

    assert answer.text.startswith("<h1>Report</h1>")
    assert answer.headers["content-security-policy"].startswith(
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; "
    )
