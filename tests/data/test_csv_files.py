"""CSV files as other programs write them: found out by looking, or refused with the reason."""

from pathlib import Path

import pytest

from hf_distill.data.csv_files import csv_form
from hf_distill.data.loading import load_rows

ROWS = ["text{0}label", "good, really{0}pos", "bad film{0}neg", "caf\u00e9{0}pos"]


def write(name: str, text: str, encoding: str = "utf-8") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.filterwarnings("ignore:data. .* is not UTF-8")
def test_separator_and_encoding_are_found_by_looking(separator, encoding):
    """Excel of another country: one column with a semicolon in its name, or a traceback of a codec."""
    path = write("x.csv", "\n".join(ROWS).format(separator) + "\n", encoding)
    assert csv_form([path]) == (separator, encoding)
    rows = load_rows(path=str(path))["train"]
    assert rows.column_names == ["text", "label"]
    assert rows["text"][:] == ["good, really", "bad film", "caf\u00e9"]


def test_a_comma_wins_where_texts_have_other_marks():
    """A text with a semicolon in each row, taken for two columns."""
    path = write("x.csv", 'text,label\n"one; two, three",a\nfour; five,b\n')
    assert csv_form([path])[0] == ","
    assert load_rows(path=str(path))["train"][0] == {"text": "one; two, three", "label": "a"}


def test_what_is_named_is_taken():
    """A guess that cannot be overruled."""
    path = write("x.csv", "a;b,c\nd;e,f\n")
    assert csv_form([path], ";", "latin-1") == (";", "latin-1")
    assert load_rows(path=str(path), separator=";")["train"].column_names == ["a", "b,c"]


def test_an_encoding_that_is_guessed_is_told():
    """Names with wrong accents in a published label list."""
    write("x.csv", "\n".join(ROWS).format(";"), "cp1252")
    with pytest.warns(UserWarning, match=r"x\.csv is not UTF-8 and was read as cp1252 .*data\.encoding"):
        csv_form([Path("x.csv")])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "text,label\nhello, you,pos\n",
            {},
            "2 columns .*and 3 values in the row that begins with 'hello'",
        ),
        ("text\nhello, you\n", {}, "put values with ',' in them in quotes"),
        ("text,label\ncaf\u00e9,x\n", {"encoding": "ascii"}, "x.csv is not ascii: .*data.encoding"),
        ("text,label\na,x\n", {"encoding": "utf-88"}, "x.csv is not utf-88: .*data.encoding"),
        ("", {}, "it has no rows"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(text, options, message):
    """Pandas makes the first of too many values a row's name, and every column is the one beside it."""
    write("x.csv", text)
    with pytest.raises(ValueError, match=message):
        load_rows(path="x.csv", **options)


def test_a_column_that_one_file_lacks_is_named():
    """All the columns of both files, to find the one that differs in."""
    write("data/train.csv", "text,label\na,x\n")
    write("data/test.csv", "text,label,extra\na,x,1\n")
    with pytest.raises(ValueError, match=r"test\.csv has the column 'extra', which train\.csv lacks"):
        load_rows(path="data")
