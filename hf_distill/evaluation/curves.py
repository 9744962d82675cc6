"""The picture of a run's training: losses and evaluation by epoch."""

import io
from collections.abc import Mapping, Sequence

from hf_distill.data.soft_losses import MATCHING_TERMS
from hf_distill.evaluation.results import Results

PLOT = "training_curves.png"
# Okabe and Ito's colours, told apart by colour-blind eyes, and a mark for those who see none.
_LOOKS = {
    "teacher": ("#000000", "s"),
    "stage": ("#009E73", "D"),
    "student": ("#0072B2", "o"),
    "baseline": ("#D55E00", "^"),
}
_SHADES = ("#000000", "#777777", "#AAAAAA")  # of several teachers
_MARKED = 40  # a curve of fewer points shows them

Points = tuple[list[float], list[float]]
_PARTS = ("The student's loss and its parts", "loss, mean since the last entry")
_EVALUATION = "Evaluation during the training"


def training_curves(results: Results) -> bytes | None:
    """Draw what the stages of a run logged, as a PNG; None if that makes no curve.

    The same results give the same bytes, with one version of matplotlib: no date, and no setting of the user's, goes
    in.
    """
    return _drawn(panels(results))


def panels(results: Results) -> dict[tuple[str, str], dict[str, Points]]:
    """Return what there is to draw of a run's training: lines by name, for each title and label of the y axis."""
    metric = next(iter(results.student.metrics), "")
    return {
        _PARTS: _parts(results.curves.get("student", [])),
        ("Loss on the labels", "cross-entropy of the training rows"): _of_all(results.curves, "label_loss"),
        (_EVALUATION, metric): _of_all(results.curves, f"eval_{metric}"),
    }


def student_curves(curve: Sequence[Mapping[str, float]], metric: str) -> bytes | None:
    """Draw what the training of one student logged, as `training_curves` does."""
    return _drawn({_PARTS: _parts(curve), (_EVALUATION, metric): _of_all({"student": curve}, f"eval_{metric}")})


def _drawn(panels: Mapping[tuple[str, str], Mapping[str, Points]]) -> bytes | None:
    drawn = {
        titles: {name: points for name, points in lines.items() if len(points[0]) > 1}
        for titles, lines in panels.items()
    }
    drawn = {titles: lines for titles, lines in drawn.items() if lines}
    return _png(drawn) if drawn else None


def _parts(curve: Sequence[Mapping[str, float]]) -> dict[str, Points]:
    keys = {"loss": "loss", **{name: f"{name}_loss" for name in ("soft", "label", *MATCHING_TERMS)}}
    return {name: _points(curve, key) for name, key in keys.items()}


def _points(curve: Sequence[Mapping[str, float]], key: str) -> Points:
    found = [(entry.get("epoch", entry["step"]), entry[key]) for entry in curve if key in entry]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _of_all(curves: Mapping[str, Sequence[Mapping[str, float]]], key: str) -> dict[str, Points]:
    return {stage: _points(curve, key) for stage, curve in curves.items()}


def _png(panels: Mapping[tuple[str, str], Mapping[str, Points]]) -> bytes:
    import matplotlib.style  # here, because the card's other users need not wait for it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, MaxNLocator
    from PIL import Image

    with matplotlib.style.context("default"):
        figure = Figure(figsize=(4.4 * len(panels), 3.2), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, ((title, y_label), lines) in zip(axes, panels.items(), strict=True):
            for place, (name, (epochs, values)) in enumerate(lines.items()):
                colour, mark, dash = _look(name, place)
                axis.plot(
                    epochs,
                    values,
                    label=name,
                    color=colour,
                    linestyle=dash,
                    linewidth=1.5,
                    marker=mark if len(epochs) < _MARKED else None,
                    markersize=4,
                )
            numbers = [value for _, values in lines.values() for value in values]
            if "loss" in title.lower() and min(numbers) > 0 and max(numbers) > 10 * min(numbers):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(LogFormatter())
                axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            last = max(max(epochs) for epochs, _ in lines.values())
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=last >= 2))
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("epoch")
            axis.set_ylabel(y_label)
            axis.grid(visible=True, linewidth=0.5, alpha=0.4)
            axis.legend(fontsize=8)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
        image = Image.frombuffer("RGBA", canvas.get_width_height(), pixels).convert("RGB")
    picture = io.BytesIO()
    # 64 colours are enough for lines and letters, and make a third of the bytes.
    image.quantize(64, dither=Image.Dither.NONE).save(picture, format="png", optimize=True)
    return picture.getvalue()


def _look(name: str, place: int) -> tuple[str, str, str]:
    """Return a line's colour, mark and dashes."""
    role, _, number = name.partition("-")
    if role not in _LOOKS:  # a part of the student's loss
        return _LOOKS["student"][0], ("o", "v", "x", "+", "1", "2", "3")[place % 7], ("-", "--", ":", "-.")[place % 4]
    colour, mark = _LOOKS[role]
    if role == "teacher" and number:
        colour = _SHADES[(int(number) - 1) % len(_SHADES)]
    return colour, mark, "-"
