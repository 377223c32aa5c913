"""Tables: what is cut, what is left out, and what never is."""

from jobs.cli.text_table import Column, fits, table_text

COLUMNS = (
    Column(title="ID"),
    Column(title="NAME", importance=3, least=6),
    Column(title="AGE", importance=1),
    Column(title="BEST", importance=2),
    Column(title="STATE"),
)
ROWS = [("train-20261123-203000-a1b2c3", "a-night-of-films", "3h02m", "auroc 0.98", "succeeded")]


def test_without_a_limit_everything_is_shown() -> None:
    assert table_text(COLUMNS, ROWS, None).splitlines() == [
        "ID                            NAME              AGE    BEST        STATE",
        "train-20261123-203000-a1b2c3  a-night-of-films  3h02m  auroc 0.98  succeeded",
    ]


def test_names_shrink_first() -> None:
    assert table_text(COLUMNS, ROWS, 70).splitlines() == [
        "ID                            NAME        AGE    BEST        STATE",
        "train-20261123-203000-a1b2c3  a-night-o…  3h02m  auroc 0.98  succeeded",
    ]


def test_then_the_least_important_column_is_left_out() -> None:
    assert table_text(COLUMNS, ROWS, 60).splitlines() == [
        "ID                            NAME     BEST        STATE",
        "train-20261123-203000-a1b2c3  a-nigh…  auroc 0.98  succeeded",
    ]


def test_ids_and_states_are_never_cut() -> None:
    assert table_text(COLUMNS, ROWS, 20).splitlines() == [
        "ID                            STATE",
        "train-20261123-203000-a1b2c3  succeeded",
    ]


def test_a_table_without_rows_is_its_heading() -> None:
    assert table_text(COLUMNS, [], 80) == "ID  NAME  AGE  BEST  STATE"


def test_an_empty_column_is_left_out_before_anything_is_cut() -> None:
    rows = [("train-20261123-203000-a1b2c3", "a-night-of-films", "3h02m", "", "succeeded")]

    shown = table_text(COLUMNS, rows, 68)

    assert shown.splitlines() == [
        "ID                            NAME              AGE    STATE",
        "train-20261123-203000-a1b2c3  a-night-of-films  3h02m  succeeded",
    ]


def test_what_is_enough_of_a_column_stays_while_less_important_columns_go() -> None:
    columns = (
        Column(title="ID"),
        Column(title="KIND", importance=1),
        Column(title="PROGRESS", importance=2, least=8, enough=20),
    )
    rows = [("train-20261123-203000-a1b2c3", "train", "train, epoch 120/200, 5 images/s")]

    shown = [table_text(columns, rows, width).splitlines()[1] for width in (70, 57, 56, 45)]

    assert shown == [
        "train-20261123-203000-a1b2c3  train  train, epoch 120/200, 5 images/s",
        "train-20261123-203000-a1b2c3  train  train, epoch 120/20…",
        "train-20261123-203000-a1b2c3  train, epoch 120/200, 5 i…",
        "train-20261123-203000-a1b2c3  train, epoch 1…",
    ]


def test_a_reason_is_cut_between_words_so_that_no_id_in_it_is_cut() -> None:
    columns = (Column(title="ID"), Column(title="WHY", importance=1, least=12, cuts_words=False))

    shown = table_text(columns, [("a1", "waits for train-20261123-203000-a1b2c3"), ("b2", "12345678 12345")], 24)

    assert shown.splitlines() == ["ID  WHY", "a1  waits for…", "b2  12345678 12345"]


def test_what_is_cut_at_a_comma_keeps_the_word_before_it() -> None:
    columns = (Column(title="ID"), Column(title="PROGRESS", importance=1, least=20, cuts_words=False))
    rows = [("a1", "train, epoch 78/200, 812 images/s"), ("b2", "train, epoch 7/200, 812 images/s")]

    shown = table_text(columns, rows, 24)

    assert shown.splitlines() == ["ID  PROGRESS", "a1  train, epoch 78/200…", "b2  train, epoch 7/200…"]


def test_a_table_fits_where_it_is_shown_whole() -> None:
    whole = table_text(COLUMNS, ROWS, None)
    width = max(map(len, whole.splitlines()))

    assert [fits(COLUMNS, ROWS, one) for one in (None, width, width - 1)] == [True, True, False]
