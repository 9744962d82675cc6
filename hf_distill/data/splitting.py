"""Draw splits by classes and contents, and find what is wrong with the splits of a run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_distill.data.fingerprints import DIGEST_SIZE, digests_with, hash_rows
from hf_distill.data.labels import MISSING_LABEL

KEYS = {"train": "train_split", "evaluation": "eval_split", "test": "test_split"}
"""The key of each split's role in a recipe."""

_MOST_CLASSES = 5  # that are named
_NO_CLASS = np.iinfo(np.int64).max


def draw(rows: Dataset, inputs: Sequence[str], fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Draw parts of a data set at random, with the fraction of each class in each part.

    What is drawn depends on the contents of the rows and the seed alone, not on the order of the rows. Rows with equal
    inputs stay together. A class with few inputs has at least one in the rest, then one in each part. Rows without
    a label stay in the rest, unless an equal input has one. Rows of words with tags have no class: they are drawn
    whatever their tags are.
    """
    contents, group, sizes = np.unique(_contents(rows, inputs), return_inverse=True, return_counts=True)
    digests = contents.view(np.uint8).reshape(-1, DIGEST_SIZE)
    order = np.argsort(_comparable(digests_with({"seed": seed}, (digest.tobytes() for digest in digests))))
    labels = np.array([_class(label) for label in _labels(rows)], np.int64)
    classes = np.full(len(contents), _NO_CLASS)  # of equal inputs with several labels, the lowest
    np.minimum.at(classes, group, np.where(labels == MISSING_LABEL, _NO_CLASS, labels))
    order = order[np.argsort(classes[order], kind="stable")]
    found, starts = np.unique(classes[order], return_index=True)
    part = np.zeros(len(contents), np.int64)
    for label, left in zip(found, np.split(order, starts[1:]), strict=True):
        if label == _NO_CLASS:
            continue
        num_rows = int(sizes[left].sum())
        for place, fraction in enumerate(fractions, start=1):
            most = max(len(left) - 1 - (len(fractions) - place), min(1, len(left) - 1))
            part[_taken(left, sizes[left], max(1, round(fraction * num_rows)), most)] = place
            left = left[part[left] == 0]
    return [np.flatnonzero(part[group] == place) for place in range(len(fractions) + 1)]


def check_splits(
    splits: Mapping[str, Dataset],
    specs: Mapping[str, str | float],
    inputs: Sequence[str],
    label_names: Sequence[str],
) -> list[str]:
    """Find what makes results on some splits mean less than they seem to: missing classes, and equal inputs.

    Raises:
        ValueError: a split to evaluate on has one class only.
    """
    classes = {role: _classes_in(rows) for role, rows in splits.items()}
    for role, present in classes.items():
        if role != "train" and len(present) == 1:
            raise ValueError(
                f"data: all labels of {_named(role, specs)} are of one of the {len(label_names)} classes, "
                f"{label_names[present.pop()]}: a model that always predicts that would be perfect. "
                f"{_remedy(specs[role])}"
            )
    found = []
    for role in [role for role in splits if role != "train"]:
        found += _missing(classes, "train", role, specs, label_names)
        found += _missing(classes, role, "train", specs, label_names)
    one_source = {"train", *(role for role, spec in specs.items() if not isinstance(spec, str))}  # none equal, as drawn
    pairs = [(role, other) for role, other in combinations(splits, 2) if not {role, other} <= one_source]
    contents = {role: _contents(splits[role], inputs) for role in {role for pair in pairs for role in pair}}
    for role, other in pairs:
        num_rows, num_relabelled = _overlap(splits, contents, role, other)
        if num_rows:
            labels = f", {num_relabelled:,} of them with another label" if num_relabelled else ""
            found.append(
                f"data: {num_rows:,} of the {len(splits[other]):,} rows of {_named(other, specs)} have inputs that "
                f"{_named(role, specs)} has, too{labels}: results on these do not show what a model does with new "
                "inputs. Take them out, or use data.eval_split: 0.1, which keeps equal inputs together"
            )
    return found


def _missing(
    classes: Mapping[str, set[int]],
    role: str,
    other: str,
    specs: Mapping[str, str | float],
    label_names: Sequence[str],
) -> list[str]:
    """Return a warning if a split lacks classes that another one has; a split without labels lacks none."""
    missing = sorted(classes[other] - classes[role])
    if not missing or not classes[role]:
        return []
    names = ", ".join(label_names[label] for label in missing[:_MOST_CLASSES])
    more = ", ..." if len(missing) > _MOST_CLASSES else ""
    effect = "no student learns them from labels" if role == "train" else "results on it do not cover them"
    return [
        f"data: {_named(role, specs)} has no row of {len(missing)} of the {len(classes[other])} classes that "
        f"{_named(other, specs)} has ({names}{more}): {effect}. {_remedy(specs[other if role == 'train' else role])}"
    ]


def _overlap(
    splits: Mapping[str, Dataset], contents: Mapping[str, np.ndarray], role: str, other: str
) -> tuple[int, int]:
    """Count the rows of the other split whose inputs are in the first, and those of them that no label agrees with."""
    shared = np.flatnonzero(np.isin(contents[other], contents[role]))
    if not len(shared):
        return 0, 0
    known = defaultdict(set)
    labels = _labels(splits[role])
    for row in np.flatnonzero(np.isin(contents[role], contents[other])):
        if _class(labels[row]) != MISSING_LABEL:
            known[contents[role][row]].add(str(labels[row]))
    labels = _labels(splits[other])
    labelled = [row for row in shared if contents[other][row] in known and _class(labels[row]) != MISSING_LABEL]
    return len(shared), sum(str(labels[row]) not in known[contents[other][row]] for row in labelled)


def _named(role: str, specs: Mapping[str, str | float]) -> str:
    return f"the {role} split (data.{KEYS[role]}: {specs[role]})"


def _remedy(spec: str | float) -> str:
    if isinstance(spec, str):
        return "If the rows are ordered by class, divide them at random: data.eval_split: 0.1"
    return "A class is in both splits if it has two different inputs"


def _contents(rows: Dataset, inputs: Sequence[str]) -> np.ndarray:
    """Return one value of 16 bytes for each row, equal for equal inputs."""
    return _comparable(hash_rows(rows, inputs).digests)


def _comparable(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).view(f"S{DIGEST_SIZE}").ravel()


def _taken(left: np.ndarray, sizes: np.ndarray, num_rows: int, most: int) -> list[int]:
    """Return at most so many of some groups, the first that have so many rows together."""
    taken: list[int] = []
    for group, size in zip(left.tolist(), sizes.tolist(), strict=True):
        if len(taken) == most or num_rows == 0:
            break
        if size <= num_rows:
            taken.append(group)
            num_rows -= size
    return taken or left[np.argsort(sizes, kind="stable")][: min(most, 1)].tolist()


def _labels(rows: Dataset) -> list[Any]:
    return rows.with_format(None)["labels"][:]  # type: ignore[no-any-return]


def _class(label: Any) -> int:
    """Return a row's class; of words with tags one and the same for all rows in which a word has one."""
    if isinstance(label, list):
        return MISSING_LABEL if all(tag == MISSING_LABEL for tag in label) else 0
    return int(label)


def _classes_in(rows: Dataset) -> set[int]:
    column = rows.select_columns("labels").with_format("arrow")[:]["labels"]
    if pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    return set(column.unique().to_pylist()) - {MISSING_LABEL}
