"""How CSV files are written: what separates their values, and in which encoding."""

import codecs
import csv
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SEPARATORS = (",", ";", "\t", "|")
_ROWS_LOOKED_AT = 50
_BYTES_AT_ONCE = 1 << 20
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def csv_files(path: Path) -> list[Path]:
    """Return the CSV and TSV files that a path names: the file itself, or those in a folder."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in files if file.suffix.lower() in (".csv", ".tsv") and file.is_file()]


def csv_form(files: Sequence[Path], separator: str | None = None, encoding: str | None = None) -> tuple[str, str]:
    """Return the separator and the encoding of CSV files, found by looking where they are not given.

    Raises:
        ValueError: one file has a column that another one lacks, or cannot be decoded.
    """
    if encoding is None:
        odd, encoding = next(
            ((file, found) for file in files if (found := _encoding(file)) != "utf-8"), (None, "utf-8")
        )
        if encoding in ("cp1252", "latin-1"):
            warnings.warn(
                f"data: {odd} is not UTF-8 and was read as {encoding} (Western European): if its accents are wrong, "
                "name its encoding (data.encoding)",
                UserWarning,
                stacklevel=2,
            )
    separator = separator or ("\t" if files[0].suffix.lower() == ".tsv" else _separator(files[0], encoding))
    rows = {file: _rows(file, separator, encoding, _ROWS_LOOKED_AT) for file in files}
    headers = {file: found[0] for file, found in rows.items()}
    for file, (header, *others) in rows.items():
        longer = next((row for row in others if len(row) > len(header)), None)
        if longer is not None:  # pandas would shift the columns
            raise ValueError(
                f"{file.name} has {len(header)} columns ({', '.join(header)}), and {len(longer)} values in the row "
                f"that begins with {longer[0][:40]!r}: put values with {separator!r} in them in quotes"
            )
    for file, (one, other) in itertools.product(files[1:], ((0, 1), (1, 0))):
        pair = (files[0], file)
        more = [name for name in headers[pair[one]] if name not in headers[pair[other]]]
        if more:
            raise ValueError(
                f"{pair[one].name} has the column {more[0]!r}, which {pair[other].name} lacks (it has "
                f"{', '.join(headers[pair[other]])}): give all files the same columns"
            )
    return separator, encoding


def _encoding(file: Path) -> str:
    """Return the encoding that a file's first bytes mark, or the first one in which it can be read."""
    with file.open("rb") as stream:
        start = stream.read(4)
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    return marked or next((name for name in ("utf-8", "cp1252") if _can_be_read(file, name)), "latin-1")


def _can_be_read(file: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with file.open("rb") as stream:
            while block := stream.read(_BYTES_AT_ONCE):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _separator(file: Path, encoding: str) -> str:
    """Return the separator by which all rows that are looked at have as many values as the header, and most of them."""

    def columns(separator: str) -> int:
        rows = _rows(file, separator, encoding, _ROWS_LOOKED_AT)
        counts = {len(row) for row in rows if row}
        return counts.pop() if len(counts) == 1 else 1

    return max(_SEPARATORS, key=columns)


def _rows(file: Path, separator: str, encoding: str, number: int) -> list[list[str]]:
    try:
        with file.open(newline="", encoding=encoding) as stream:
            return list(itertools.islice(csv.reader(stream, delimiter=separator), number)) or [[]]
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"{file.name} is not {encoding}: {error}. Name its encoding: data.encoding=latin-1") from None
    except csv.Error:
        return [[]]


def reading_options(files: Sequence[Path], separator: str | None, encoding: str | None) -> dict[str, Any]:
    """Return how `datasets` reads CSV files."""
    found, of_text = csv_form(files, separator, encoding)
    # Without these, words such as None, NA and null are read as missing, be they labels or texts.
    return {"keep_default_na": False, "na_values": [""], "sep": found, "encoding": of_text}
