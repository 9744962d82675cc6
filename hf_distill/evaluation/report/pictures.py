"""The pictures of a report, each drawn for a light page and for a dark one."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.curves import panels
from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.quality import bins_of, log_softmax
from hf_distill.evaluation.results import ModelResult, Results
from hf_distill.evaluation.tables import titled

_MOST_CLASSES = 20  # of which a confusion matrix can be read
_MARKS = {"teacher": "s", "student": "o", "baseline": "^"}
_DASHES = ("-", "--", ":", "-.")


_INK, _FAINT, _ON_FULL = "#1b1b1b", "#cfcfcf", "#fefefe"
# Okabe and Ito's colours, told apart by colour-blind eyes.
_ROLES = {"teacher": _INK, "student": "#0072b2", "baseline": "#d55e00"}
_DARK = {_INK: "#e6e6e6", _FAINT: "#4a4a4a", _ON_FULL: "#101010", "#0072b2": "#56b4e9", "#d55e00": "#e69f00"}
"""On a dark page, in the place of the colours above."""

Draw = Callable[[Any], None]


@dataclass(frozen=True)
class Picture:
    """A picture of one panel or several, which a narrow page has one below the other.

    Attributes:
        name: of its file.
        title: above it.
        panels: of each panel the same drawing by the look, as XML.
        png: all panels side by side, in the light look.
    """

    name: str
    title: str
    panels: list[dict[str, str]]
    png: bytes


def drawn(name: str, title: str, axes: Sequence[Draw], *, width: float = 4.2, height: float = 3.2) -> Picture:
    """Draw panels, in both looks; the same figures give the same bytes."""
    import matplotlib as mpl
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def figure_of(chosen: Sequence[Draw]) -> Figure:
        figure = Figure(figsize=(width * len(chosen), height), layout="constrained")
        FigureCanvasAgg(figure)
        for axis, draw in zip(np.ravel(figure.subplots(1, len(chosen), squeeze=False)), chosen, strict=True):
            draw(axis)
        return figure

    panels, png = [], io.BytesIO()
    with warnings.catch_warnings(), matplotlib.style.context("default"), mpl.rc_context(_settings()):
        warnings.filterwarnings("ignore", message="Glyph")  # a browser has fonts for the labels of any language
        for draw in axes:
            text = io.StringIO()
            figure_of([draw]).savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            light = text.getvalue()
            panels.append({"light": light, "dark": re.sub("|".join(_DARK), lambda found: _DARK[found[0]], light)})
        figure_of(axes).savefig(png, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return Picture(name, title, panels, png.getvalue())


def _colour(name: str) -> str:
    return _ROLES.get(name.partition("-")[0], _ROLES["student"])


def _settings() -> dict[Any, Any]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
    plain = {
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "axes.titlesize": 10,
    }
    fonts = {"svg.fonttype": "none", "svg.hashsalt": "hf-distill", "font.family": "sans-serif", "font.size": 9}
    return {**dict.fromkeys(inked, _INK), **plain, **fonts, "grid.color": _FAINT, "grid.linewidth": 0.5}


def trade_offs(models: Mapping[str, ModelResult]) -> Picture | None:
    """Draw what each model reaches by its size and by its latency; models of several runs are named `run: model`."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    metric = next(iter(next(iter(models.values())).metrics))

    def against(field: str, label: str) -> Draw:
        def draw(axis: Any) -> None:
            for name, model in models.items():
                role = name.rpartition(": ")[2]
                place = getattr(model, field), model.metrics[metric]
                if place[0] is None:
                    continue
                axis.scatter(
                    *place,
                    color=_colour(role),
                    marker=_MARKS.get(role.partition("-")[0], "D"),
                    s=40,
                    zorder=3,
                    label=name,
                )
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.margins(x=0.35, y=0.25)
            axis.legend(fontsize=8, loc="lower right")
            axis.set_xlabel(label)
            axis.set_ylabel(titled(metric))
            axis.grid(visible=True)

        return draw

    labels = {"num_parameters": "parameters", "latency_ms": "milliseconds for one row"}
    known = [field for field in labels if sum(getattr(model, field) is not None for model in models.values()) > 1]
    if not known:
        return None
    return drawn("trade_offs", "Quality against size and speed", [against(each, labels[each]) for each in known])


def curves(results: Results) -> Picture | None:
    """Draw what the trainings have logged, by epoch."""
    drawings = []
    for (title, label), lines in panels(results).items():
        kept = {name: points for name, points in lines.items() if len(points[0]) > 1}
        if kept:
            drawings.append(_lines(title, label, kept))
    return drawn("curves", "Training", drawings, width=3.5) if drawings else None


def _lines(title: str, label: str, lines: Mapping[str, tuple[list[float], list[float]]]) -> Draw:
    from matplotlib.ticker import LogFormatter

    def draw(axis: Any) -> None:
        for place, (name, (epochs, values)) in enumerate(lines.items()):
            is_model = name.partition("-")[0] in _MARKS
            dash = "-" if is_model else _DASHES[place % len(_DASHES)]
            axis.plot(epochs, values, label=name, color=_colour(name), linestyle=dash, linewidth=1.5)
        numbers = [value for _, values in lines.values() for value in values]
        if "loss" in title.lower() and min(numbers) > 0 and max(numbers) > 10 * min(numbers):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(LogFormatter())  # plain numbers, and no formulas
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.grid(visible=True)
        axis.legend(fontsize=8)

    return draw


def reliability(predictions: Predictions) -> Picture:
    """Draw for each model how often it is right at each confidence, in bins of equally many rows."""

    def of(name: str) -> Draw:
        log_p = log_softmax(predictions.logits[name])
        confidence, right = np.exp(log_p.max(-1)), log_p.argmax(-1) == predictions.labels
        bins = bins_of(confidence)
        means = [(float(confidence[rows].mean()), float(right[rows].mean())) for rows in bins]

        def draw(axis: Any) -> None:
            low = min(min(min(pair) for pair in means), 0.9)
            axis.plot([low, 1], [low, 1], color=_FAINT, linewidth=1)
            axis.plot(*zip(*means, strict=True), color=_colour(name), marker="o", markersize=4, linewidth=1.2)
            axis.set_title(name)
            axis.set_xlabel("confidence")
            axis.set_ylabel("share that is right")

        return draw

    return drawn("reliability", "Calibration", [of(name) for name in predictions.logits], width=3.0, height=2.9)


def confusion(predictions: Predictions, name: str) -> Picture | None:
    """Draw which classes a model takes for which; None if there are too many to read."""
    size = len(predictions.label_names)
    if size > _MOST_CLASSES:
        return None
    from matplotlib.patches import Rectangle

    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (predictions.labels, predictions.logits[name].argmax(-1)), 1)

    def draw(axis: Any) -> None:
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        for row, column in zip(*np.nonzero(counts), strict=True):
            share, corner = shares[row, column], (column - 0.5, row - 0.5)
            axis.add_patch(Rectangle(corner, 1, 1, facecolor=_ROLES["student"], alpha=0.08 + 0.92 * share, linewidth=0))
            colour = _ON_FULL if share > 0.5 else _INK
            centred = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axis.text(column, row, f"{counts[row, column]:,}", **centred)
        axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
        short = [each if len(each) <= 14 else f"{each[:13]}…" for each in predictions.label_names]
        axis.set_xticks(range(size), short, rotation=45, ha="right")
        axis.set_yticks(range(size), short)
        axis.set_xlabel("predicted")
        axis.set_ylabel("label")

    side = max(3.0, 0.36 * size + 1.2)
    return drawn("confusion", f"Which classes the {name} confuses", [draw], width=side + 0.6, height=side)


def who_is_right(predictions: Predictions) -> Picture | None:
    """Draw for each class in how many rows only one of teacher and student is right, or neither; None if none."""
    student, teacher = (predictions.logits[name].argmax(-1) == predictions.labels for name in ("student", "teacher"))
    kinds = {
        "the teacher alone": teacher & ~student,
        "the student alone": student & ~teacher,
        "neither": ~student & ~teacher,
    }
    totals = np.bincount(predictions.labels, minlength=len(predictions.label_names))
    missed = np.bincount(predictions.labels[~(student & teacher)], minlength=len(totals))
    shown = [place for place in np.argsort(-missed, kind="stable")[:_MOST_CLASSES] if missed[place]]
    if not shown:
        return None

    def draw(axis: Any) -> None:
        left = np.zeros(len(shown))
        colours = (_ROLES["teacher"], _ROLES["student"], _FAINT)
        for (kind, rows), colour in zip(kinds.items(), colours, strict=True):
            counts = np.bincount(predictions.labels[rows], minlength=len(totals))[shown]
            axis.barh(range(len(shown)), counts, left=left, label=kind, color=colour, height=0.7)
            left += counts
        names = [predictions.label_names[place] for place in shown]
        axis.set_yticks(range(len(shown)), [f"{name} ({totals[p]:,})" for name, p in zip(names, shown, strict=True)])
        axis.invert_yaxis()
        axis.set_xlabel("rows in which not both are right")
        axis.legend(fontsize=8)

    return drawn(
        "who_is_right", "Where student and teacher differ", [draw], width=6, height=max(1.8, 0.3 * len(shown) + 1.1)
    )


def pictures(results: Results, predictions: Predictions | None) -> list[Picture]:
    """Draw all of a run that can be drawn."""
    found: list[Picture | None] = [trade_offs(results.models), curves(results)]
    if predictions is not None and len(predictions.labels) and (predictions.labels != MISSING_LABEL).all():
        found.append(reliability(predictions))
        if "teacher" in predictions.logits:
            found.append(who_is_right(predictions))
        found.append(confusion(predictions, "student"))
    return [each for each in found if each is not None]
