import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cluster.files import read_json, write_json
from cluster.run_paths import RunPaths
from tests import compared
from tests.cli_runs import on_a_terminal
from tests.compared import OF_A, OF_B, A, B, change, scored, succeed, three_classes
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.predictions import EvaluatedSplit, Predictions, read_about
from trainer.specs import SearchSpec, TrainSpec

say_there = compared.say_there


def test_two_models_are_compared_by_their_evaluations_of_the_test_split(say_there, settings):
    code, out, err = say_there("compare", A, B, "--json")

    found = json.loads(out)
    metrics = [read_json(RunPaths.of(settings.storage, run).result)["metrics"] for run in (OF_A, OF_B)]
    figures = {figure["name"]: figure for figure in found["comparisons"][0]["figures"]}
    assert err == ""
    assert (found["split"], found["images"], found["positive"], found["groups"]) == ("test", 24, "covid", None)
    assert [model["evaluation"] for model in found["models"]] == [OF_A, OF_B]
    for name, figure in figures.items():
        assert (figure["a"], figure["b"]) == pytest.approx([of_model[name] for of_model in metrics])
        assert figure["interval"][0] < figure["difference"] < figure["interval"][1]
    assert found["options"]["lr"] == [5e-4, 1e-3]
    assert code == (0 if found["passes"] else 1)


def test_the_auroc_of_several_classes_is_that_of_the_evaluation_after_temperature_scaling(say_there, settings):
    labels, made = three_classes(settings.storage, (3.0, 0.5))
    options = {"classes": ("covid", "normal", "viral"), "positive": "covid", "intervals": False}
    expected, unscaled = (
        [classification_metrics(p, labels, temperature=t, **options)["auroc"] for p, t in zip(made, each, strict=True)]
        for each in ((3.0, 0.5), (1.0, 1.0))
    )

    _, out, _ = say_there("compare", A, B, "--json")

    auroc = json.loads(out)["comparisons"][0]["figures"][-1]
    assert [auroc["a"], auroc["b"]] == pytest.approx(expected, abs=1e-12)
    assert [auroc["a"], auroc["b"]] != pytest.approx(unscaled, abs=1e-3)
    notes = json.loads(out)["notes"]
    assert "note: AUROC is the mean over the classes, of each against the rest" in notes
    assert not any("temperature" in note for note in notes)


def test_an_evaluation_of_several_classes_that_does_not_say_its_temperature_is_named(say_there, settings):
    three_classes(settings.storage, (None, 0.5))

    _, out, _ = say_there("compare", A, B, "--json")

    assert any(
        note.startswith("note: the evaluations of A do not say their temperature") for note in json.loads(out)["notes"]
    )


def test_a_search_is_compared_by_the_options_of_its_published_trial(say_there, settings):
    spec = SearchSpec(shards="/shards", trials=6, epochs=10, repeats=3).to_json()
    write_json(RunPaths.of(settings.storage, B).spec, spec)
    result = RunPaths.of(settings.storage, B).result
    write_json(result, {**read_json(result), "best": {"config": {"lr": 1e-3}}})
    write_json(RunPaths.of(settings.storage, A).spec, TrainSpec(shards="/shards", epochs=10, lr=5e-4).to_json())

    out = say_there("compare", A, B)[1]

    assert out[out.index("options that differ") :].splitlines()[:2] == [
        "options that differ  A       B",
        "lr                   0.0005  0.001",
    ]


def test_the_text_names_models_figures_verdict_and_options(say_there):
    _, out, _ = say_there("compare", A, B)

    lines = out.splitlines()
    assert lines[:3] == ["test split: 24 images", f"A  {A} ({OF_A})", f"B  {B} ({OF_B})"]
    assert [line.split("  ")[0] for line in lines[5:10]] == [
        "accuracy",
        "balanced accuracy",
        "sensitivity of covid",
        "specificity",
        "AUROC",
    ]
    assert "in AUROC: the 95 % interval of the difference is" in out
    assert any(line.split() == ["lr", "0.0005", "0.001"] for line in lines)


def test_a_model_compared_with_itself_passes(say_there):
    code, out, _ = say_there("compare", A, A)

    assert code == 0
    assert "B gives the same probabilities and decisions as A for every image." in out
    assert "options that differ: none known" in out


def test_a_much_worse_model_fails_and_a_much_better_one_passes(say_there, settings):
    labels = Predictions.read(RunPaths.of(settings.storage, OF_A).predictions).labels
    change(settings.storage, OF_A, **scored(labels, right=1.0))
    change(settings.storage, OF_B, **scored(labels, right=0.25))

    worse, said, _ = say_there("compare", A, B)
    better, _, _ = say_there("compare", B, A)

    assert (worse, better) == (1, 0)
    assert "B is worse than A by more than 0.02 in AUROC" in said


def test_a_small_difference_on_few_images_passes_and_is_said_to_show_little(say_there, settings):
    labels = Predictions.read(RunPaths.of(settings.storage, OF_A).predictions).labels
    change(settings.storage, OF_A, **scored(labels, right=1.0))
    change(settings.storage, OF_B, **scored(labels, right=23 / 24))

    within, said, _ = say_there("compare", A, B, "--metric", "accuracy", "--margin", "5%")
    beyond, fails, _ = say_there("compare", A, B, "--metric", "accuracy", "--margin", "4%")
    strict, _, _ = say_there("compare", A, B, "--metric", "accuracy", "--margin", "5%", "--strict")
    wide, _, _ = say_there("compare", A, B, "--metric", "accuracy", "--margin", "0.5", "--strict")

    assert (within, beyond, strict, wide) == (0, 1, 1, 0)
    assert "It is not shown that B is not worse than A by more than 0.05 in accuracy" in said
    assert "B is worse than A by more than 0.04 in accuracy on these images, but this can be chance: the" in " ".join(
        fails.split()
    )


def test_on_a_terminal_a_spinner_runs_while_models_are_compared(say_there, settings):
    said = say_there("compare", A, A, "--json")
    shown = on_a_terminal(settings, "compare", A, A, "--json", TERM="xterm")

    assert said[2] == ""
    assert "\x1b[?25l" in shown  # the cursor is hidden behind the spinner
    assert " comparing" in shown.partition("{")[0]
    assert json.loads(shown[shown.index("{") : shown.rindex("}") + 1])["passes"] is True


def test_a_page_says_passes_only_if_the_model_is_shown_not_to_be_worse(say_there, settings, tmp_path):
    labels = Predictions.read(RunPaths.of(settings.storage, OF_A).predictions).labels
    change(settings.storage, OF_A, **scored(labels, right=1.0))
    change(settings.storage, OF_B, **scored(labels, right=23 / 24))

    def verdict(*options: str) -> str:
        say_there("compare", A, B, "--metric", "accuracy", *options, "--html", str(tmp_path / "page.html"))
        return (tmp_path / "page.html").read_text().partition("<strong")[2].partition(">")[2].partition("<")[0]

    assert verdict("--margin", "4%") == "Does not pass."
    assert verdict("--margin", "5%") == "Not shown."
    assert verdict("--margin", "0.5") == "Passes."


def test_another_figure_that_is_worse_by_more_than_the_margin_fails_too(say_there, settings):
    old = Predictions.read(RunPaths.of(settings.storage, OF_A).predictions)
    good = scored(old.labels, right=1.0)
    change(settings.storage, OF_A, **good)
    change(settings.storage, OF_B, probabilities=good["probabilities"], decisions=np.ones_like(old.labels))

    code, out, _ = say_there("compare", A, B, "--margin", "0.3")

    assert code == 1
    assert "B is not worse than A by more than 0.3 in AUROC" in out
    assert "B is worse than A by more than 0.3 in sensitivity." in out


def test_different_decision_thresholds_are_named(say_there, settings):
    about = Predictions.read(RunPaths.of(settings.storage, OF_B).predictions).about
    change(settings.storage, OF_B, about=replace(about, threshold=0.25))

    _, same, _ = say_there("compare", A, A)
    _, different, _ = say_there("compare", A, B)

    assert "note: the decision thresholds differ" not in same
    assert "note: the decision thresholds differ: all metrics but AUROC depend on them" in different
    assert any(line.split() == ["decision", "threshold", "-", "0.25"] for line in different.splitlines())


def test_images_are_matched_by_identity_not_by_row(say_there, settings):
    old = Predictions.read(RunPaths.of(settings.storage, OF_A).predictions)
    shuffled = np.random.default_rng(0).permutation(len(old.labels))[:20]
    names = ("labels", "probabilities", "decisions", "groups", "samples")
    change(
        settings.storage,
        OF_B,
        ids=np.arange(20),
        **{name: getattr(old, name)[shuffled] for name in names},
    )

    code, out, _ = say_there("compare", A, B, "--json")

    found = json.loads(out)
    assert (code, found["images"], found["comparisons"][0]["identical_outputs"]) == (0, 20, True)
    assert found["notes"] == ["note: the models share 20 images; each has scored: A 24, B 20"]


def test_evaluations_without_a_common_image_are_refused(say_there, settings):
    change(settings.storage, OF_B, samples=np.arange(100, 124, dtype=np.uint8)[:, None].repeat(16, axis=1))

    code, out, err = say_there("compare", A, B)

    assert (code, out) == (1, "")
    assert err == (
        "Error: the evaluations have no image in common; evaluate all models on the same split of the same shards\n"
    )


def test_groups_are_those_of_the_data_set(say_there, settings):
    for run in (OF_A, OF_B):
        change(settings.storage, run, groups=np.arange(24) // 3)

    _, out, _ = say_there("compare", A, B)

    assert out.startswith("test split: 24 images of 8 groups\n")
    assert "McNemar by group" in out


def test_several_candidates_get_holm_adjusted_p_values(say_there):
    _, out, _ = say_there("compare", A, B, A, "--json")

    found = json.loads(out)
    assert [one["b"] for one in found["comparisons"]] == [B, A]
    accuracy = [one["figures"][0] for one in found["comparisons"]]
    assert accuracy[0]["p_holm"] == min(1.0, 2 * accuracy[0]["p"])
    assert "note: the intervals are not corrected for several candidates; p (Holm) is" in found["notes"]


def test_an_evaluation_run_or_a_folder_names_a_model_too(say_there, settings):
    _, by_id, _ = say_there("compare", A, B, "--json")

    _, by_evaluation, _ = say_there("compare", OF_A, str(settings.storage / "runs" / B), "--json")

    assert json.loads(by_evaluation)["comparisons"][0]["figures"] == json.loads(by_id)["comparisons"][0]["figures"]
    assert json.loads(by_evaluation)["options"]["lr"] == [5e-4, 1e-3]


def test_the_valid_split_is_compared_by_the_evaluation_at_the_end_of_each_training(say_there):
    code, out, _ = say_there("compare", A, B, "--split", "valid", "--json")

    found = json.loads(out)
    assert [model["evaluation"] for model in found["models"]] == [A, B]
    assert "note: models are chosen on the valid split: their metrics there are optimistic" in found["notes"]
    assert code in {0, 1}


def test_a_comparison_out_of_fold_and_without_a_class_says_so(say_there, settings):
    for run_id in (A, B):
        about = read_about(RunPaths.of(settings.storage, run_id).predictions)
        change(settings.storage, run_id, about=replace(about, split="train+valid"), labels=np.ones(24, dtype=np.int64))

    notes = json.loads(say_there("compare", A, B, "--split", "train+valid", "--json")[1])["notes"]

    assert notes[0].startswith("note: the metrics are out of fold: each image was scored by a head")
    assert notes[0].endswith("intervals and tests are about other images, not about other folds or seeds")
    assert notes[1] == (
        'note: no shared image is of "covid": means over the classes are without it, and what needs it is undefined'
    )


def test_a_model_without_an_evaluation_gets_the_command_that_makes_one(say_there, settings):
    shutil.rmtree(settings.storage / "runs" / OF_B)

    code, out, err = say_there("compare", A, B)

    assert (code, out) == (1, "")
    assert err == (
        f"Error: {B} has no evaluation of the test split; run: nightshift evaluate {B} /shards --split test --wait\n"
    )


def test_an_evaluation_of_other_weights_does_not_count(say_there, settings):
    about = read_about(RunPaths.of(settings.storage, OF_B).predictions)
    change(settings.storage, OF_B, about=EvaluatedSplit(**{**vars(about), "model": "0" * 64}))

    code, _, err = say_there("compare", A, B)

    assert (code, f"{B} has no evaluation of the test split" in err) == (1, True)


def test_the_newest_evaluation_of_the_same_data_is_used(say_there, settings):
    about = read_about(RunPaths.of(settings.storage, OF_B).predictions)
    newer = "evaluate-20261125-203000-cccccc"
    shutil.copytree(settings.storage / "runs" / OF_B, settings.storage / "runs" / newer)
    succeed(settings.storage, newer, "evaluate")
    change(settings.storage, newer, about=EvaluatedSplit(**{**vars(about), "data": "f" * 64}))

    _, other_data, _ = say_there("compare", A, B, "--json")
    change(settings.storage, newer, about=about)
    _, same_data, _ = say_there("compare", A, B, "--json")

    assert json.loads(other_data)["models"][1]["evaluation"] == OF_B
    assert json.loads(same_data)["models"][1]["evaluation"] == newer


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ([A], (2, "1 model is given; give 2 to 26, the reference first")),
        ([A, "nothing"], (1, "nothing is neither a model nor an evaluation; give a run id")),
        ([A, "evaluate-2026"], (1, "2 run ids begin with 'evaluate-2026', such as ")),
        ([A, B, "--positive", "flu"], (2, "--positive 'flu' is not a class; use one of covid, normal")),
        ([A, OF_B, "--split", "valid"], (2, f"{OF_B} is an evaluation of the test split, not of valid")),
        ([A, B, "--margin", "nan"], (2, "'nan' is not from 0% to 100%")),
        ([A, B, "--margin", "-1%"], (2, "'-1%' is not from 0% to 100%")),
        ([A, B, "--html", "no/page.html"], (2, "--html no/page.html cannot be written; name a file in a folder")),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(say_there, arguments, refusal):
    wanted, line = refusal

    code, out, err = say_there("compare", *arguments)

    assert (code, out, line in err) == (wanted, "", True), err


def test_an_evaluation_of_an_earlier_version_gets_the_command_that_repeats_it(say_there, settings):
    change(settings.storage, OF_B, about=None, samples=None, groups=None, decisions=None)

    code, _, err = say_there("compare", OF_A, OF_B)

    assert code == 1
    assert f"run: nightshift evaluate {B} /shards --split test --wait" in err


def test_evaluations_with_other_positive_classes_need_the_option(say_there, settings):
    about = read_about(RunPaths.of(settings.storage, OF_B).predictions)
    change(settings.storage, OF_B, about=EvaluatedSplit(**{**vars(about), "positive": "normal"}))

    refused, _, err = say_there("compare", A, B)
    _, out, _ = say_there("compare", A, B, "--positive", "normal", "--json")

    assert refused == 2
    assert "different positive classes, covid, normal; choose with --positive" in err
    assert json.loads(out)["positive"] == "normal"


def test_a_damaged_run_does_not_hide_the_others(say_there, settings):
    damaged = RunPaths.of(settings.storage, "evaluate-20261126-203000-dddddd")
    damaged.folder.mkdir()
    write_json(damaged.result, {})
    damaged.predictions.write_bytes(b"no tensors")

    code, _, err = say_there("compare", A, A)

    assert (code, err) == (0, "")


def test_the_page_has_figures_curves_and_options(say_there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    _, _, err = say_there("compare", A, B, "--html", "page.html")

    page = (tmp_path / "page.html").read_text()
    assert err == f"page     {tmp_path / 'page.html'}\n"
    assert all(text in page for text in ("Balanced accuracy", "ROC curves", "p</th>", A, OF_B, "<code>0.001</code>"))
    assert page.count('class="line ') == 3  # chance and both models
    figures = [cell for row in page.split('<tr><th scope="row">')[1:6] for cell in row.split('<td class="n">')[1:3]]
    assert all(re.fullmatch(r"\d\.\d{4}</td>", figure) for figure in figures), figures
    assert "http" not in page.replace("http://www.w3.org", "")
