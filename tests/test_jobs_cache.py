import json
import re

import click
import pytest
import torch
from click.testing import CliRunner

from jobs.cli.cache import cache
from trainer.data import cache_folder as cache_module
from trainer.data.cache_folder import cache_folder
from trainer.data.feature_cache import FeatureCache, FeatureKey, Features
from trainer.model.head import HeadConfig


@pytest.fixture
def over_network(monkeypatch):
    monkeypatch.setattr(cache_module, "is_on_network", lambda _: True)


@pytest.fixture
def stored(storage, monkeypatch):
    """A storage with the features of two shards."""
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(storage))
    config = HeadConfig(classes=("a", "b"), width=32, dropout=0.0, image_size=64, backbone_sha256="1" * 64)
    found = FeatureCache(cache_folder(storage), FeatureKey.of(config), 10**9)
    for shard in ("a" * 64, "b" * 64):
        features = Features.of(torch.zeros(2, 1280), torch.tensor([0, 1]), sources=("x", "y"), groups=("", ""))
        found.write(shard, features)
    return found


def test_show_tells_what_is_stored(stored):
    result = CliRunner().invoke(cache, ["show", "--json"])

    content = json.loads(result.output)
    assert result.exit_code == 0
    assert content["bytes"] == content["entries"][0]["bytes"] > 2 * 2 * 1280 * 4
    assert content["entries"][0]["shards"] == 2
    assert content["entries"][0]["key"]["image_size"] == 64
    assert content["limit_bytes"] == 50 * 10**9


def test_show_of_an_empty_cache_is_a_line(storage, monkeypatch):
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(storage))

    result = CliRunner().invoke(cache, ["show"])

    assert result.output == f"0.000 of 50 GB in {storage}/features\n"


def test_prune_within_the_limit_removes_nothing(stored):
    result = CliRunner().invoke(cache, ["prune"])

    assert result.output == "0.000 GB freed\n"
    assert stored.read("a" * 64) is not None


def test_prune_leaves_features_in_use_over_a_network_and_says_so(stored, over_network):
    result = CliRunner().invoke(cache, ["prune", "--all"])

    assert result.stdout == "0.000 GB freed\n"
    assert "GB of features stay: they were used in the last 20 minutes, and runs that read them" in result.stderr
    assert stored.read("a" * 64) is not None


def test_prune_all_leaves_nothing(stored):
    result = CliRunner().invoke(cache, ["prune", "--all"])

    assert result.exit_code == 0
    assert stored.read("a" * 64) is None
    assert stored.read("b" * 64) is None


def test_prune_all_and_keep_contradict_each_other(stored):
    result = CliRunner().invoke(cache, ["prune", "--all", "--keep", "1"])

    assert result.exit_code == 2
    assert stored.read("a" * 64) is not None


def test_show_says_how_long_ago_features_were_used(stored):
    result = CliRunner().invoke(cache, ["show"])

    heading, row, _ = result.stdout.splitlines()
    assert heading.endswith("LAST USED")
    assert re.search(r"  \d+s ago$", row)


@pytest.mark.parametrize("size", ["nan", "inf", "1e400", "1e300"])
def test_prune_keeps_a_size_that_is_a_number(stored, size):
    result = CliRunner().invoke(cache, ["prune", "--keep", size], standalone_mode=False)

    assert isinstance(result.exception, click.UsageError)
    assert result.exception.message == f"--keep {float(size)} is no size; write a number of GB, such as 5"
