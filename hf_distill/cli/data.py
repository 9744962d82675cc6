"""The commands that begin and end with somebody's own data: `init` and `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_distill.cli.console import DebugOption, app, only_ours, print_table


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
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a finished `hf-distill train`.")],
    data: Annotated[
        str, typer.Option("--data", metavar="PATH", help="New data: a file or folder, with or without labels.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.csv", help="Where the predictions and probabilities go.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="student, teacher or baseline.")] = "student",
    split: Annotated[str | None, typer.Option("--split", help="Of the data, if they have several.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace predictions that are there.")] = False,
    debug: DebugOption = False,
) -> None:
    """Predict new data with a model of a run: metrics if they have labels, and a CSV file of probabilities."""
    if output is not None and output.exists() and not overwrite:
        raise ValueError(f"--output: {output} is there: choose another name, or pass --overwrite")
    from hf_distill.runs.evaluate import evaluate_run, write_predictions

    only_ours(debug=debug)
    found = evaluate_run(run, data, model=model, split=split)
    if not found.metrics and output is None:
        raise ValueError(f"{data} has no labels to compare with: name a file for the predictions, --output FILE.csv")
    typer.echo(f"{model} of {run} on {data}: {len(found.rows):,} rows, {found.num_labels:,} labels")
    if found.metrics:
        from hf_distill.evaluation.tables import titled

        print_table([titled(name) for name in found.metrics], [[f"{value:.4f}" for value in found.metrics.values()]])
    if output is not None:
        write_predictions(found, output, overwrite=overwrite)
        typer.echo(f"Predictions are in {output}.")
