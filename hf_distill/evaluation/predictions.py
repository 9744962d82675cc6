"""What the models of a run say of the evaluation rows: the ground of every figure about quality."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_distill.data.targets import MISSING_LABEL

PREDICTIONS = "predictions.parquet"
"""The file in a run's output folder."""

Logits = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By the name of a model: its logits and the labels as it read them, of `evaluation.predictor.predict`."""


@dataclass(frozen=True)
class Predictions:
    """What models say of the same rows, or words of rows.

    Attributes:
        label_names: of the classes, in the order of the logits.
        rows: `(count,)`, the row of the split that each is, from 0.
        words: `(count,)`, which word of the row it is; None where whole rows are classified.
        labels: `(count,)`, -100 where there is none.
        logits: by the name of the model, `(count, num_labels)`; NaN where it says nothing: of a word that it does not
            read to, or of a class that it does not know.
    """

    label_names: list[str]
    rows: np.ndarray
    words: np.ndarray | None
    labels: np.ndarray
    logits: dict[str, np.ndarray]

    @classmethod
    def of(cls, predicted: Logits, label_names: Sequence[str]) -> "Predictions":
        """Join what several models have predicted, of whom each may read fewer words than the others."""
        logits, labels = next(iter(predicted.values()))
        if logits.ndim == 2:
            found = {name: _known(each, its, labels) for name, (each, its) in predicted.items()}
            return cls([*label_names], np.arange(len(labels)), None, labels, found)
        of_words = {name: _words(*each) for name, each in predicted.items()}
        rows, words, flat = [], [], []
        parts: dict[str, list[np.ndarray]] = {name: [] for name in predicted}
        for row in range(len(logits)):
            longest = max((of_words[name][row] for name in predicted), key=lambda each: len(each[1]))[1]
            count = len(longest)
            rows.append(np.full(count, row))
            words.append(np.arange(count))
            flat.append(longest)
            for name, found_words in of_words.items():
                values = found_words[row][0]
                parts[name].append(np.pad(values, [(0, count - len(values)), (0, 0)], constant_values=np.nan))
        joined = {name: np.concatenate(part) for name, part in parts.items()}
        return cls([*label_names], np.concatenate(rows), np.concatenate(words), np.concatenate(flat), joined)

    @property
    def comparable(self) -> "Predictions":
        """Return those of which all models say something; with a label, if any has one."""
        kept = ~np.any([np.isnan(each[:, 0]) for each in self.logits.values()], axis=0)
        if (kept & (self.labels != MISSING_LABEL)).any():
            kept &= self.labels != MISSING_LABEL
        words = None if self.words is None else self.words[kept]
        logits = {name: each[kept] for name, each in self.logits.items()}
        return Predictions(self.label_names, self.rows[kept], words, self.labels[kept], logits)

    def write(self, file: Path) -> None:
        """Write a parquet file: `row`, `word` where there are words, `label`, and a list of logits for each model."""
        columns: dict[str, pa.Array] = {"row": pa.array(self.rows, pa.int32())}
        if self.words is not None:
            columns["word"] = pa.array(self.words, pa.int32())
        columns["label"] = pa.array(self.labels, pa.int32())
        for name, values in self.logits.items():
            flat = pa.array(values.astype(np.float32).ravel(), pa.float32())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        table = pa.table(columns).replace_schema_metadata({"label_names": json.dumps(self.label_names)})
        part = file.with_name(f".{file.name}.part")
        pq.write_table(table, part)
        part.replace(file)

    @classmethod
    def read(cls, run: Path) -> "Predictions":
        """Read the predictions of a run from its output folder.

        Raises:
            ValueError: there are none, or no run has written them.
        """
        file = run / PREDICTIONS
        if not file.is_file():
            raise ValueError(
                f"{run} has no {PREDICTIONS}: it is no finished run, or one of an earlier version, of which "
                "`hf-distill train` makes it without training anew once its results.json is deleted"
            )
        try:
            table = pq.read_table(file)
            names = json.loads((table.schema.metadata or {})[b"label_names"])
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            words = columns.pop("word").to_numpy() if "word" in columns else None
            rows, labels = (columns.pop(name).to_numpy() for name in ("row", "label"))
            logits = {name: each.flatten().to_numpy().reshape(len(labels), -1) for name, each in columns.items()}
            if not logits or any(each.shape[1] != len(names) for each in logits.values()):
                raise ValueError("the logits are not those of its classes")
        except (OSError, KeyError, ValueError, AttributeError, pa.ArrowException) as error:
            raise ValueError(f"{file} was not written by a run of this version, or is damaged: {error}") from error
        return cls(names, rows, words, labels, logits)


def _known(logits: np.ndarray, labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return a model's logits, NaN in rows whose class it does not know."""
    unknown = (labels == MISSING_LABEL) & (wanted != MISSING_LABEL)
    return np.where(unknown[:, None], np.nan, logits)


def _words(logits: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each row the logits and labels of its words, whose first tokens have a label."""
    return [
        (row[known != MISSING_LABEL], known[known != MISSING_LABEL]) for row, known in zip(logits, labels, strict=True)
    ]
