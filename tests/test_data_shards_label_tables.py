import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import SourceError
from data_shards.pack.labels.cells import labels_of, whole_numbers
from data_shards.pack.labels.table_text import read_text_rows
from data_shards.pack.labels.tables import read_table
from tests.labelled import refused, scanned, source

# Text of a cell: anything that can be typed or pasted. Blanks at the ends are no part of it, ="..." is Excel's.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0\r\ufeff\xa0", exclude_categories=["Cs"])
TEXT = st.text(CHARACTERS, max_size=12)
CELL = TEXT.map(str.strip).filter(lambda text: not text.startswith('="'))
WESTERN = st.text("abcäöüéñß€ ,;|'\"\n0123456789-_./\\", max_size=12).map(str.strip)
PLAIN = st.text("abcdefg0123456789._-/", min_size=1, max_size=8)


def rows_of(cells, *, first=PLAIN):
    """Draw rows of one width, of which no row and no last column is blank."""
    return st.integers(2, 4).flatmap(
        lambda width: st.tuples(
            st.tuples(*[first] * width),
            st.lists(st.tuples(*[cells] * (width - 1), first), min_size=1, max_size=6),
        ).map(lambda drawn: [drawn[0], *drawn[1]])
    )


def written(rows, separator=",", newline="\r\n", quoting=csv.QUOTE_MINIMAL):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=newline, quoting=quoting).writerows(rows)
    return text.getvalue()


def has_header(_):
    return True


@given(
    rows_of(CELL),
    st.sampled_from(",;\t"),
    st.sampled_from(["\r\n", "\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
)
@settings(max_examples=100, deadline=None)
def test_what_is_written_in_any_dialect_is_read_back_exactly(rows, separator, newline, quoting, encoding):
    raw = written(rows, separator, newline, quoting).encode(encoding)

    assert read_text_rows(raw, "t.csv").rows == rows


@given(rows_of(WESTERN), st.sampled_from(",;\t"))
@settings(max_examples=100, deadline=None)
def test_western_european_text_of_windows_is_read_back_exactly(rows, separator):
    raw = written(rows, separator).encode("cp1252")

    assert read_text_rows(raw, "t.csv").rows == rows


@given(rows_of(PLAIN), st.sampled_from("| "))
@settings(max_examples=100, deadline=None)
def test_bars_and_blanks_separate_where_nothing_else_does(rows, separator):
    raw = "\n".join(separator.join(row) for row in rows).encode()

    assert read_text_rows(raw, "t.txt").rows == rows


@given(rows_of(CELL))
@settings(max_examples=50, deadline=None)
def test_a_parquet_file_is_read_back_exactly(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    names = [f"c{number}" for number in range(len(rows[0]))]
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)

    table = read_table(path, "t.parquet", has_header)

    assert (table.columns, table.rows) == (tuple(names), rows)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("sep=;\r\na;b,c\r\n1;2,5\r\n", [("a", "b,c"), ("1", "2,5")]),
        ('"sep=|"\na|b\n1|2\n', [("a", "b"), ("1", "2")]),
        ("a,b,,\n1,2,,\n,,,\n3,4,,\n\n", [("a", "b"), ("1", "2"), ("3", "4")]),
        ("a,b,c\n1,2,3\n4\n", [("a", "b", "c"), ("1", "2", "3"), ("4", "", "")]),
        (",a,b\n0,x,y\n", [("", "a", "b"), ("0", "x", "y")]),
        ("a b\nx 1 2\ny 3 4\n", [("", "a", "b"), ("x", "1", "2"), ("y", "3", "4")]),
        ('a,b\n"=""0001""",x\n', [("a", "b"), ("0001", "x")]),
        ("a, b\n 1 ,\xa02\n", [("a", "b"), ("1", "2")]),
        ("Image Index\na b.png\nc.png\n", [("Image Index",), ("a b.png",), ("c.png",)]),
        ("  1  a.png   x\n 10  b.png   y\n", [("1", "a.png", "x"), ("10", "b.png", "y")]),
        ("Image Index,Finding Labels\nx.png,A|B\n", [("Image Index", "Finding Labels"), ("x.png", "A|B")]),
        ('a,b\n"x\ny",1\n', [("a", "b"), ("x\ny", "1")]),
        ("", []),
    ],
)
def test_habits_of_spreadsheets_and_programs_are_read(text, rows):
    assert read_text_rows(text.encode(), "t.csv").rows == rows


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a,b\n1,2\n3,4,5\n", "t.csv: line 3 has 3 cells, but the first line has 2; put quotes around"),
        (b'a,b\n1,2\n"3,4\n5,6\n', "t.csv: the quotes from line 3 on do not match; write a quote inside"),
        (b"a,b\n1,\0\n", "t.csv: line 2 has a NUL character, so it is no text"),
        (b"a,b\n\x81,\x8d\n", "t.csv is neither UTF-8, UTF-16 nor Windows-1252; save it as CSV in UTF-8"),
        (b"PK\x03\x04xl/workbook.xml", "t.csv is an Excel or OpenDocument sheet, or an archive; save the table as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "t.csv is an old Excel sheet; save the table as CSV"),
        (b"\x1f\x8b\x08\0cut", "t.csv is a damaged gzip file"),
        (b"PAR1 and no more", "t.csv is a damaged Parquet file"),
        (b"", "t.csv is empty; give a table"),
        (b"a,b\n", "t.csv has no rows; give a table"),
        (b'a,b\n"' + b"x" * 2_000_000 + b'",1\n', "t.csv: line 2 has a cell of more than 1048576 characters"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, raw, text):
    (tmp_path / "t.csv").write_bytes(raw)

    with pytest.raises(SourceError) as caught:
        read_table(tmp_path / "t.csv", "t.csv", has_header)

    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_compressed_table_is_read_whatever_its_name(tmp_path):
    (tmp_path / "t.csv").write_bytes(gzip.compress(b"a,b\n1,2\n"))

    table = read_table(tmp_path / "t.csv", "t.csv", has_header)

    assert (table.columns, table.rows, table.place(0)) == (("a", "b"), [("1", "2")], "t.csv line 2")


def test_columns_of_a_parquet_file_become_text_and_images_are_left_out(tmp_path):
    rows = [
        {"image": {"bytes": b"x"}, "raw": b"y", "id": 7, "share": 1.0, "ok": True, "none": None, "labels": ["a", "b"]},
        {"image": {"bytes": b"x"}, "raw": b"y", "id": 8, "share": None, "ok": False, "none": None, "labels": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")

    table = read_table(tmp_path / "t.parquet", "t.parquet", has_header)

    assert table.columns == ("id", "share", "ok", "none", "labels")
    assert table.rows == [("7", "1.0", "True", "", '["a", "b"]'), ("8", "", "False", "", "[]")]


@given(st.lists(st.text(min_size=1, max_size=8).map(str.strip).filter(bool), unique=True, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_list_in_a_cell_is_read_as_json_and_as_python_write_it(labels):
    assert labels_of(json.dumps(labels), "|") == tuple(labels)
    assert labels_of(json.dumps(labels, ensure_ascii=False), "|") == tuple(labels)


@pytest.mark.parametrize(
    ("cell", "separator", "labels"),
    [
        ("A|B", "|", ("A", "B")),
        ("A|B", None, ("A|B",)),
        ("A; B;A;", ";", ("A", "B")),
        ("['pleural effusion', 'normal']", "|", ("pleural effusion", "normal")),
        ("['a' 'b']", "|", ("a", "b")),
        ("""["it's", 'x']""", "|", ("it's", "x")),
        ("[a, b]", "|", ("a", "b")),
        ("[' ', 'a ']", "|", ("a",)),
        ("[]", "|", ()),
        ("", "|", ()),
        ('{"choices": ["Cat", "Dog, big"]}', "|", ("Cat", "Dog, big")),  # as Label Studio writes several choices
        ('{"choice": ["Cat"]}', "|", ('{"choice": ["Cat"]}',)),
    ],
)
def test_labels_in_a_cell_are_parted(cell, separator, labels):
    assert labels_of(cell, separator) == labels


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["1.0", "0.0", ""], {"1.0": "1", "0.0": "0"}),
        (["1,0", "2"], {"1,0": "1"}),
        (["1.0", "2.5"], {"1.0": "1"}),
        (["1.0", "v1.0"], {}),
        (["007", "1"], {}),
        (["-1.0", "NaN"], {"-1.0": "-1"}),
    ],
)
def test_whole_numbers_are_recognized_in_a_column_of_numbers(cells, numbers):
    assert whole_numbers(cells) == numbers


def test_lines_of_comments_above_the_rows_are_passed_over():
    text = "#Image CLASS-ID SPECIES\n#SPECIES: 1:Cat 2:Dog\nAbyssinian_1 1 1\npug_2 27 2\n"  # the Oxford-IIIT pets

    found = read_text_rows(text.encode(), "list.txt")

    assert found.rows == [("Abyssinian_1", "1", "1"), ("pug_2", "27", "2")]
    assert found.lines == [3, 4]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_last_of_several_lines_with_a_hash_is_the_header_if_it_has_the_cells_of_the_rows(separator):
    text = f"# version 2, of May\n#file{separator}label\na.png{separator}x\n"

    found = read_text_rows(text.encode(), "list.csv")

    assert found.rows == [("#file", "label"), ("a.png", "x")]
    assert found.lines == [2, 3]


def test_a_sentence_in_the_last_of_several_lines_with_a_hash_is_no_header():
    found = read_text_rows(b"# of a tool\n# version 2, of May\nfile,label\na.png,x\n", "list.csv")

    assert found.rows == [("file", "label"), ("a.png", "x")]


def test_a_single_line_with_a_hash_is_the_header():
    assert read_text_rows(b"#,file,label\n1,a.png,x\n", "t.csv").rows[0] == ("#", "file", "label")


@pytest.mark.parametrize(
    "text", ['{"images": [{"id": 1}]}', '\n[ {"file": "a.png"}]', '{"file_name": "a.png"}\n{}\n', '\ufeff{\n "a": 1}']
)
def test_json_is_refused_with_what_to_write_instead(tmp_path, text):
    folder = source(tmp_path, ["a.png", "b.png"])
    (folder / "labels.json").write_text(text)

    refused("labels.json is JSON, not a table; write its images and labels to a CSV with the columns file and label",
            folder, "labels.json")  # fmt: skip


def test_a_row_that_begins_with_an_identifier_in_braces_is_no_json(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"])
    (folder / "t.csv").write_text("{3F2504E0-4F89},a.png,x\n{3F2504E1-4F89},b.png,y\n")

    found = scanned(folder, "t.csv", label_column="3")

    assert [(image.name, image.label) for image in found.images] == [("a.png", "x"), ("b.png", "y")]


def test_a_joined_table_about_other_images_is_refused(tmp_path):
    folder = source(
        tmp_path,
        ["train/a.png", "train/b.png", "test/c.png"],
        train_csv=["image_id,reader,x,y", "a,R1,1,0", "b,R1,0,1"],
        test_csv=["image_id,x,y", "c,1,0"],
    )

    refused(
        "no row of test.csv has the values of a row of train.csv in the columns that both have (image_id, x, y); if it "
        "is about other images, give both tables the same columns",
        folder,
        "train.csv",
        "test.csv",
    )
