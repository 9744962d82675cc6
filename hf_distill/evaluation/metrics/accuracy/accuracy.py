"""Accuracy, as a local `evaluate` module: loads with no network."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score

_DESCRIPTION = "Share of the predictions that equal their reference, from 0 to 1."
_INPUTS = "predictions: class indices. references: class indices, of the same length."


class Accuracy(evaluate.Metric):
    """Share of the predictions that equal their reference, from 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}
