"""Heads of several trials that train together have what each has alone."""

from dataclasses import replace

import pytest
import torch

from data_shards.index import ShardIndex
from tests import searched_heads
from tests.searched_heads import data_of_search, head, never
from tests.trained import attempted, new_run, train_spec
from trainer.errors import Stopped, TrainingDiverged
from trainer.search import head_group
from trainer.search.head_group import HeadGroup
from trainer.training.head_fit import index_of_rows
from trainer.training.model_setup import class_weights

EPOCHS = 4
PLAIN = [{"lr": 1e-3}, {"lr": 1e-2, "dropout": 0.0}, {"lr": 3e-3, "dropout": 0.6, "seed": 9}]
DIFFERENT = [
    {"lr": 1e-3, "head_width": 8},
    {"lr": 1e-2, "head_width": 32, "weight_decay": 0.1},
    {"lr": 3e-3, "head_width": 16, "weight_decay": 0.01, "dropout": 0.0},
]

folder = searched_heads.folder
one_thread_like_a_trial_process = searched_heads.one_thread_like_a_trial_process


@pytest.fixture(scope="module")
def storage(tmp_path_factory, digits_shards):
    """A storage whose feature cache a run of `train` has filled."""
    spec = train_spec(digits_shards, epochs=1)
    paths = new_run(tmp_path_factory.mktemp("storage"), spec)
    attempted(paths, spec)
    return paths.storage


@pytest.fixture(scope="module")
def data(storage, digits_shards):
    found = data_of_search(storage, digits_shards, epochs=EPOCHS)
    # Those of random weights are almost the same for all images: rounding errors would decide what a head learns.
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(10, 1280, generator=draw)
    values = {
        split: torch.rand(len(labels), 1280, generator=draw) + 0.1 * directions[labels]
        for split, labels in found.loader.labels.items()
    }
    return replace(found, loader=replace(found.loader, values=values))


@pytest.fixture
def padded(monkeypatch):
    """Let heads of all widths train in one stack, as on a GPU."""
    monkeypatch.setattr(HeadGroup, "_key", lambda group, head: (head.spec.batch_size, group.widest))
    monkeypatch.setattr(head_group, "_most", lambda *_: 64)


def heads(data, folder, name, options, **shared):
    return [head(data, folder / f"{name}-{number}", **(shared | one)) for number, one in enumerate(options)]


def lines_of(group, several, epochs=EPOCHS):
    """Train epochs and return the lines of each head."""
    lines = [[] for _ in several]
    for _ in range(epochs):
        outcomes = group.train_epoch(several)
        assert list(outcomes.values()) == [None] * len(several)
        for found, one in zip(lines, several, strict=True):
            found.append(one.line)
    return lines


def close(found, expected):
    """Assert that heads have the same curves, to 1e-5 in the losses."""
    assert len(found) == len(expected)
    for of_one, of_other in zip(found, expected, strict=True):
        for name in ("train_loss", "valid_loss"):
            assert [line[name] for line in of_one] == pytest.approx([line[name] for line in of_other], abs=1e-5)
        for name in ("epoch", "lr", "best"):
            assert [line[name] for line in of_one] == [line[name] for line in of_other]


def alone(data, folder, options, **shared):
    return [
        [one.epoch() for _ in range(EPOCHS)] for one in heads(data, folder, "alone", options, **shared)
    ]  # fmt: skip


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_heads_of_one_width_have_the_curves_that_each_has_alone(data, folder, ema):
    group = HeadGroup(32, never)

    found = lines_of(group, heads(data, folder, "together", PLAIN, ema=ema))

    assert len(group._stacks) == 1
    close(found, alone(data, folder, PLAIN, ema=ema))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_heads_of_several_widths_train_in_one_stack_on_a_gpu(data, folder, padded, ema):
    group = HeadGroup(32, never)
    several = heads(data, folder, "together", DIFFERENT, ema=ema)

    found = lines_of(group, several)

    assert [len(stack.heads) for stacks in group._stacks.values() for stack in stacks] == [3]
    close(found, alone(data, folder, DIFFERENT, ema=ema))
    states = [one.tensors for one in several]
    for state, options in zip(states, DIFFERENT, strict=True):
        width = options["head_width"]
        assert {tuple(tensor.shape) for tensor in state.values()} >= {(width, 1280), (width // 4, width)}


def test_heads_with_class_weights_have_the_curves_that_each_has_alone(data, folder):
    weighted = replace(data, weights=torch.linspace(0.2, 1.8, 10))

    found = lines_of(HeadGroup(32, never), heads(weighted, folder, "together", PLAIN))

    close(found, alone(weighted, folder, PLAIN))
    assert found[0][0]["train_loss"] != alone(data, folder / "equal", PLAIN)[0][0]["train_loss"]


def test_heads_of_several_labels_have_the_curves_that_each_has_alone(data, folder):
    draw = torch.Generator().manual_seed(1)
    classes, shards, labels = ("a", "b", "c"), [], {}
    for split, values in data.loader.values.items():
        labels[split] = torch.randint(-1, 2, (len(values), 3), generator=draw)  # -1 is unknown
        of_split = index_of_rows(
            labels[split], data.config.model_copy(update={"classes": classes, "multi_label": True})
        )
        shards.append(of_split.shards[0].model_copy(update={"name": f"{split}.tar", "split": split}))
    index = ShardIndex(classes=classes, shards=tuple(shards), multi_label=True)
    several = replace(
        data,
        index=index,
        config=data.config.model_copy(update={"classes": classes, "multi_label": True}),
        loader=replace(data.loader, labels=labels),
        weights=class_weights(data.context.task.spec, index, data.device),
    )

    found = lines_of(HeadGroup(32, never), heads(several, folder, "together", PLAIN))

    assert several.weights is not None
    close(found, alone(several, folder, PLAIN))


def test_a_head_that_leaves_trains_on_alone_and_another_takes_its_place(data, folder, padded):
    group = HeadGroup(32, never)
    first, second, third = heads(data, folder, "together", DIFFERENT, ema=0.9)
    lines_of(group, [first, second], 1)
    stack = next(iter(group._stacks.values()))[0]

    of_two = lines_of(group, [second, third], 2)
    rest = [first.epoch() for _ in range(EPOCHS - 1)]

    assert stack.heads == [third, second]
    expected = alone(data, folder, DIFFERENT, ema=0.9)
    close([rest], [expected[0][1:]])
    close(of_two, [expected[1][1:3], expected[2][:2]])


@pytest.mark.parametrize("then", ["alone", "with others"])
def test_heads_that_paused_in_the_middle_of_an_epoch_train_on_as_if_they_had_not(data, folder, then):
    asked = iter([None] * 9 + ["window"])
    paused = heads(data, folder, "a", PLAIN, ema=0.9)
    group = HeadGroup(32, lambda: next(asked))
    lines_of(group, paused, 1)

    outcomes = group.train_epoch(paused)

    assert [type(outcome) for outcome in outcomes.values()] == [Stopped] * 3
    resumed = heads(data, folder, "a", PLAIN, ema=0.9)
    assert [(one.state.epoch, one.state.batch) for one in resumed] == [(1, paused[0].state.batch)] * 3
    assert resumed[0].state.batch > 0
    expected = alone(data, folder, PLAIN, ema=0.9)
    if then == "alone":
        found = [[one.epoch() for _ in range(EPOCHS - 1)] for one in resumed]
    else:
        found = lines_of(HeadGroup(32, never), resumed, EPOCHS - 1)
    close(found, [lines[1:] for lines in expected])


def test_a_head_whose_loss_is_not_finite_ends_alone(data, folder):
    several = heads(data, folder, "together", PLAIN)
    with torch.no_grad():
        several[1].module.get_parameter("1.weight").fill_(float("nan"))
    group = HeadGroup(32, never)

    outcomes = group.train_epoch(several)
    rest = lines_of(group, [several[0], several[2]], 1)

    assert [type(outcomes[one]) for one in several] == [type(None), TrainingDiverged, type(None)]
    assert "loss is not finite (NaN or inf) at step 1 of epoch 1; use a lower --lr" in str(outcomes[several[1]])
    close(rest, [lines[1:2] for lines in alone(data, folder, [PLAIN[0], PLAIN[2]])])


def test_heads_with_other_batch_sizes_train_in_stacks_of_their_own(data, folder):
    options = [{"batch_size": 16}, {"batch_size": 40}, {"batch_size": 16, "seed": 2}, {"batch_size": 40, "seed": 2}]
    group = HeadGroup(32, never)

    found = lines_of(group, heads(data, folder, "together", options))

    assert sorted(len(stacks) for stacks in group._stacks.values()) == [1, 1]
    close(found, alone(data, folder, options))


def test_an_error_of_a_stack_is_raised_as_nobody_knows_which_head_is_its_cause(data, folder, monkeypatch):
    several = heads(data, folder, "together", PLAIN)

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(head_group.HeadStack, "step", out_of_memory)

    with pytest.raises(torch.OutOfMemoryError):
        HeadGroup(32, never).train_epoch(several)


def test_a_checkpoint_of_a_head_in_a_stack_has_its_newest_weights(data, folder):
    several = heads(data, folder, "together", PLAIN, ema=0.9)
    lines_of(HeadGroup(32, never), several, 2)
    several[0].save(replace(several[0].state))

    resumed = head(data, folder / "together-0", ema=0.9, **PLAIN[0])

    assert resumed.state == several[0].state
    assert resumed.validated["loss"] == pytest.approx(several[0].validated["loss"], abs=1e-6)
    assert resumed.ema.updates == several[0].state.step
