"""The command that compares student and baseline over folds and seeds."""

import json
from typing import Annotated

import typer

from hf_distill.cli.console import (
    DebugOption,
    OverridesArgument,
    QuietOption,
    RecipeArgument,
    app,
    only_ours,
    print_sentence,
    print_table,
)


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    folds: Annotated[int, typer.Option("--folds", help="Of the training rows; 0: the recipe's evaluation rows.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", help="Students for each fold.")] = 1,
    train_fraction: Annotated[
        float | None, typer.Option("--train-fraction", help="Of the rows, for the student; the teacher has all.")
    ] = None,
    label_budgets: Annotated[
        str | None,
        typer.Option("--label-budgets", metavar="N,N,...", help="Labels of the student, not of the teacher."),
    ] = None,
    quiet: QuietOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print comparison.json, and nothing else.")] = False,
    debug: DebugOption = False,
) -> None:
    """Say whether the student is better than its baseline: over folds, seeds, or with few labels.

    Each fold has one teacher. The same command goes on where it was stopped.
    """
    from hf_distill.cli.progress import progress_for
    from hf_distill.runs.compare import FILE, Plan, compare_recipe

    try:
        budgets = tuple(int(each) for each in label_budgets.split(",")) if label_budgets else ()
    except ValueError as error:
        raise ValueError(
            f"--label-budgets: expected numbers with commas, such as 100,300; got {label_budgets}"
        ) from error
    only_ours(debug=debug)

    def tell(what: str) -> None:
        if not quiet and not as_json:
            typer.echo(what)

    plan = Plan(folds, seeds, train_fraction, budgets)
    found, folder = compare_recipe(recipe, overrides or [], plan, progress=progress_for(quiet=True), tell=tell)
    if as_json:
        typer.echo(json.dumps(json.loads((folder / FILE).read_text(encoding="utf-8")), indent=2))
        return
    models = ("teacher", "student", "baseline")
    rows = [
        [
            f"{each.num_labels:,}",
            *(_spread(each.means[name], each.deviations[name]) for name in models),
            f"{100 * each.difference:+.2f}",
            f"{100 * each.low:+.2f} to {100 * each.high:+.2f}",
            "-" if each.p is None else f"{each.p:.3f}",
        ]
        for each in found
    ]
    print_table(["labels", *models, "gain", "95% interval", "p"], rows)
    for each in found:
        of = f"with {each.num_labels:,} labels: " if len(found) > 1 else ""
        side = "above" if each.difference >= 0 else "below"
        print_sentence(
            f"{of}{each.verdict}: the student's accuracy is {100 * abs(each.difference):.2f} points {side} its "
            f"baseline's (95% interval {100 * each.low:+.2f} to {100 * each.high:+.2f})."
        )
    typer.echo(f"All figures are in {folder / FILE}.")


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.4f}" if deviation != deviation else f"{mean:.4f}±" + f"{deviation:.4f}".removeprefix("0")
