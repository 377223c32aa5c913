"""Downloads from buckets, Drive and Kaggle, up to the borders of the packages, against servers on this machine."""

import json
import os
import re
import sys
from threading import Thread
from urllib.parse import parse_qs, unquote

import boto3
import pytest
from gcsfs.core import GCSFileSystem
from kagglesdk import kaggle_env
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from data_shards.download import bucket_file, services
from data_shards.download.address import parse_address
from data_shards.download.kept_files import DownloadOptions, kept_file
from data_shards.errors import DownloadFailed, SourceError
from data_shards.locations import file_system
from tests.downloads import zip_bytes
from tests.web_server import cut, status, web_server

DRIVE_LINK = "https://drive.google.com/file/d/1AbCdEfGhIjKlMnOp/view"


ZIP = zip_bytes(x=bytes(range(256)) * 400)


@pytest.fixture
def fetch(tmp_path):
    def fetch(url, **options):
        fetch.notes, fetch.progress = [], []
        chosen = DownloadOptions(
            folder=tmp_path / "downloads",
            on_note=fetch.notes.append,
            pause=lambda _: None,
            on_bytes=lambda *counts: fetch.progress.append(counts),
            **options,
        )
        with kept_file(parse_address(url), chosen) as path:
            return path.read_bytes() if path.is_file() else sorted(file.name for file in path.rglob("*.png"))

    return fetch


@pytest.fixture(scope="module")
def moto():
    """Moto's S3; `before` is called with each request and may answer it."""
    backend = DomainDispatcherApplication(create_backend_app)

    def app(environ, start_response):
        app.ranges.append(environ.get("HTTP_RANGE"))
        return app.before(environ, start_response) or backend(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True)
    app.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield app
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def s3(moto, monkeypatch):
    """A bucket `films` with `chest.zip` and a folder `images`, and blocks of 10,000 bytes."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    for name, value in zip(names, ("test", "test", "us-east-1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.url)
    monkeypatch.setattr(bucket_file, "BLOCK_BYTES", 10_000)
    file_system.cache_clear()
    moto.before, moto.ranges = lambda *_: None, []
    client = boto3.client("s3")
    client.create_bucket(Bucket="films")
    client.put_object(Bucket="films", Key="chest.zip", Body=ZIP, ACL="public-read")
    client.put_object(Bucket="films", Key="images/a/x.png", Body=b"png")
    moto.client = client
    yield moto
    client.close()


def test_an_archive_in_s3_is_downloaded_in_ranges_with_its_progress(s3, fetch):
    assert fetch("s3://films/chest.zip") == ZIP

    assert fetch.progress[:2] == [(0, len(ZIP)), (10_000, len(ZIP))]
    assert fetch.progress[-1] == (len(ZIP), len(ZIP))


def test_a_range_that_fails_is_asked_for_again_and_no_other(s3, fetch):
    failed = []

    def fail_once(environ, start_response):
        if environ.get("HTTP_RANGE", "").startswith("bytes=20000-") and not failed:
            failed.append(1)
            start_response("400 Bad Request", [("Content-Length", "0")])
            return [b""]
        return None

    s3.before = fail_once

    assert fetch("s3://films/chest.zip") == ZIP
    assert [s3.ranges.count(f"bytes={n}-{n + 9999}") for n in range(0, 40_000, 10_000)] == [1, 1, 2, 1]


def test_a_file_that_is_replaced_in_its_bucket_starts_again(s3, fetch):
    new = zip_bytes(y=bytes(range(255, -1, -1)) * 400)
    assert len(new) == len(ZIP)

    def replace(environ, _):
        if environ.get("HTTP_RANGE", "").startswith("bytes=50000-"):
            s3.before = lambda *_: None
            s3.client.put_object(Bucket="films", Key="chest.zip", Body=new)

    s3.before = replace

    assert fetch("s3://films/chest.zip") == new


def test_a_folder_in_a_bucket_is_refused_with_the_command_that_copies_it(s3, fetch):
    with pytest.raises(DownloadFailed, match=r"it is a folder, .* `aws s3 sync s3://films/images FOLDER`"):
        fetch("s3://films/images")


@pytest.mark.parametrize("url", ["s3://films/absent.zip", "s3://nobucket/chest.zip"])
def test_what_is_not_in_a_bucket_is_named(s3, fetch, url):
    with pytest.raises(DownloadFailed, match=f"{url} cannot be downloaded: there is no such file; check the bucket"):
        fetch(url)


def test_denied_access_names_the_credentials_to_check(s3, fetch):
    def deny(_, start_response):
        start_response("403 Forbidden", [("Content-Length", "0")])
        return [b""]

    s3.before = deny

    with pytest.raises(DownloadFailed, match="access is denied; check the credentials: AWS_ACCESS_KEY_ID and"):
        fetch("s3://films/chest.zip")


def test_a_public_bucket_needs_no_credentials(s3, fetch, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    file_system.cache_clear()

    assert fetch("s3://films/chest.zip") == ZIP


def test_a_bucket_that_cannot_be_reached_is_named_at_once(s3, fetch, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("asyncio.sleep", no_sleep)  # s3fs tries by itself five times
    file_system.cache_clear()

    with pytest.raises(DownloadFailed, match="the server of the bucket cannot be reached; check the network"):
        fetch("s3://films/chest.zip")


async def no_sleep(*_):
    pass


def test_without_the_package_for_a_scheme_the_error_names_the_extra(fetch, monkeypatch):
    def absent(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.filesystem", absent)
    file_system.cache_clear()

    with pytest.raises(SourceError, match=r"s3:// needs the package s3fs, .*; run `pip install 'nightshift\[s3\]'`"):
        fetch("s3://films/chest.zip")


@pytest.fixture
def gcs(monkeypatch):
    """A server that speaks the part of the JSON API of Google Cloud Storage that gcsfs uses."""
    objects = {"chest.zip": ZIP, "images/a.png": b"png"}

    def app(environ, start_response):
        query = parse_qs(environ["QUERY_STRING"])
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/films/o(?:/(.+))?", environ["PATH_INFO"])
        name = unquote(found[1] or "") if found else ""
        if found and not name:
            prefix = query.get("prefix", [""])[0]
            items = [facts(key) for key in objects if key.startswith(prefix)]
            return answer(start_response, json.dumps({"items": items}).encode())
        if name not in objects:
            start_response("404 Not Found", [("Content-Length", "0")])
            return [b""]
        if "media" not in query.get("alt", []):
            return answer(start_response, json.dumps(facts(name)).encode())
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", environ["HTTP_RANGE"])
        return answer(start_response, objects[name][int(span[1]) : int(span[2]) + 1], "206 Partial Content")

    def facts(name):
        return {"name": name, "bucket": "films", "size": str(len(objects[name])), "generation": "7", "etag": "CAE="}

    def answer(start_response, body, code="200 OK"):
        start_response(code, [("Content-Length", str(len(body))), ("Content-Type", "application/json")])
        return [body]

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(bucket_file, "BLOCK_BYTES", 30_000)
    monkeypatch.setattr("data_shards.download.bucket_file.file_system", anonymous_gcs)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def anonymous_gcs(scheme, process):
    """Return gcsfs on the JSON API alone, without a search for credentials, which would ask Google's servers."""
    return GCSFileSystem(token="anon", endpoint_url=os.environ["STORAGE_EMULATOR_HOST"], skip_instance_cache=True)


def test_an_archive_in_google_cloud_storage_is_downloaded(gcs, fetch):
    assert fetch("gs://films/chest.zip") == ZIP
    assert fetch.progress[-1] == (len(ZIP), len(ZIP))


def test_a_folder_in_google_cloud_storage_is_refused_with_the_command_that_copies_it(gcs, fetch):
    with pytest.raises(DownloadFailed, match=r"`gcloud storage rsync --recursive gs://films/images FOLDER`"):
        fetch("gs://films/images")


def test_what_is_not_in_google_cloud_storage_is_named(gcs, fetch):
    with pytest.raises(DownloadFailed, match="there is no such file"):
        fetch("gs://films/absent.zip")


@pytest.fixture
def drive(monkeypatch):
    with web_server() as web:
        web.content = ZIP
        monkeypatch.setattr(services, "DRIVE_URL", f"{web.url}/uc?id={{}}")
        yield web


def test_a_drive_link_is_downloaded_by_its_id(drive, fetch):
    assert fetch(DRIVE_LINK) == ZIP

    assert drive.requests[0][0] == "/uc?id=1AbCdEfGhIjKlMnOp"
    assert fetch.progress[-1] == (len(ZIP), len(ZIP))


def test_a_drive_file_above_the_limit_ends_at_once_and_leaves_nothing(drive, fetch, tmp_path):
    with pytest.raises(DownloadFailed, match=r"more than the limit of 0\.0001 GB; raise --max-download"):
        fetch(DRIVE_LINK, max_bytes=100_000)

    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_cut_drive_download_continues(drive, fetch, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda *_: 0)
    drive.content = zip_bytes(x=bytes(1_500_000))
    drive.coming.append(cut(600_000))

    assert fetch(DRIVE_LINK) == drive.content
    assert drive.asked_ranges() == [None, "bytes=524288-"]  # gdown writes in steps of this size


def test_a_drive_download_that_was_given_up_continues_with_the_next_command(drive, fetch, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda *_: 0)
    drive.content = zip_bytes(x=bytes(1_500_000))
    drive.coming += [cut(600_000), *[hang_up] * 9]
    with pytest.raises(DownloadFailed, match="Google Drive cannot be reached; check the network"):
        fetch(DRIVE_LINK)
    drive.coming.clear()
    drive.requests.clear()

    assert fetch(DRIVE_LINK) == drive.content
    assert drive.asked_ranges()[-1] == "bytes=524288-"


def hang_up(request):
    request.close_connection = True


def test_a_drive_that_cannot_be_reached_is_not_called_a_file_that_is_not_shared(fetch, monkeypatch, tmp_path):
    monkeypatch.setattr("random.uniform", lambda *_: 0)
    monkeypatch.setattr(services, "DRIVE_URL", "http://127.0.0.1:9/uc?id={}")

    with pytest.raises(DownloadFailed, match="Google Drive cannot be reached; check the network"):
        fetch(DRIVE_LINK)

    assert [path for path in (tmp_path / "downloads").iterdir() if path.suffix != ".lock"] == []


def test_a_drive_page_instead_of_a_file_is_named(drive, fetch):
    drive.content = b"<!DOCTYPE html><title>Sign in</title>"

    with pytest.raises(DownloadFailed, match="the address gave a web page, not an archive"):
        fetch(DRIVE_LINK)


def test_a_drive_file_that_is_not_shared_is_refused_with_the_cure(drive, fetch):
    drive.coming.append(status(404))

    with pytest.raises(DownloadFailed, match=r"d/1AbCdEfGhIjKlMnOp cannot be .* does not give the file; share it with"):
        fetch(DRIVE_LINK)


@pytest.mark.parametrize(
    ("package", "extra", "url"), [("gdown", "drive", DRIVE_LINK), ("kagglehub", "kaggle", "kaggle:owner/films")]
)
def test_without_the_package_of_a_service_the_error_names_the_extra(fetch, monkeypatch, package, extra, url):
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(DownloadFailed, match=rf"needs the package {package}, .*`pip install 'nightshift\[{extra}\]'`"):
        fetch(url)


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """The part of Kaggle's API that a download uses."""
    with web_server() as web:
        web.content = ZIP
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.TEST, web.url)
        yield web


def test_a_version_of_a_kaggle_data_set_is_downloaded_once(kaggle, fetch, capsys):
    assert fetch("kaggle:owner/films/versions/3") == ["x.png"]
    asked = len(kaggle.requests)
    assert fetch("kaggle:owner/films/versions/3") == ["x.png"]

    assert len(kaggle.requests) == asked
    assert capsys.readouterr().out == ""
