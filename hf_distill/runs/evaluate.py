"""Evaluate a finished run's student, teacher or baseline on new data."""

import csv
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    default_data_collator,
)

import hf_distill.models  # noqa: F401  (registers the architectures that Transformers lacks)
from hf_distill.data.images import ImageRows, check_images
from hf_distill.data.labels import MISSING_LABEL, index_labels
from hf_distill.data.loading import find_columns, load_rows
from hf_distill.data.processors import max_tokens
from hf_distill.data.text import tokenize_text, tokenize_words
from hf_distill.evaluation.metrics import Metrics
from hf_distill.evaluation.predictor import predict
from hf_distill.models.tasks import AUTO_CLASSES
from hf_distill.runs.recipe.reading import read_resolved
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.recipe.settings import training_arguments
from hf_distill.runs.workspace import finished_stages
from hf_distill.teachers.labels import names_in_order
from hf_distill.teachers.loading import forward_parameters


class Predictions(NamedTuple):
    """What a model says of new data.

    Attributes:
        rows: the data.
        inputs: the columns that the model reads.
        label_names: of the classes, in the order of the probabilities.
        probabilities: `(rows, num_labels)`, or for each row `(words, num_labels)`.
        labels: of each row, or of its words; -100 where there is none.
        metrics: on what has a label; empty if nothing has.
    """

    rows: Dataset
    inputs: tuple[str, ...]
    label_names: list[str]
    probabilities: list[np.ndarray]
    labels: list[np.ndarray]
    metrics: dict[str, float]

    @property
    def num_labels(self) -> int:
        """Return how many rows, or words, have a label."""
        return sum(int(np.sum(each != MISSING_LABEL)) for each in self.labels)


def evaluate_run(run: Path, data: str, *, model: str = "student", split: str | None = None) -> Predictions:
    """Predict the rows of a file or folder with a model of a finished run, and measure it where there are labels.

    Raises:
        ValueError: the folder holds no such model, or the data are not as those of the run were.
    """
    recipe, folder = _read(run, model)
    wanted = recipe.data
    found = load_rows(path=data, separator=wanted.separator, encoding=wanted.encoding)
    rows = _split(found, split)
    network = AUTO_CLASSES[recipe.task].from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=recipe.trusts_code_of(recipe.student)
    )
    names = names_in_order(network.config.id2label)
    columns, rows = _labelled(recipe, rows, names)
    reader, collator = _as_read(recipe, folder, network, rows, columns)
    with tempfile.TemporaryDirectory() as scratch:
        args = training_arguments(recipe, "student", Path(scratch))
    logits, labels = predict(network, reader, collator, args, input_names=forward_parameters(network))
    if recipe.task == "token-classification":  # each word's first token has had its number for a label
        labels = _tags_at(labels, rows.with_format(None)["labels"])
    metrics = Metrics(recipe.model_dump()["metrics"], names)
    shares = torch.softmax(torch.from_numpy(logits), dim=-1).numpy()
    by_row = list(shares)
    if recipe.task == "token-classification":
        by_row = [each[places] for each, places in zip(shares, _firsts(reader), strict=True)]
    return Predictions(
        rows=rows,
        inputs=columns,
        label_names=names,
        probabilities=by_row,
        labels=list(labels),
        metrics=dict(metrics(logits, labels)) if bool(np.any(labels != MISSING_LABEL)) else {},
    )


def write_predictions(found: Predictions, file: Path, *, overwrite: bool = False) -> None:
    """Write a CSV file: the inputs, the label if there is one, the predicted class, the probability of each class.

    Raises:
        ValueError: the file is there.
    """
    if file.exists() and not overwrite:
        raise ValueError(f"--output: {file} is there: choose another name, or pass --overwrite")
    names = found.label_names
    plain = found.rows.with_format(None)
    texts = {name: plain[name] for name in found.inputs}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", *found.inputs, "label", "prediction", *(f"probability_{name}" for name in names)])
        for row, (shares, label) in enumerate(zip(found.probabilities, found.labels, strict=True)):
            inputs = [[_shown(values[row]) for values in texts.values()]]
            known, of_each = [label], [shares]
            if shares.ndim == 2:  # of each word
                inputs = [[word] for word in texts[found.inputs[0]][row]]
                known, of_each = plain["labels"][row], list(shares)
            for shown, index, each in zip(inputs, known, of_each, strict=False):
                truth = "" if index == MISSING_LABEL else names[int(index)]
                writer.writerow([row, *shown, truth, names[int(each.argmax())], *(f"{share:.6f}" for share in each)])


def _read(run: Path, model: str) -> tuple[Recipe, Path]:
    if not (run / "recipe.yaml").is_file() or not (run / "stages").is_dir():
        raise ValueError(f"{run} holds no run: name the output_dir of `hf-distill train`")
    there = finished_stages(run)
    if model not in there:
        raise ValueError(f"{run} has no finished {model}, only {', '.join(there) or 'nothing'}")
    return read_resolved(run / "recipe.yaml"), run / model


def _split(found: Any, split: str | None) -> Dataset:
    if split is None and len(found) > 1:
        raise ValueError(f"--split: the data have {', '.join(found)}: name one")
    if split is not None and split not in found:
        raise ValueError(f"--split: the data have no split {split}, only {', '.join(found)}")
    return found[split or next(iter(found))]


def _labelled(recipe: Recipe, rows: Dataset, names: list[str]) -> tuple[tuple[str, ...], Dataset]:
    """Return the columns of the inputs, and the rows with class indices in `labels`, -100 where there is no label."""
    data = recipe.data
    named = {name: getattr(data, name) for name in ("text_column", "text_pair_column", "image_column")}
    label = data.label_column
    usual = ("tags", "labels") if recipe.task == "token-classification" else ("label", "labels")
    is_there = any(name == label if label is not None else name.endswith(usual) for name in rows.column_names)
    if is_there:
        columns = find_columns(rows, recipe.task, **named, label_column=label)
        assert columns.label is not None
        words = columns.inputs[0] if recipe.task == "token-classification" else None
        indexed, _ = index_labels({"train": rows}, columns.label, words=words, label_names=names)
        return columns.inputs, indexed["train"]
    empty: list[Any] = [MISSING_LABEL] * len(rows)
    filled = rows.add_column("labels", empty)  # so that the other columns are found as in training
    columns = find_columns(filled, recipe.task, **named, label_column="labels")
    if recipe.task == "token-classification":
        empty = [[MISSING_LABEL] * len(words) for words in rows.with_format(None)[columns.inputs[0]]]
        filled = rows.add_column("labels", empty)
    return columns.inputs, filled


def _as_read(recipe: Recipe, folder: Path, network: PreTrainedModel, rows: Dataset, columns: tuple[str, ...]) -> Any:
    """Return the rows as the model reads them, and the collator of its batches."""
    trusts = recipe.trusts_code_of(recipe.student)
    if not recipe.is_text:
        check_images(rows, columns[0], "new", recipe.data.background)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trusts)
        channels = getattr(network.config, "num_channels", 3)
        images = ImageRows(rows, columns[0], processor, num_channels=channels, background=recipe.data.background)
        return images, default_data_collator
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts)
    most = max_tokens(network.config, tokenizer)
    length = most if recipe.data.max_length is None else recipe.data.max_length
    if recipe.task == "token-classification":
        numbered = rows.remove_columns("labels").add_column(
            "labels", [list(range(len(words))) for words in rows.with_format(None)[columns[0]]]
        )
        return tokenize_words(numbered, tokenizer, columns[0], length), DataCollatorForTokenClassification(tokenizer)
    return tokenize_text(rows, tokenizer, columns, length), DataCollatorWithPadding(tokenizer)


def _firsts(reader: Any) -> list[np.ndarray]:
    """Return the places of the tokens that begin a word, for each row."""
    return [np.flatnonzero(np.asarray(numbers) != MISSING_LABEL) for numbers in reader.with_format(None)["labels"]]


def _tags_at(numbers: np.ndarray, tags: Any) -> np.ndarray:
    """Return the tag of each token that begins a word, -100 elsewhere, from the words' numbers."""
    found = np.full_like(numbers, MISSING_LABEL)
    for row, of_row in enumerate(tags):
        places = np.flatnonzero(numbers[row] != MISSING_LABEL)
        found[row, places] = np.asarray(of_row)[numbers[row, places]]
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(getattr(value, "filename", "")) if value is not None else ""
