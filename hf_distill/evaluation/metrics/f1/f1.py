"""Macro F1, as a local `evaluate` module: loads with no network."""

import datasets
import evaluate
from sklearn.metrics import f1_score

_DESCRIPTION = (
    "F1 score of each class, averaged over the classes that occur, each class with the same weight; from 0 to 1."
)
_INPUTS = "predictions: class indices. references: class indices, of the same length."


class F1(evaluate.Metric):
    """Mean over the classes of their F1 score, from 0 to 1; a class that is never predicted counts 0."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, average="macro", zero_division=0))}
