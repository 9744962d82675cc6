"""The commands that look at data and at what came out: `init`, `evaluate`, `report` and `audit`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_distill.cli.console import DebugOption, app, only_ours, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_distill.evaluation.audit import Finding


@app.command()
def init(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A CSV, TSV, JSON or parquet file, or a folder; images by class.")
    ],
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="MODEL", help="A Hub id or folder; else one usual for the task.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.yaml", help="The recipe; by default named as the data.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recipe that is there.")] = False,
    debug: DebugOption = False,
) -> None:
    """Look at your data and write a recipe for them, with comments: columns, split, task and sizes.

    After it come `hf-distill check` and `hf-distill train`.
    """
    file = output or Path(f"{data.stem or 'data'}.yaml")
    if file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--output: expected a file that ends in .yaml, got {file}")
    if file.exists() and not overwrite:
        raise ValueError(f"{file} is there: name another file (--output), or pass --overwrite")
    from hf_distill.runs.recipe.starter import starter

    only_ours(debug=debug)
    made = starter(data, teacher, file.stem)
    for line in made.found:
        typer.echo(f"found  {line}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(made.text, encoding="utf-8")
    typer.echo(f"{file} is written. Next:\n  hf-distill check {file}\n  hf-distill train {file}")


@app.command()
def evaluate(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="The output folder of `hf-distill train`; a model; a Hub id.")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PATH", help="New data, with or without labels; else RUN's evaluation rows."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MODEL", help="Compare with it: teacher or baseline of RUN; a model; a Hub id."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where predictions go: FILE.csv or FILE.parquet.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="student, teacher or baseline of RUN.")] = "student",
    split: Annotated[str | None, typer.Option("--split", help="Of the data, if they have several.")] = None,
    targets: Annotated[
        list[float] | None,
        typer.Option(
            "--target", help="Share of predictions to be as the teacher's; when may the student predict alone?"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace predictions that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
    debug: DebugOption = False,
) -> None:
    """Say how good models are, with 95% intervals: accuracy, calibration, likeness to the teacher, size and speed.

    Without --data, of all models of a run, from its predictions.parquet, and from which confidence on the student may
    predict in the teacher's place. With --data, of a run's student or any classifier, on data of your own.
    """
    if output is not None and output.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--output: expected a file that ends in .csv or .parquet, got {output}")
    if output is not None and output.exists() and not overwrite:
        raise ValueError(f"--output: {output} is there: choose another name, or pass --overwrite")
    if data is None:
        given = {"--against": against, "--output": output, "--split": split}
        needless = [name for name, value in given.items() if value is not None] + ["--model"] * (model != "student")
        if needless:
            raise ValueError(f"{', '.join(needless)}: belongs to new data: name them, --data PATH")
        told = _of_run(source, targets or [])
    else:
        if targets:
            raise ValueError(
                "--target: is for the evaluation rows of a run, which no model was fitted on: leave --data out"
            )
        only_ours(debug=debug)
        told = _of_data(source, data, against, output, model=model, split=split, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(told["what"])
    if told["measures"]:
        _print_measures(told["measures"])
    if told["thresholds"]:
        _print_thresholds(told["thresholds"], told["costs"])
    if told["costs"]:
        _print_costs(told["costs"])
    if output is not None:
        typer.echo(f"Predictions are in {output}.")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Output folders of finished `hf-distill train`.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.html", help="The page; by default RUN/report.html.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write one page that shows a run, or compares several: it opens in a browser and needs no network.

    It has the verdict, quality with intervals, pictures (also as PNG files in the folder `report` beside it), soft
    targets, the hardest rows and labels to look at.
    """
    if output is not None and output.suffix != ".html":
        raise ValueError(f"--output: expected a file that ends in .html, got {output}")
    from hf_distill.runs.report import write_report

    only_ours(debug=debug)
    typer.echo(f"The report is in {write_report([run.expanduser() for run in runs], output)}.")


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a finished `hf-distill train`.")],
    folds: Annotated[
        int, typer.Option("--folds", help="Look at the training rows, too, by so many teachers trained for that.")
    ] = 0,
    rows: Annotated[int, typer.Option("--rows", min=1, help="To print of each kind.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="All of them: FILE.parquet or FILE.csv.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
    debug: DebugOption = False,
) -> None:
    """List rows to look at: labels that the teacher doubts, equal inputs with other labels, where the student differs.

    Without --folds, labels of the evaluation rows are doubted, which the teacher has not learned from. A label that is
    doubted is not wrong for that: somebody has to look.
    """
    if output is not None and output.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--output: expected a file that ends in .csv or .parquet, got {output}")
    from hf_distill.runs.audit import audit_run, write_findings

    only_ours(debug=debug)
    run = run.expanduser()
    file = output or run / "audit.parquet"
    found, classes, shown = audit_run(run, folds=folds, tell=lambda _: None if as_json else typer.echo(_))
    write_findings(found, shown, file)
    if as_json:
        inherited = [dict(zip(("class", "rows", "teacher_errors", "inherited"), each, strict=True)) for each in classes]
        typer.echo(json.dumps({"findings": [asdict(each) for each in found], "classes": inherited}, indent=2))
        return
    titles = {
        "label": "Labels that the teacher doubts",
        "conflict": "Equal inputs with other labels",
        "student": "Where the student differs from the teacher",
    }
    for kind, title in titles.items():
        of_kind = [each for each in found if each.kind == kind]
        typer.echo(f"{title}: {len(of_kind):,} rows")
        if of_kind:
            _print_findings(of_kind[:rows], shown)
    if classes:
        typer.echo("Errors of the teacher, and how many the student inherits:")
        table = [[name, f"{count:,}", f"{errors:,}", f"{alike:,}"] for name, count, errors, alike in classes]
        print_table(["class", "rows", "errors", "inherited"], table)
    typer.echo(f"All rows are in {file}.")


def _print_findings(found: "list[Finding]", shown: "Callable[[Finding], str]") -> None:
    texts = [" ".join(shown(each).split()) for each in found]
    header = ["split", "row", "label", "teacher", "student", "doubt", *["input"] * any(texts)]
    rows = []
    for each, text in zip(found, texts, strict=True):
        classes = [(name or "-")[:12] for name in (each.label, each.teacher, each.student)]
        row = [each.split, f"{each.row}", *classes, f"{each.doubt:.2f}", *[text[:30]] * any(texts)]
        rows.append(row)
    print_table(header, rows)


def _of_run(source: str, targets: list[float]) -> dict[str, Any]:
    """Measure the models of a run by what they have predicted."""
    from hf_distill.evaluation.cascade import TARGETS, thresholds
    from hf_distill.evaluation.predictions import Predictions
    from hf_distill.evaluation.quality import quality
    from hf_distill.evaluation.results import Results

    run = Path(source).expanduser()
    if not run.is_dir():
        raise ValueError(f"{source} is no folder of a run: name one, or the data for a model, --data PATH")
    found = Predictions.read(run)
    results = Results.read(run)
    measures = quality(found, "teacher")
    models = {name: asdict(model) for name, model in results.models.items() if name in measures}
    costs = {name: {key: value for key, value in each.items() if key != "metrics"} for name, each in models.items()}
    unit = "rows" if found.words is None else "words"
    return {
        "what": f"{run}: {len(found.comparable.labels):,} {unit} of the evaluation data (95% intervals)",
        "measures": {name: {key: asdict(value) for key, value in each.items()} for name, each in measures.items()},
        "thresholds": [asdict(each) for each in thresholds(found, targets or TARGETS)] if found.words is None else [],
        "costs": costs,
    }


def _of_data(
    source: str, data: str, against: str | None, output: Path | None, *, model: str, split: str | None, overwrite: bool
) -> dict[str, Any]:
    """Measure a model on new data, alone or against another one, and write what it predicts."""
    from hf_distill.evaluation.quality import quality
    from hf_distill.runs import evaluate as evaluation

    found = {model: evaluation.evaluate(source, data, model=model, split=split)}
    if against is not None:
        is_of_run = against in evaluation.ROLES and not Path(against).exists()
        where = {"source": source, "model": against} if is_of_run else {"source": against}
        found[against] = evaluation.evaluate(data=data, split=split, **where)
    own = found[model]
    if not own.metrics and output is None and against is None:
        raise ValueError(f"{data} has no labels to compare with: name a file for the predictions, --output FILE.csv")
    measures: dict[str, Any] = {}
    if own.metrics or against is not None:
        estimates = quality(evaluation.together(found), against)
        for name, each in estimates.items():
            others = {key: {"value": value} for key, value in found[name].metrics.items() if key not in each}
            measures[name] = {**{key: asdict(value) for key, value in each.items()}, **others}
    if output is not None:
        evaluation.write_predictions(own, output, overwrite=overwrite)
    return {
        "what": f"{model} of {source} on {data}: {len(own.rows):,} rows, {own.num_labels:,} labels",
        "measures": measures,
        "thresholds": [],
        "costs": evaluation.costs(found),
    }


def _print_measures(measures: dict[str, dict[str, dict[str, float]]]) -> None:
    from hf_distill.evaluation.quality import TITLES

    names = [name for name in TITLES if any(name in each for each in measures.values())]
    names += sorted({name for each in measures.values() for name in each} - {*names})

    def cell(each: dict[str, dict[str, float]], name: str) -> str:
        if name not in each:
            return "-"
        bounds = [f"{each[name][bound]:.3f}".removeprefix("0") for bound in ("low", "high") if bound in each[name]]
        return f"{each[name]['value']:.4f}" + (f" [{'-'.join(bounds)}]" if bounds else "")

    rows = [[TITLES.get(name, name), *(cell(each, name) for each in measures.values())] for name in names]
    print_table(["", *measures], rows)


def _print_thresholds(found: list[dict[str, Any]], costs: dict[str, dict[str, Any]]) -> None:
    rows = []
    for each in found:
        may = f"{each['confidence']:.4f}" if each["share"] else "never"
        cells = [f"{each['target']:.1%}", may, f"{each['share']:.1%}", f"{each['found']:.2%}", f"{each['bound']:.2%}"]
        cells += ["-" if each["accuracy"] is None else f"{each['accuracy']:.4f}", _speed_up(costs, each["share"])]
        rows.append(cells)
    typer.echo("The student predicts alone from a confidence on, and the teacher the rest:")
    header = ["as the teacher", "confidence", "alone", "agreement", "at least", "accuracy", "speed"]
    print_table(header, rows)


def _speed_up(costs: dict[str, dict[str, Any]], share: float) -> str:
    """Say how much faster than the teacher alone a cascade is, in which the student predicts a share of the rows."""
    student, teacher = (float(costs.get(name, {}).get("latency_ms") or 0) for name in ("student", "teacher"))
    return f"{teacher / (student + (1 - share) * teacher):.1f}x" if student and teacher and share else "-"


def _print_costs(costs: dict[str, dict[str, Any]]) -> None:
    columns = {
        "parameters": ("num_parameters", "{:,.0f}", 1.0),
        "MiB": ("size_mib", "{:.2f}", 1.0),
        "MFLOPs": ("flops", "{:.1f}", 1e6),
        "ms/row": ("latency_ms", "{:.2f}", 1.0),
        "90%": ("latency_p90_ms", "{:.2f}", 1.0),
        "99%": ("latency_p99_ms", "{:.2f}", 1.0),
        "rows/s": ("rows_per_second", "{:,.0f}", 1.0),
    }
    shown = {title: known for title, known in columns.items() if any(known[0] in each for each in costs.values())}

    def cell(value: float | None, form: str, unit: float) -> str:
        return "-" if value is None else form.format(value / unit)

    rows = [
        [name, *(cell(each.get(key), form, unit) for key, form, unit in shown.values())] for name, each in costs.items()
    ]
    print_table(["model", *shown], rows)
