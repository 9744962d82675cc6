"""Agreement of a student with its teacher, as a local `evaluate` module: loads with no network."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "Share of the rows on which student and teacher predict the same class, from 0 to 1, right or wrong. "
    "Called fidelity in arXiv 2106.05945."
)
_INPUTS = "predictions: the student's class indices. references: the teacher's class indices, of the same length."


class Agreement(evaluate.Metric):
    """Share of the rows on which student and teacher predict the same class, from 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"agreement": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
