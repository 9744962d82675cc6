"""The page itself, one file that needs no network."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.cascade import TARGETS, thresholds
from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.quality import TITLES, log_softmax, quality
from hf_distill.evaluation.report.pictures import Picture, pictures, trade_offs
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.tables import exported, exports_table, results_table, summary, verdict

_ROWS = 12  # that are shown of a kind
_EXAMPLES = 6  # of soft targets
_CLASSES = 5  # of one example
_SURE = 0.8  # the teacher, of another class than the label

Input = Callable[[int], tuple[str, str | None]]
"""Of the number of an evaluation row: its text, and its image as a data URI."""


@dataclass(frozen=True)
class RunPage:
    """What a page shows of one run.

    Attributes:
        name: of the run.
        results: its results.json.
        predictions: its predictions.parquet, if it has one.
        temperature: of its training.
        input_of: what stands in an evaluation row; None if the data cannot be opened.
        notes: what is missing on the page, and why.
    """

    name: str
    results: Results
    predictions: Predictions | None
    temperature: float
    input_of: Input | None = None
    notes: list[str] = field(default_factory=list)


def page(runs: Sequence[RunPage]) -> tuple[str, list[Picture]]:
    """Return the page of one run or several, as HTML, and the pictures of the first one."""
    shown = [_shown(run) for run in runs]
    together = None
    if len(runs) > 1:
        models = {f"{run.name}: {name}": model for run in runs for name, model in run.results.models.items()}
        same = [set(model.metrics) for model in models.values()]
        together = trade_offs(models) if set.intersection(*same) else None
    text = _template().render(runs=shown, together=together, uri=_uri)
    return text, [*([together] if together else []), *shown[0]["pictures"]]


def _shown(run: RunPage) -> dict[str, Any]:
    results, same = run.results, None if run.predictions is None else run.predictions.comparable
    has_teacher = same is not None and {"student", "teacher"} <= set(same.logits)
    is_labelled = same is not None and len(same.labels) > 0 and bool((same.labels != MISSING_LABEL).all())
    shown: dict[str, Any] = {
        "name": run.name,
        "results": results,
        "notes": run.notes,
        "sentences": [*verdict(results), summary(results)],
        "table": results_table(results),
        "environment": ", ".join(f"{name} {value}" for name, value in results.environment.items()),
        "pictures": pictures(results, same),
        "temperature": run.temperature,
        "exports": exports_table(results) if results.exports else None,
        "exported": exported(results),
        "hardest": [],
        "suspicious": [],
    }
    if same is not None and len(same.labels):
        measured = quality(same, "teacher" if has_teacher else None)
        shown["measures"] = [
            (title, [measured[model].get(name) for model in measured])
            for name, title in TITLES.items()
            if any(name in each for each in measured.values())
        ]
        shown["models"] = list(measured)
    if same is not None and has_teacher:
        if same.words is None:
            shown["thresholds"] = thresholds(same, TARGETS)
        shown["examples"] = _examples(run, same)
        if is_labelled:
            shown["hardest"] = _rows(run, same, _hardest(same))
            shown["suspicious"] = _rows(run, same, _suspicious(same))
    return shown


def _hardest(same: Predictions) -> np.ndarray:
    """Return the rows that the student gets most wrong while its teacher is right, the worst first."""
    loss = -log_softmax(same.logits["student"])[np.arange(len(same.labels)), same.labels]
    is_hard = (same.logits["student"].argmax(-1) != same.labels) & (same.logits["teacher"].argmax(-1) == same.labels)
    order = np.argsort(-loss, kind="stable")
    return order[is_hard[order]][:_ROWS]


def _suspicious(same: Predictions) -> np.ndarray:
    """Return the rows with labels that the teacher is sure are others, the surest first."""
    shares = np.exp(log_softmax(same.logits["teacher"]))
    is_other = (shares.argmax(-1) != same.labels) & (shares.max(-1) > _SURE)
    order = np.argsort(-shares.max(-1), kind="stable")
    return order[is_other[order]][:_ROWS]


def _rows(run: RunPage, same: Predictions, places: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for place in places:
        said = {name: np.exp(log_softmax(same.logits[name][place])) for name in ("teacher", "student")}
        text, image = _input(run, same, int(place))
        found.append(
            {
                "row": int(same.rows[place]),
                "text": text,
                "image": image,
                "label": same.label_names[int(same.labels[place])],
                "said": {
                    name: (same.label_names[int(each.argmax())], float(each.max())) for name, each in said.items()
                },
            }
        )
    return found


def _examples(run: RunPage, same: Predictions) -> list[dict[str, Any]]:
    """Return rows over the range of the teacher's confidence, with its soft targets at two temperatures."""
    logits = same.logits["teacher"]
    order = np.argsort(log_softmax(logits).max(-1), kind="stable")
    places = [int(order[round(share * (len(order) - 1))]) for share in np.linspace(0, 1, _EXAMPLES)]
    found = []
    for place in dict.fromkeys(places):
        plain, soft = (np.exp(log_softmax(logits[place] / divisor)) for divisor in (1.0, run.temperature))
        classes = np.argsort(-plain, kind="stable")[:_CLASSES]
        text, image = _input(run, same, place)
        bars = [(same.label_names[int(each)], float(plain[each]), float(soft[each])) for each in classes]
        found.append({"text": text, "image": image, "bars": bars})
    return found


def _input(run: RunPage, same: Predictions, place: int) -> tuple[str, str | None]:
    row = int(same.rows[place])
    if run.input_of is None:
        return f"row {row:,}", None
    text, image = run.input_of(row)
    if same.words is None:
        return text, image
    words = text.split(" ")
    at = int(same.words[place])
    return " ".join(f"[{word}]" if i == at else word for i, word in enumerate(words)), image


def _uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("hf_distill.evaluation.report", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html.jinja")
