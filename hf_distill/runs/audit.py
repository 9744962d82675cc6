"""Look for rows of a run whose labels, or whose predictions, are worth a second look."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from hf_distill.data.fingerprints import hash_rows
from hf_distill.data.labels import MISSING_LABEL
from hf_distill.data.loading import Splits
from hf_distill.evaluation.audit import Finding, conflicts, doubts, inherited
from hf_distill.evaluation.predictions import Predictions
from hf_distill.models.tasks import AUTO_CLASSES
from hf_distill.runs.compare import folds_of_training, labels_of, save_splits
from hf_distill.runs.evaluate import as_read, logits_of
from hf_distill.runs.opening import splits_of
from hf_distill.runs.recipe.reading import read_resolved
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.shared_teacher import taught_once
from hf_distill.teachers.labels import names_in_order

_FOLDER = "_audit"  # in the run folder: the teachers of the folds


def audit_run(
    run: Path, *, folds: int = 0, tell: Callable[[str], None] = lambda _: None
) -> tuple[list[Finding], list[tuple[str, int, int, int]], Callable[[Finding], str]]:
    """Find rows to look at, in the evaluation rows of a run and, with folds, in its training rows.

    Args:
        run: the output folder.
        folds: teachers to train, each on the other parts of the training rows, so that none has learned from the
            labels that it doubts; 0: the training rows are looked at for equal inputs alone.
        tell: is told what goes on.

    Returns:
        the findings, the most doubtful first in each kind; of each class the errors that the student inherits (see
        `evaluation.audit.inherited`); and what stands in a row.

    Raises:
        ValueError: it is no finished run, or one without a teacher in its predictions, or its data have changed.
    """
    predictions = Predictions.read(run)
    if "teacher" not in predictions.logits or predictions.words is not None:
        raise ValueError("an audit is for classifiers of whole rows")
    recipe = read_resolved(run / "recipe.yaml")
    splits = splits_of(recipe)
    evaluated = splits.evaluation if splits.test is None else splits.test
    if len(evaluated) != len(predictions.rows):
        raise ValueError(f"there are {len(evaluated):,} evaluation rows now, and were {len(predictions.rows):,}")
    rows = {"evaluation": evaluated, "train": splits.train}
    found = doubts(predictions, "evaluation")
    if folds:
        found += doubts(_crossfitted(run, recipe, splits, folds, tell), "train")
    found += _conflicts(rows, splits)
    inputs = splits.columns.inputs

    def shown(finding: Finding) -> str:
        row = rows[finding.split].with_format(None)[finding.row]
        return " / ".join(str(row[name]) for name in inputs) if recipe.is_text else ""

    order = {"label": 0, "conflict": 1, "student": 2}
    return sorted(found, key=lambda each: (order[each.kind], -each.doubt)), inherited(predictions), shown


def write_findings(found: Sequence[Finding], shown: Callable[[Finding], str], file: Path) -> None:
    """Write findings as parquet or CSV, with what stands in the rows where these are texts."""
    rows = [{**asdict(each), "input": shown(each)} for each in found]
    table = Dataset.from_list(rows or [{**asdict(Finding("", "", 0, None, None, None, 0.0)), "input": ""}])
    if not rows:
        table = table.select([])
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        table.to_csv(file, index=False)
    else:
        table.to_parquet(file)


def _crossfitted(run: Path, recipe: Recipe, splits: Splits, folds: int, tell: Callable[[str], None]) -> Predictions:
    """Return what teachers say of training rows that they have not seen."""
    if all(teacher.training is None for teacher in recipe.teachers):
        raise ValueError("--folds trains a teacher for each fold, and this run's came ready: leave it out")
    labels = labels_of(splits)
    logits = np.full((len(labels), len(splits.label_names)), np.nan, dtype=np.float32)
    for fold, (train, test) in enumerate(folds_of_training(splits, folds, recipe.data.split_seed), start=1):
        tell(f"fold {fold} of {folds}, teacher")
        place = run / _FOLDER / f"fold-{fold}-of-{folds}"
        data = save_splits(place / "data", splits, {"train": train, "test": test}, recipe)
        taught_once(str(run / "recipe.yaml"), [*data, "hub=null"], place, None)
        folder = place / "teacher" / "teacher"
        network = AUTO_CLASSES[recipe.task].from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=any(recipe.trusts_code_of(each) for each in recipe.teachers)
        )
        names = names_in_order(network.config.id2label)
        reader, collator = as_read(recipe, str(folder), network, splits.train.select(test), splits.columns.inputs)
        order = [names.index(name) for name in splits.label_names]
        logits[test] = logits_of(recipe, network, reader, collator)[0][:, order]
    return Predictions([*splits.label_names], np.arange(len(labels)), None, labels, {"teacher": logits})


def _conflicts(rows: dict[str, Dataset], splits: Splits) -> list[Finding]:
    digests, labels, places = [], [], []
    for split, each in rows.items():
        digests += [digest.tobytes() for digest in hash_rows(each, splits.columns.inputs).digests]
        numbers = each.with_format(None)["labels"]
        labels += [None if number == MISSING_LABEL else splits.label_names[number] for number in numbers]
        places += [(split, row) for row in range(len(each))]
    return conflicts(digests, labels, places)
