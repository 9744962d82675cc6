"""The table of teacher, student and baseline."""

from pathlib import Path

from hf_distill.evaluation.results import ModelResult, Results

_TITLES = {"f1": "macro F1"}
_MANY_ROWS = 5_000
_OFTEN = 0.5  # of the rows, that it is worth to have a second model at hand


def results_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Lay out the results: a header, and a row for each model.

    Metrics have four decimals; what they are relative to the teacher stands beside the first one.
    """
    return _table(results.models, results.teacher, is_timed=results.student.latency_ms is not None)


def exports_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Lay out what was exported, beside what it was made of; likewise, but without the seconds of a training."""
    header, rows = _table(results.exports, results.teacher, is_timed=True)
    place = header.index("train s")
    return [*header[:place], *header[place + 1 :]], [[*row[:place], *row[place + 1 :]] for row in rows]


def exported(results: Results) -> str | None:
    """Say in one sentence what the whole way from the teacher to the last file gives; None if nothing was exported."""
    name, file = next(reversed(results.exports.items()), ("", None))
    teacher = results.exports.get("teacher")
    if file is None or teacher is None or None in (file.size_mib, teacher.size_mib):
        return None
    first = next(iter(file.metrics))
    faster = _times(teacher.latency_ms / file.latency_ms, "faster", "slower")  # type: ignore[operator]
    smaller = _times(teacher.size_mib / file.size_mib, "smaller", "larger")  # type: ignore[operator]
    share = f"{file.metrics[first] / teacher.metrics[first]:.1%}" if teacher.metrics[first] else "-"
    return f"From the teacher to the file {name}, on a CPU: {faster}, {smaller}, {share} of the {titled(first)}."


def stands_alone(results: Results) -> str | None:
    """Say from which confidence on the student may predict alone; None where it may hardly ever."""
    found = [each for each in results.thresholds if each.confidence is not None and each.share >= _OFTEN]
    if not found:
        return None
    best = max(found, key=lambda each: each.target)
    return (
        f"From a confidence of {best.confidence:.4f} on, as in {best.share:.1%} of these rows, it may predict alone: "
        f"with its teacher for the rest, {best.target:.1%} of all predictions on such rows are the teacher's, with 95% "
        "confidence."
    )


def _table(
    models: dict[str, ModelResult], teacher: ModelResult, *, is_timed: bool
) -> tuple[list[str], list[list[str]]]:
    names = list(teacher.metrics)
    header = ["model", *map(titled, names), "of teacher", "parameters", "MiB", "train s"]
    rows = [[role, *_cells(model, names, teacher)] for role, model in models.items()]
    if is_timed:
        header += ["ms/row", "rows/s"]
        for row, model in zip(rows, models.values(), strict=True):
            row += [
                "-" if model.latency_ms is None else f"{model.latency_ms:.2f}",
                "-" if model.rows_per_second is None else f"{model.rows_per_second:,.0f}",
            ]
    return header, rows


def summary(results: Results) -> str:
    """Say in one line how near the student came; of a gap that may be none, no share is told."""
    text = f"The student agrees with the teacher on {results.agreement:.2%} of the predictions"
    gap = results.differences.get("teacher_baseline")
    if results.gap_closed is not None and (gap is None or gap.is_certain):
        text += f" and closes {results.gap_closed:.1%} of the gap between baseline and teacher"
    return text + "."


def verdict(results: Results) -> list[str]:
    """Say whether distillation helped, and what the student costs and saves, a sentence each."""
    student, teacher = results.student, results.teacher
    lines = []
    gain = results.differences.get("student_baseline")
    if gain is not None:
        low, high = (f"{100 * bound:+.1f}" for bound in gain.interval)
        told = "distillation helped" if gain.value > 0 else "the student lost to its own baseline"
        if not gain.is_certain:
            told = "too little to tell on so few rows" if gain.num_rows < _MANY_ROWS else "no clear difference"
        lines.append(
            f"Student against baseline: {100 * gain.value:+.1f} points of accuracy (95% interval {low} to {high}, "
            f"{gain.num_rows:,} rows, one seed): {told}."
        )
    gap = results.differences.get("teacher_baseline")
    if gap is not None and gap.value < 0:
        lines.append(
            "The teacher is less accurate than the baseline, and has little to teach: train it longer or at another "
            "learning rate (teacher.training), or take another one."
        )
    parts = []
    if None not in (student.latency_ms, teacher.latency_ms):
        parts.append(_times(teacher.latency_ms / student.latency_ms, "faster", "slower"))  # type: ignore[operator]
    if None not in (student.size_mib, teacher.size_mib):
        parts.append(_times(teacher.size_mib / student.size_mib, "smaller", "larger"))  # type: ignore[operator]
    first = next(iter(student.metrics))
    if teacher.metrics[first]:
        is_what = f"is {' and '.join(parts)}, and " if parts else ""
        share = f"{student.metrics[first] / teacher.metrics[first]:.1%}"
        lines.append(f"The student {is_what}has {share} of the teacher's {titled(first)}.")
    return lines


def next_steps(output_dir: str, task: str, *, is_published: bool, report: Path | None = None) -> str:
    """Return the commands that come next, one to a line."""
    folder = Path(output_dir)
    lines = {
        "load it": f'pipeline("{task}", "{folder / "student"}")',
        "look": f"open {report} in a browser",
        "evaluate": f"hf-distill evaluate {folder}",
        "publish": f"hf-distill push {folder} --repo-id NAME --private",
        "its card": f"{folder / 'student' / 'README.md'}",
    }
    for name in ["publish"] * is_published + ["look"] * (report is None):
        del lines[name]
    return "\n".join(["Next:", *(f"  {name:9} {text}" for name, text in lines.items())])


def titled(metric: str) -> str:
    """Return a metric's name as people read it."""
    return _TITLES.get(metric, metric)


def _times(ratio: float, more: str, less: str) -> str:
    return f"{ratio:.1f}x {more}" if ratio >= 1 else f"{1 / ratio:.1f}x {less}"


def markdown_table(results: Results) -> str:
    """Return the table as Markdown."""
    header, rows = results_table(results)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def _cells(model: ModelResult, names: list[str], teacher: ModelResult) -> list[str]:
    values = [f"{model.metrics[name]:.4f}" for name in names]
    first = names[0]
    share = f"{model.metrics[first] / teacher.metrics[first]:.1%}" if teacher.metrics[first] else "-"
    seconds = "-" if model.train_seconds is None else f"{model.train_seconds:.1f}"
    parameters = "-" if model.num_parameters is None else f"{model.num_parameters:,}"
    size = "-" if model.size_mib is None else f"{model.size_mib:.2f}"
    return [*values, share, parameters, size, seconds]
