import errno
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map
from torchvision.models import efficientnet_b0

from trainer.errors import WeightsError
from trainer.model.efficientnet import build_model
from trainer.model.head import HeadConfig
from trainer.model.weights import IMAGENET_URL, load_backbone, read_weights, resolve_weights

CONTENT = b"weights of a network" * 1000
NAME = f"efficientnet-b0-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def server():
    """A web server that serves `server.content` under any name and counts the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            web.requests += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(web.content)

        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.content, web.requests = CONTENT, 0
    web.url = f"http://127.0.0.1:{web.server_port}/{NAME}"
    threading.Thread(target=web.serve_forever).start()
    yield web
    web.shutdown()
    web.server_close()


def test_the_imagenet_file_is_downloaded_once_per_storage(server, tmp_path):
    paths = {resolve_weights("imagenet", tmp_path, url=server.url) for _ in range(3)}

    assert paths == {tmp_path / "weights" / NAME}
    assert paths.pop().read_bytes() == CONTENT
    assert server.requests == 1


def test_of_concurrent_requests_one_downloads_the_imagenet_file(server, tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve_weights("imagenet", tmp_path, url=server.url)))
        for _ in range(8)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [tmp_path / "weights" / NAME] * 8
    assert server.requests == 1


def test_a_download_with_another_sha256_is_refused_and_deleted(server, tmp_path):
    server.content = CONTENT[:-1]

    with pytest.raises(WeightsError, match=r"sha256 begins with \w{8} instead of \w{8}; the damaged file was deleted"):
        resolve_weights("imagenet", tmp_path, url=server.url)

    assert [file.name for file in (tmp_path / "weights").iterdir()] == [f".{NAME}.lock"]


def test_without_a_network_the_error_names_the_url_and_the_folder(tmp_path):
    with pytest.raises(WeightsError) as caught:
        resolve_weights("imagenet", tmp_path, url=f"http://127.0.0.1:9/{NAME}")

    line = str(caught.value)
    assert line.startswith(f"{NAME} cannot be downloaded (")
    assert f"download it from http://127.0.0.1:9/{NAME} to {tmp_path / 'weights'}" in line
    assert "\n" not in line


def test_a_file_copied_by_hand_is_used_without_a_network(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / NAME).write_bytes(CONTENT)

    assert resolve_weights("imagenet", tmp_path, url=f"http://127.0.0.1:9/{NAME}") == tmp_path / "weights" / NAME


def test_the_imagenet_url_is_the_package_s_and_has_the_sha256_digits():
    assert url_map["efficientnet-b0"] == IMAGENET_URL
    assert IMAGENET_URL.endswith("-355c32eb.pth")


def test_weights_with_efficientnet_pytorch_names_are_recognised(tmp_path):
    published = EfficientNet.from_name("efficientnet-b0")
    torch.save(published.state_dict(), tmp_path / "own.pth")

    weights = read_weights(tmp_path / "own.pth")

    assert weights.layout == "efficientnet_pytorch"
    assert torch.equal(weights.tensors["_conv_head.weight"], published._conv_head.weight)


def test_weights_with_torchvision_names_compute_torchvision_features(tmp_path):
    torch.manual_seed(0)
    theirs = efficientnet_b0(weights=None)
    images = torch.rand(4, 3, 64, 64)
    theirs(torch.rand(8, 3, 64, 64))  # changes the running statistics from 0 and 1
    torch.save(theirs.eval().state_dict(), tmp_path / "theirs.pth")

    weights = read_weights(tmp_path / "theirs.pth")
    model = build_model(
        HeadConfig(classes=("a", "b"), width=32, dropout=0.0, image_size=64, layout=weights.layout)
    ).eval()
    load_backbone(model.backbone, weights)
    with torch.no_grad():
        expected = theirs.avgpool(theirs.features(images)).flatten(1)
        found = model.backbone(images)

    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    torch.save(EfficientNet.from_name("efficientnet-b1").state_dict(), tmp_path / "b1.pth")

    with pytest.raises(
        WeightsError,
        match=r"b1\.pth has weights of another network than EfficientNet-B0: 6 of 358 tensors are missing",
    ):
        read_weights(tmp_path / "b1.pth")


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Malicious()}, tmp_path / "malicious.pth")

    with pytest.raises(WeightsError, match=r"malicious\.pth contains other objects than tensors and was not loaded"):
        read_weights(tmp_path / "malicious.pth")

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 torn"])
def test_a_file_that_is_not_a_weights_file_is_refused(tmp_path, content):
    (tmp_path / "torn.pth").write_bytes(content)

    with pytest.raises(WeightsError, match=r"torn\.pth"):
        read_weights(tmp_path / "torn.pth")


def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"weights file .*absent.pth does not exist"):
        resolve_weights(str(tmp_path / "absent.pth"), tmp_path)


def test_a_weights_file_that_the_disk_does_not_give_is_named(tmp_path):
    path = tmp_path / "weights" / NAME
    path.parent.mkdir()
    path.symlink_to("/proc/self/mem")  # reading it gives EIO, as a bad block does

    with pytest.raises(OSError, match="Input/output error") as caught:
        resolve_weights("imagenet", tmp_path, url=f"http://127.0.0.1:9/{NAME}")

    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    assert path.is_symlink()
