"""The table of teacher, student and baseline."""

from hf_distill.evaluation.results import ModelResult, Results


def results_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Lay out the results: a header, and a row for each model.

    Metrics have four decimals; what they are relative to the teacher stands beside the first one.
    """
    names = list(results.student.metrics)
    header = ["model", *names, "of teacher", "parameters", "MiB", "train s"]
    rows = [[role, *_cells(model, names, results.teacher)] for role, model in results.models.items()]
    return header, rows


def summary(results: Results) -> str:
    """Say in one line how near the student came."""
    text = f"The student agrees with the teacher on {results.agreement:.2%} of the predictions"
    if results.gap_closed is not None:
        text += f" and closes {results.gap_closed:.1%} of the gap between baseline and teacher"
    return text + "."


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
