import errno
import os
import threading

import pytest
import torch

from cluster.errors import SettingsError, StorageAway
from cluster.files import read_json
from cluster.lease import Lease
from cluster.settings import Settings
from tests.trained import new_run, train_spec
from trainer.__main__ import command_for
from trainer.attempt import Attempt
from trainer.data.cache_folder import cache_entries, evict
from trainer.data.feature_cache import FeatureCache, FeatureKey, Features
from trainer.errors import CheckpointError
from trainer.model.bundle import read_model
from trainer.model.head import HeadConfig
from trainer.specs import EvaluateSpec, build

KEY = FeatureKey.of(HeadConfig(classes=("a", "b"), width=32, dropout=0.0, image_size=64, backbone_sha256="1" * 64))
SHARD = "a" * 64


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "features", KEY, 10**9)


def features(n=3, fill=0.5):
    return Features.of(
        torch.full((n, 1280), fill),
        torch.arange(n) % 2,
        sources=tuple(f"{i}.jpg" for i in range(n)),
        groups=("patient",) * n,
    )


def test_features_come_back_as_they_were_kept(cache):
    cache.write(SHARD, features())

    found = cache.read(SHARD)

    assert torch.equal(found.values, features().values)
    assert torch.equal(found.labels, features().labels)
    assert found.sources == ("0.jpg", "1.jpg", "2.jpg")
    assert found.groups == ("patient",) * 3


def test_a_file_that_another_process_has_written_is_not_replaced_under_its_readers(cache):
    cache.write(SHARD, features())
    kept = cache.path(SHARD).stat().st_ino

    cache.write(SHARD, features())

    assert cache.path(SHARD).stat().st_ino == kept


def test_what_was_never_kept_is_none(cache):
    assert cache.read(SHARD) is None


@pytest.mark.parametrize(
    "change",
    [
        {"backbone_sha256": "2" * 64},
        {"image_size": 96},
        {"precision": "bf16"},
        {"layout": "torchvision"},
        {"mean": (0.5, 0.5, 0.5)},
    ],
)
def test_features_depend_on_all_of_their_key(cache, change):
    cache.write(SHARD, features())
    config = HeadConfig(classes=("a", "b"), width=32, dropout=0.0, image_size=64, backbone_sha256="1" * 64)

    other = FeatureCache(cache.root, FeatureKey.of(config.model_copy(update=change)), 10**9)

    assert other.read(SHARD) is None


def test_features_in_bf16_are_rounded_take_half_the_space_and_have_their_own_key(cache):
    config = HeadConfig(classes=("a", "b"), width=32, dropout=0.0, image_size=64, backbone_sha256="1" * 64)
    small = FeatureCache(cache.root, FeatureKey.of(config, "bf16"), 10**9)
    exact = features(300, fill=1 / 3)
    cache.write(SHARD, exact)

    unknown = small.read(SHARD)
    small.write(SHARD, exact)

    assert unknown is None
    assert small.read(SHARD).values.dtype == torch.bfloat16
    assert torch.equal(small.read(SHARD).values, exact.values.bfloat16())
    assert torch.equal(cache.read(SHARD).values, exact.values)
    sizes = [each.path(SHARD).stat().st_size for each in (cache, small)]
    assert sizes[0] - sizes[1] == pytest.approx(300 * 1280 * 2, abs=64)
    assert FeatureKey(**read_json(small.folder / "key.json")).stored == "bf16"


@pytest.mark.parametrize(("value", "expected"), [("", "fp32"), ("fp32", "fp32"), (" bf16 ", "bf16")])
def test_the_environment_chooses_the_precision_of_stored_features(value, expected):
    assert Settings.read({"NIGHTSHIFT_CACHE_PRECISION": value}).cache_precision == expected


@pytest.mark.parametrize(("first", "later"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_run_keeps_the_precision_of_stored_features_that_it_began_with(tmp_path, caplog, first, later):
    paths = new_run(tmp_path, train_spec("shards"))
    settings = [Settings(storage=tmp_path, cache_precision=found) for found in (first, later, first)]

    began = Attempt.of(paths.folder, None, settings[0])
    decide_precision(began)
    attempts = [began, *(Attempt.of(paths.folder, None, each) for each in settings[1:])]

    assert [attempt.settings.cache_precision for attempt in attempts] == [first] * 3
    assert [record.message for record in caplog.records] == [
        f"NIGHTSHIFT_CACHE_PRECISION is {later}, but the run began with features in {first} and keeps them; start a "
        f"new run for {later}"
    ]


def decide_precision(attempt: Attempt) -> None:
    """Record the precision of the backbone, as the workers of an attempt do when they begin."""
    paths = attempt.paths
    known = read_json(paths.precision) if paths.precision.exists() else {}
    attempt.lease.write_json(paths.precision, known | {"frozen": "bf16"})


@pytest.mark.parametrize("own", ["bf16", "fp32"])
def test_a_run_whose_first_attempt_ended_before_its_trainer_has_begun_with_no_precision(tmp_path, caplog, own):
    paths = new_run(tmp_path, train_spec("shards"))
    Lease.claim(paths, after=0)  # as a job worker does before it starts the trainer

    attempt = Attempt.of(paths.folder, None, Settings(storage=tmp_path, cache_precision=own))

    assert (attempt.number, attempt.settings.cache_precision) == (2, own)
    assert caplog.records == []


def test_a_storage_that_does_not_answer_does_not_change_the_precision_of_a_run(tmp_path, monkeypatch):
    paths = new_run(tmp_path, train_spec("shards"))
    settings = Settings(storage=tmp_path, cache_precision="bf16")
    decide_precision(Attempt.of(paths.folder, None, settings))

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("cluster.files.read_content", fail)

    with pytest.raises(StorageAway, match="Input/output error"):
        Attempt.of(paths.folder, None, settings)


@pytest.mark.usefixtures("without_reports")
def test_a_training_records_the_precision_of_its_features_and_an_evaluation_compares_it(tmp_path, digits_shards):
    def ran(name, spec, precision):
        paths = new_run(tmp_path, spec, name)
        attempt = Attempt.of(paths.folder, None, Settings(storage=tmp_path, cache_precision=precision))
        return paths, command_for(spec)(attempt, spec).details

    paths, trained = ran("run", train_spec(digits_shards, epochs=1), "bf16")
    evaluation = build(EvaluateSpec, model=str(paths.best), shards=str(digits_shards))
    details = [ran(f"in {precision}", evaluation, precision)[1] for precision in ("bf16", "fp32")]

    assert trained["feature_precision"] == "bf16"
    assert read_model(paths.best)[2]["feature_precision"] == "bf16"
    assert [each["feature_precision"] for each in details] == ["bf16", "fp32"]
    assert [each["trained_feature_precision"] for each in details] == ["bf16", "bf16"]


def test_an_unknown_precision_of_stored_features_is_refused():
    with pytest.raises(SettingsError, match="NIGHTSHIFT_CACHE_PRECISION 'fp16' is unknown; write fp32 or bf16"):
        Settings.read({"NIGHTSHIFT_CACHE_PRECISION": "fp16"})


def test_features_in_bf16_of_earlier_versions_are_still_found():
    config = HeadConfig(
        classes=("a", "b"), width=32, dropout=0.0, image_size=64, backbone_sha256="1" * 64, precision="bf16"
    )
    key = FeatureKey.of(config)

    assert key.digest == "4dac3c279d89047e"  # computed by the code before there was a choice of the stored precision
    assert "stored" not in key.facts


def test_features_in_fp32_of_versions_that_rounded_to_tf32_are_not_found():
    assert KEY.digest != "52e489053da6bc80"  # computed by the code of then


def test_heads_of_different_width_share_features():
    config = HeadConfig(classes=("a", "b"), width=1024, dropout=0.6, image_size=64, backbone_sha256="1" * 64)

    assert FeatureKey.of(config) == KEY


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_is_noticed_and_removed(cache, damage):
    cache.write(SHARD, features())
    with cache.path(SHARD).open("r+b") as file:
        if damage == "cut":
            file.truncate(5000)
        else:
            file.seek(-100, 2)
            file.write(b"\xff")

    with pytest.raises(CheckpointError, match="was damaged and is removed"):
        cache.read(SHARD)

    assert cache.read(SHARD) is None


def test_several_writers_of_the_same_features_leave_one_good_file(cache):
    writers = [threading.Thread(target=cache.write, args=(SHARD, features(200))) for _ in range(6)]

    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert torch.equal(cache.read(SHARD).values, features(200).values)
    assert sorted(path.name for path in cache.folder.iterdir()) == [f"{SHARD}.safetensors", "key.json"]


def test_the_limit_removes_what_was_unused_for_longest(cache, tmp_path):
    size = 3 * 1280 * 4
    small = FeatureCache(cache.root, KEY, int(2.5 * size))
    small.write("a" * 64, features())
    small.write("b" * 64, features())
    set_used(small.path("a" * 64), 2000)
    set_used(small.path("b" * 64), 1000)

    small.write("c" * 64, features())

    assert small.path("a" * 64).exists()
    assert not small.path("b" * 64).exists()
    assert small.path("c" * 64).exists()


def test_reading_counts_as_use(cache):
    cache.write(SHARD, features())
    set_used(cache.path(SHARD), 1000)

    cache.read(SHARD)

    assert cache.path(SHARD).stat().st_mtime > 1000


def test_the_folder_tells_what_it_holds(cache):
    cache.write("a" * 64, features())
    cache.write("b" * 64, features())

    (entry,) = cache_entries(cache.root)

    assert entry.name == KEY.digest
    assert entry.shards == 2
    assert entry.bytes == sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
    assert entry.key["image_size"] == 64


def test_making_room_for_everything_empties_the_folder(cache):
    cache.write(SHARD, features())

    freed = evict(cache.root, 0)

    assert freed > 3 * 1280 * 4
    assert cache_entries(cache.root) == ()


def set_used(path, when):
    os.utime(path, (when, when))
