"""The command line as people type it: exact lines, exit codes, and what it must not import."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cluster.process_env import job_worker_environment
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.main import COMMANDS, cli
from jobs.runs import state as run_state
from tests.conftest import Say


def test_train_prints_the_run_id_alone_and_what_to_do_next_on_stderr(say: Say, shards: str, settings: Settings) -> None:
    code, out, err = say("train", shards, "--weights", "none")

    run_id = out.strip()

    assert code == 0
    assert out == f"{run_id}\n"
    assert err == (
        "No job worker is running; `nightshift up` starts one on this machine.\n"
        f"Queued. `nightshift logs -f {run_id}` follows it, `nightshift wait {run_id}` waits.\n"
    )
    assert run_state.all_ids(settings.storage) == [run_id]


def test_show_json_has_what_scripts_rely_on(say: Say, shards: str) -> None:
    run_id = say("train", shards, "--weights", "none", "--epochs", "3", "--name", "first")[1].strip()

    code, out, _ = say("show", "first", "--json")
    shown = json.loads(out)

    assert code == 0
    assert {
        "id", "name", "kind", "state", "created", "started", "ended", "attempt", "spec", "progress", "result", "error",
    } <= shown.keys()  # fmt: skip
    assert (shown["id"], shown["name"], shown["kind"], shown["state"]) == (run_id, "first", "train", "queued")
    assert (shown["spec"]["epochs"], shown["attempt"], shown["result"], shown["error"]) == (3, 0, None, None)
    assert shown["created"].endswith("Z")


def test_dry_run_prints_the_checked_spec_and_queues_nothing(say: Say, shards: str, settings: Settings) -> None:
    code, out, err = say("train", shards, "--weights", "none", "--dry-run")

    assert (code, err) == (0, "")
    assert json.loads(out)["shards"] == shards
    assert run_state.all_ids(settings.storage) == []


def test_an_id_may_be_shortened_to_any_unique_prefix(say: Say, shards: str) -> None:
    first = say("train", shards, "--weights", "none")[1].strip()
    say("train", shards, "--weights", "none")

    code, out, _ = say("show", first[:-1])
    ambiguous, _, err = say("show", "train")

    assert code == 0
    assert out.startswith(first)
    assert ambiguous == 1
    assert err.startswith("Error: 2 run ids begin with 'train', such as ")


def test_a_name_that_is_taken_is_refused_and_nothing_is_written(say: Say, shards: str, settings: Settings) -> None:
    first = say("train", shards, "--weights", "none", "--name", "night")[1].strip()

    code, out, err = say("train", shards, "--weights", "none", "--name", "night")

    assert (code, out) == (1, "")
    assert err == f"Error: name 'night' belongs to {first}; choose another, or delete that run\n"
    assert [entry.name for entry in settings.runs.iterdir()] == [first]


def test_deleting_a_run_frees_its_name(say: Say, shards: str, settings: Settings) -> None:
    first = say("train", shards, "--weights", "none", "--name", "night")[1].strip()
    refused = say("delete", first, "--yes")

    say("cancel", first)
    deleted = say("delete", first, "--yes")
    again = say("train", shards, "--weights", "none", "--name", "night")

    assert refused[::2] == (1, f"Error: {first} is queued; cancel it first: nightshift cancel {first}\n")
    assert deleted[::2] == (0, f"{first} is deleted\n")
    assert again[0] == 0
    assert not RunPaths.of(settings.storage, first).folder.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--batch-size", "9", "--workers", "2"], 2, "batch_size 9 does not split evenly over 2 workers"),
        (["--lr", "50"], 2, "lr 50.0 is above 10; use 10 or less"),
        (["--epochs", "0"], 2, "epochs 0 is below 1; use 1 or more"),
        (["--dropout", "1"], 2, "dropout 1.0 is not below 1; use less than 1"),
        (["--lr", "0"], 2, "lr 0.0 is not above 0; use more than 0"),
        (["--head-width", "130"], 2, "head_width 130 is not a multiple of 4"),
        (["--head", "lda", "--lr", "0.1"], 2, "--head lda is fitted in one step: --lr has no effect; leave it out"),
        (["--folds", "5", "--freeze", "none"], 2, "--folds 5 needs the features of a frozen backbone"),
        (["--repeats", "3"], 2, "--repeats 3 repeats the folds of --folds; add --folds 5"),
        (["--freeze", "9"], 2, "freeze '9' is not one of all, none, 1 to 7"),
        (["--seed", "-1"], 2, "seed -1 is below 0; use 0 or more"),
        (["--weights", "/no/such.pth"], 2, "weights file /no/such.pth does not exist"),
        (["--workers", "3", "--batch-size", "33"], 1, "3 workers need 3 CPUs|2 shards cannot feed 3 workers"),
        (["--name", "../../etc"], 2, "name '../../etc' is not valid"),
        (["--after", "train-20260101-000000-aaaaaa"], 1, "no run has the id or name 'train-20260101-000000-aaaaaa'"),
        (["--notify", "file:///etc/passwd"], 2, "--notify file:// is not an http:// or https:// URL"),
        (["--notify", "https://hooks.example/x"], 1, "--notify may not send to hooks.example"),
        (["--window", "20:00-20:00"], 2, "window 20:00-20:00 never opens"),
        (["--max-duration", "99999999999d"], 2, "'99999999999d' is longer than 36500 days; write 30m, 8h or 2d"),
        (["--max-duration", "soon"], 2, "'soon' is not a duration; write 30m, 8h or 2d"),
        (["--at", "2020-01-01T08:00+00:00"], 2, "--at 2020-01-01 08:00 is in the past; give a later time"),
        (["--at", "2099-01-01T08:00+01:00:30"], 2, "'2099-01-01T08:00+01:00:30' is not a time; write 22:00"),
        (["--at", "noon"], 2, "'noon' is not a time; write 22:00 or 2026-11-23T22:00"),
        (["--gpus-per-worker", "2"], 2, "'2' is not one of 0, 1, auto"),
        (["--priority", "urgent"], 2, "--priority 'urgent' is not one of high, normal, low"),
    ],
)
def test_a_bad_option_is_one_line_and_queues_nothing(
    say: Say, shards: str, arguments: list[str], code: int, line: str
) -> None:
    got, out, err = say("train", shards, "--weights", "none", *arguments)

    said = err.splitlines()[-1]

    assert (got, out) == (code, "")
    assert said.startswith("Error: ")
    assert any(part in said for part in line.split("|"))
    assert say("list", "--json")[1] == "[]\n"


def test_shards_that_do_not_exist_are_one_line(say: Say, tmp_path: Path) -> None:
    code, out, err = say("train", str(tmp_path / "nowhere"))

    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1


def test_weights_of_another_network_are_refused_before_they_are_queued(say: Say, shards: str, tmp_path: Path) -> None:
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "resnet.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))

    code, out, err = say("train", shards, "--weights", str(tmp_path / "resnet.safetensors"))

    assert (code, out) == (1, "")
    assert "belongs to another network: it has conv1.weight and no _conv_stem.weight" in err


def test_a_model_of_other_classes_is_refused(say: Say, shards: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    head = {"classes": ["cat", "dog"], "width": 512, "dropout": 0.4, "image_size": 224}
    (model / "head.json").write_text(json.dumps(head))

    code, _, err = say("evaluate", str(model), shards)

    assert code == 1
    assert err == (
        f"Error: {shards} has the classes covid, normal and the model cat, dog; "
        "use data packed with the model's classes\n"
    )


def test_redis_that_does_not_answer_is_one_line_and_nothing_is_written(
    say: Say, shards: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", "redis://127.0.0.1:1/0")

    code, out, err = say("train", shards, "--weights", "none")

    assert (code, out) == (1, "")
    assert err.startswith("Error: Redis at redis://127.0.0.1:1 does not answer (")
    assert len(err.splitlines()) == 1
    assert run_state.all_ids(settings.storage) == []


def test_storage_that_is_not_writable_is_one_line(say: Say, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", "/proc/nightshift")

    code, _, err = say("train", shards, "--weights", "none")

    assert code == 1
    assert err.startswith("Error: storage /proc/nightshift is not writable: ")


def test_an_unknown_id_is_one_line_everywhere(say: Say) -> None:
    for command in ("show", "logs", "wait", "cancel", "retry", "resume", "delete"):
        code, out, err = say(command, "nothing")

        assert (code, out) == (1, ""), command
        assert err == "Error: no run has the id or name 'nothing'; `nightshift list` shows them\n"


def test_wait_gives_up_after_its_timeout_with_1(say: Say, shards: str) -> None:
    run_id = say("train", shards, "--weights", "none")[1].strip()

    code, out, err = say("wait", run_id, "--timeout", "1s")

    assert (code, out) == (1, "")
    assert err.splitlines()[0] == f"{run_id}: queued"


def test_logs_come_from_storage_and_can_be_cut_to_their_tail(say: Say, shards: str, settings: Settings) -> None:
    run_id = say("train", shards, "--weights", "none")[1].strip()
    RunPaths.of(settings.storage, run_id).log.write_text("one\ntwo\nthree\n")

    assert say("logs", run_id)[1] == "one\ntwo\nthree\n"
    assert say("logs", run_id, "--tail", "2")[1] == "two\nthree\n"


def test_help_and_submitting_import_neither_torch_nor_ray(shards: str) -> None:
    code = (
        "import sys; from jobs.__main__ import main\n"
        "for line in (['--help'], ['train', '--help'], ['train', sys.argv[1], '--weights', 'none', '--dry-run']):\n"
        "    try: main(line)\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'sklearn', 'matplotlib', 'webdataset'} & set(sys.modules)), file=sys.stderr)"
    )

    said = subprocess.run([sys.executable, "-c", code, shards], capture_output=True, text=True, check=True)

    assert said.stderr == "[]\n"


@pytest.mark.parametrize("words", [["list"], ["logs", "train-20261123-203000-a1b2c3"], ["--version"]])
def test_the_shortest_commands_import_no_model_of_pydantic(words: list[str], storage: Path) -> None:
    code = (
        "import sys; from jobs.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('jobs.__main__' in sys.modules, 'pydantic' in sys.modules)"
    )
    environment = job_worker_environment(Settings(storage=storage))

    said = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=environment
    )

    assert said.stdout.endswith("True False\n")


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from jobs.cli.main import cli; cli.main(['--help'], standalone_mode=False); "
        "print('rq' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.endswith("False\n")
    assert all(name in said.stdout for name in ("train", "worker", "show"))


@pytest.mark.parametrize("name", [name for name, entry in COMMANDS.items() if entry.module.startswith("jobs.")])
def test_every_command_has_help(name: str, say: Say) -> None:
    code, out, _ = say(name, "--help")

    assert code == 0
    assert out.startswith(f"Usage: nightshift {name}")


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:1234/s3cret@redis:6379/0",
        "rediss://user:s3cret/x@redis:6379/0",
        "redis://[::1",
        "redis://h:s3cret/0",
    ],
)
def test_an_address_of_redis_that_cannot_be_read_is_refused_without_its_password(
    say: Say, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", url)

    code, _, err = say("list")

    assert code == 1
    assert err.startswith("Error: NIGHTSHIFT_REDIS_URL is not a valid address; ")
    assert "s3cret" not in err


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (("train", "SHARDS", "--at", "0001-01-01T00:00"), "is in the past"),
        (("search", "SHARDS", "--trials", "\u00b2"), "is not a number"),
        (("list", "--kind", "nonsense"), "is not one of"),
        (("show", "x" * 300), "no run has the id or name"),
        (("predict", "x" * 300, "."), "File name too long; check the path"),
    ],
)
def test_odd_values_are_refused_in_a_line(say: Say, shards: str, order: tuple[str, ...], says: str) -> None:
    code, out, err = say(*(shards if part == "SHARDS" else part for part in order))

    assert code in (1, 2)
    assert out == ""
    assert says in err


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("trian", "there is no command 'trian'; did you mean `nightshift train`?"),
        ("evalute", "there is no command 'evalute'; did you mean `nightshift evaluate`?"),
        ("status", "there is no command 'status'; did you mean `nightshift show`?"),
        ("stop", "there is no command 'stop'; did you mean `nightshift cancel`?"),
        ("pack", "there is no command 'pack'; did you mean `nightshift shards pack`?"),
        ("promote", "there is no command 'promote'; did you mean `nightshift models promote`?"),
        ("xyzzy", "there is no command 'xyzzy'; `nightshift --help` lists the commands"),
    ],
)
def test_an_unknown_command_gets_a_suggestion(say: Say, typed: str, line: str) -> None:
    code, out, err = say(typed, "shards")

    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"Error: {line}"


def test_a_running_run_is_not_deleted_and_nobody_is_asked(say: Say, shards: str) -> None:
    run_id = say("train", shards, "--weights", "none")[1].strip()

    code, out, err = say("delete", run_id)

    assert (code, out, err) == (
        1, "", f"Error: {run_id} is queued; cancel it first: nightshift cancel {run_id}\n",
    )  # fmt: skip


def test_every_option_of_every_command_has_a_text_and_every_command_an_example() -> None:
    silent, without_example = [], []
    with click.Context(cli) as context:
        todo = [(name, cli.get_command(context, name)) for name in cli.list_commands(context)]
    while todo:
        name, command = todo.pop()
        if isinstance(command, click.Group):
            todo += [(f"{name} {sub}", command.commands[sub]) for sub in command.commands]
        elif not command.example and not command.hidden:
            without_example.append(name)
        silent += [f"{name} {p.opts[0]}" for p in command.params if isinstance(p, click.Option) and not p.help]

    assert (silent, without_example) == ([], [])


def test_json_of_a_submit_command_is_all_of_stdout(say: Say, shards: str, settings: Settings) -> None:
    code, out, _ = say("train", shards, "--weights", "none", "--json")

    assert code == 0
    assert json.loads(out) == {"id": run_state.all_ids(settings.storage)[0]}


def test_a_data_set_in_place_of_the_model_is_a_wrong_use(say: Say, shards: str) -> None:
    code, out, err = say("evaluate", shards, "train-2026")

    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"Error: {shards} is a data set, not a model; write nightshift evaluate MODEL {shards}"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("0 25 * * *", "train", "SHARDS"), "cron line '0 25 * * *' is not valid; write minute, hour, day, month, "
         "weekday, in quotes: '0 20 * * 1-5'"),
        (("0 20 * * *", "train", "SHARDS", "--name", "x"), "a schedule sets the names and start times of its runs; "
         "leave out --name and --at"),
    ],
)  # fmt: skip
def test_a_schedule_that_can_never_run_is_a_wrong_use(
    say: Say, shards: str, arguments: tuple[str, ...], line: str
) -> None:
    words = (shards if word == "SHARDS" else word for word in arguments)

    code, out, err = say("schedule", "add", "nightly", *words, "--weights", "none")

    assert (code, out, err) == (2, "", f"Error: {line}\n")
