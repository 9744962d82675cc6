"""What the data of a run look like, and what is odd about them, for a person to read before anything is trained."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow.compute as pc

from hf_distill.data.csv_files import csv_files, csv_form
from hf_distill.data.fingerprints import hash_rows
from hf_distill.data.labels import MISSING_LABEL
from hf_distill.data.loading import Splits
from hf_distill.runs.preprocessing import Inputs, Reader
from hf_distill.runs.recipe.schema import Data, Recipe

_FEW_ROWS = 5  # of a class: too few to learn it from, or to draw an evaluation split from
_SHOWN = 8  # classes, and rows, that are named
_IMAGES_LOOKED_AT = 2_000


class DataSummary(NamedTuple):
    """What the data look like.

    Attributes:
        lines: each with its name: files, columns, rows, classes, lengths.
        odd: what is most likely not meant, a sentence each.
    """

    lines: list[tuple[str, str]]
    odd: list[str]


def summarize(recipe: Recipe, splits: Splits, inputs: Inputs) -> DataSummary:
    """Look at all rows of a run's data, as its last student reads them."""
    reader = inputs.reader(recipe.student)
    counts = _class_counts(splits)
    lines = [
        *_files(recipe.data),
        ("columns", "; ".join(_columns(recipe, splits))),
        ("rows", ", ".join(f"{role} {len(rows):,}" for role, rows in splits.named().items())),
        ("classes", _classes(counts, splits.label_names)),
        ("lengths", _lengths(splits, inputs, reader)) if recipe.is_text else ("sizes", _sizes(splits)),
    ]
    odd = [*_odd_labels(splits, counts), *_odd_inputs(recipe, splits)]
    return DataSummary(lines, odd)


# ---- What is there ----


def _files(data: Data) -> Iterator[tuple[str, str]]:
    files = [] if data.path is None else csv_files(Path(data.path).expanduser())
    if files:
        separator, encoding = csv_form(files, data.separator, data.encoding)
        shown = {"\t": "tab"}.get(separator, separator)
        found = "" if data.separator and data.encoding else " (found by looking; data.separator, data.encoding)"
        yield "files", f"{data.path}: values separated by {shown}, text in {encoding}{found}"


def _columns(recipe: Recipe, splits: Splits) -> Iterator[str]:
    data, columns = recipe.data, splits.columns
    named = {data.text_column, data.text_pair_column, data.image_column, data.label_column}
    kind = "image" if not recipe.is_text else "words" if recipe.task == "token-classification" else "text"
    for what, column in [*((kind, name) for name in columns.inputs), ("labels", columns.label)]:
        why = "named" if column in named else "the only one that fits" if what != "labels" else "by its name"
        yield f"{what} in {column!r} ({why})"


def _class_counts(splits: Splits) -> Counter[int]:
    column = splits.train.with_format("arrow")[:]["labels"].combine_chunks()
    values = pc.list_flatten(column) if str(column.type).startswith(("list", "large_list")) else column
    return Counter(
        dict(zip(*(np.asarray(each).tolist() for each in np.unique(values, return_counts=True)), strict=True))
    )


def _classes(counts: Counter[int], names: Sequence[str]) -> str:
    shown = [f"{names[place]} ({counts[place]:,})" for place in range(min(len(names), _SHOWN))]
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} in train: {', '.join(shown)}{more}"


def _lengths(splits: Splits, inputs: Inputs, reader: Reader) -> str:
    lengths = np.asarray(inputs.rows(reader, "train").with_format("numpy")["length"])
    text = f"tokens {_percentiles(lengths)}"
    if reader.max_length is None:
        return text
    full = np.flatnonzero(lengths == reader.max_length)
    columns, is_words = (
        splits.columns.inputs,
        isinstance(splits.train.features[splits.columns.inputs[0]], datasets.List),
    )
    rows = splits.train.select(full).with_format(None)
    whole = [[value or "" for value in rows[name]] for name in columns] if len(full) else []
    encoded = reader.processor(*whole, is_split_into_words=is_words, verbose=False)["input_ids"] if whole else []
    cut = sum(len(ids) > reader.max_length for ids in encoded)
    return f"{text}; {cut:,} of {len(lengths):,} texts ({cut / len(lengths):.1%}) are cut at {reader.max_length}"


def _sizes(splits: Splits) -> str:
    column = splits.columns.inputs[0]
    some = splits.train.select(range(0, len(splits.train), -(-len(splits.train) // _IMAGES_LOOKED_AT)))
    sizes = np.asarray([(image.width, image.height) for image in some[column]])
    if len(np.unique(sizes, axis=0)) == 1:
        return f"all {sizes[0][0]} x {sizes[0][1]} pixels"
    return f"pixels wide {_percentiles(sizes[:, 0])}; high {_percentiles(sizes[:, 1])}"


def _percentiles(values: np.ndarray) -> str:
    half, most = (int(np.percentile(values, share, method="inverted_cdf")) for share in (50, 95))
    return f"p50 {half:,}, p95 {most:,}, max {int(values.max()):,}"


# ---- What is odd ----


def _odd_labels(splits: Splits, counts: Counter[int]) -> Iterator[str]:
    names = splits.label_names
    missing, total = counts[MISSING_LABEL], sum(counts.values())
    if missing:
        share = f"{missing:,} of {total:,} train labels ({missing / total:.1%})"
        yield f"{share} are missing: such rows learn from the teacher alone"
    few = [f"{names[place]} ({counts[place]})" for place in range(len(names)) if counts[place] < _FEW_ROWS]
    if few:
        yield f"classes with fewer than {_FEW_ROWS} train rows: {_some(few)}"
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"[\W_]+", "", name.casefold()) or name, []).append(repr(name))
    for group in alike.values():
        if len(group) > 1:
            yield f"classes with nearly the same name: {' and '.join(group)}; if they are one, write them alike"


def _odd_inputs(recipe: Recipe, splits: Splits) -> Iterator[str]:
    columns = splits.columns.inputs
    for role, rows in splits.named().items():
        if recipe.task == "text-classification":
            for name in columns:
                text = pc.fill_null(rows.with_format("arrow")[:][name].combine_chunks(), "")
                blank = np.flatnonzero(np.asarray(pc.equal(pc.utf8_trim_whitespace(text), "")))
                if len(blank):
                    where = _some([str(row) for row in blank])
                    yield f"{len(blank):,} {role} texts in {name!r} are empty or blank (row {where})"
        digests = hash_rows(rows, columns).digests
        _, places, number = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
        again = len(digests) - len(number)
        if again:
            others = ""
            if recipe.task != "token-classification":
                pairs = np.stack([places.ravel(), np.asarray(rows.with_format(None)["labels"][:])], axis=1)
                pairs = np.unique(pairs[pairs[:, 1] != MISSING_LABEL], axis=0)
                twice = int(np.sum(np.unique(pairs[:, 0], return_counts=True)[1] > 1))
                others = f", {twice:,} of them with different labels" if twice else ""
            yield f"{again:,} {role} rows repeat another one{others}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
