"""The command that searches settings."""

from typing import Annotated

import typer

from hf_distill.cli.console import DebugOption, OverridesArgument, QuietOption, RecipeArgument, app, only_ours


@app.command()
def search(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Students to train, those of before among them.")] = 20,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="KEY=RANGE",
            help="What to search: KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=ONE,OTHER. Default: alpha and temperature.",
        ),
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    r"""Search settings of the student's training, and write the best as a recipe.

    The teacher is trained once. The rows that choose are never those of the
    recipe's results. The same command goes on where it was stopped.
    It needs Optuna: pip install 'hf_distill\[search]'.
    """
    from hf_distill.cli.progress import progress_for
    from hf_distill.runs.search import DEFAULT_RANGES, Range
    from hf_distill.runs.search import search as run_search

    ranges = [Range.parse(text) for text in over or DEFAULT_RANGES]
    only_ours(debug=debug)

    def tell(number: int, chosen: list[str], value: float) -> None:
        typer.echo(f"trial {number} of {trials}: {value:.4f} with {', '.join(chosen)}")

    found = run_search(recipe, overrides or [], ranges, trials, progress=progress_for(quiet=True), tell=tell)
    typer.echo(f"Best: {found.metric} {found.value:.4f} on {found.chosen_on}, with {', '.join(found.overrides)}.")
    if not quiet:
        typer.echo(f"Next:\n  train it  hf-distill train {found.recipe}")
