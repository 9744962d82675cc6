"""The commands that compute: `train`, `cache` and `check`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hf_distill.cli.console import (
    DebugOption,
    OverridesArgument,
    QuietOption,
    RecipeArgument,
    app,
    is_first_process,
    only_ours,
    print_outgoing,
    print_published,
    print_sentence,
    print_table,
    print_warnings,
    stop,
)

if TYPE_CHECKING:
    from hf_distill.runs.cache import Cached
    from hf_distill.runs.progress import Progress
    from hf_distill.runs.stages import Run


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make again the stages whose settings or data changed; all if none did.")
    ] = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train teacher, student and baseline, print how they compare, and publish the student if the recipe names a hub.

    The same command goes on where a run was stopped.
    """
    from hf_distill.runs.recipe.reading import load_recipe, recipe_name

    name = recipe_name(recipe)
    if not quiet and is_first_process():
        typer.echo(f"{name}: reading the recipe and loading the libraries")
    loaded = load_recipe(recipe, overrides or [])
    from accelerate import PartialState

    from hf_distill.cli.progress import progress_for
    from hf_distill.runs.train import distill, publish_student
    from hf_distill.training.distributed import shutdown_processes

    only_ours(debug=debug)
    progress = progress_for(quiet=quiet)
    try:
        results = distill(loaded, name, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        _stopped(progress, loaded.output_dir)
    is_main = PartialState().is_main_process
    if is_main:
        from hf_distill.evaluation.tables import next_steps, results_table, summary, verdict
        from hf_distill.runs.report import diagnosis_of, report_of_train

        print_table(*results_table(results), spare=("of teacher", "train s"))
        for line in [*verdict(results), summary(results), *diagnosis_of(Path(loaded.output_dir).expanduser())]:
            print_sentence(line)
        from hf_distill.runs.run_card import license_lines

        print_warnings(license_lines(loaded, results))

        page = report_of_train(Path(loaded.output_dir).expanduser())
        if not quiet:
            is_published = loaded.hub is not None
            typer.echo(next_steps(loaded.output_dir, loaded.task, is_published=is_published, report=page))
    shutdown_processes()
    published = publish_student(loaded) if is_main else None
    if published is not None:
        print_published(published)


@app.command()
def cache(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="REPO_ID", help="Share them as a data set: name, or namespace/name."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make a new data set private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="With --push: a branch, made if there is none; else main."),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="With --push: propose them by a pull request.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="With --push: go beside the files of a data set that hf-distill has not made."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --push: list what would go into an empty data set; the Hub is not asked."),
    ] = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Compute and cache the teacher's soft targets for all rows. Trains no student.

    A teacher that the recipe trains is trained first. `train` of the same recipe, with
    training.precompute_teacher_logits=true, finds them all. The same command goes on where it was stopped. Others learn
    from what is shared by `teacher: {logits: REPO_ID}`.
    """
    if push is None and (private or revision is not None or create_pr or overwrite or dry_run):
        raise ValueError("--private, --revision, --create-pr, --overwrite and --dry-run belong to --push REPO_ID")
    from hf_distill.runs.recipe.reading import load_recipe, recipe_name

    loaded = load_recipe(recipe, [*(overrides or []), "training.precompute_teacher_logits=true"])
    from accelerate import PartialState

    from hf_distill.cli.progress import progress_for
    from hf_distill.hub.destination import Destination
    from hf_distill.hub.push import check_destination
    from hf_distill.runs.cache import cache_soft_targets, preview_soft_targets, share_soft_targets
    from hf_distill.training.distributed import shutdown_processes

    to = None if push is None else Destination(push, private or None, revision, create_pr, overwrite, kind="dataset")
    if to is not None and not dry_run and PartialState().is_main_process:
        check_destination(to)
    only_ours(debug=debug)
    progress = progress_for(quiet=quiet)
    try:
        cached = cache_soft_targets(loaded, recipe_name(recipe), progress=progress)
    except KeyboardInterrupt:
        _stopped(progress, loaded.output_dir)
    is_main = PartialState().is_main_process
    shutdown_processes()
    if not is_main:
        return
    _print_cached(cached)
    if to is None:
        print_warnings([] if cached.warning is None else [cached.warning])
    elif dry_run:
        print_outgoing(preview_soft_targets(cached, to), to.repo_id)
    else:
        print_published(share_soft_targets(cached, to), "these soft targets")


def _print_cached(cached: "Cached") -> None:
    size = f"{cached.num_bytes / 2**20:.2f} MiB, {cached.num_bytes / cached.num_rows:.0f} bytes a row"
    typer.echo(f"Soft targets of {cached.num_rows:,} rows are in {cached.folder}: {size}.")
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in cached.metrics.items())
    computed, before = cached.num_computed, cached.num_rows - cached.num_computed
    typer.echo(
        f"Teacher {metrics}. Soft targets: {computed:,} computed, {before:,} already cached ({cached.seconds:.1f} s)."
    )


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Look at the recipe alone; data are not opened.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train a few steps of each stage, and say how long all would take.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Look at a recipe, its data and its models, and say what is odd; nothing is trained or written.

    It prints what the recipe would do, where its models would live and how much memory they need, the rows, classes
    and lengths of the data, and runs a batch of these through the models. What `train` would refuse ends with exit code
    2. A recipe that runs code of others says so in the first line.
    """
    from hf_distill.hub.card.parts import code_of_others
    from hf_distill.runs.recipe.describe import plan
    from hf_distill.runs.recipe.reading import load_recipe, recipe_name

    if no_data and measure:
        raise ValueError("--measure trains a few steps on the data: leave --no-data out")
    loaded = load_recipe(recipe, overrides or [])
    asked = code_of_others(loaded.model_dump())
    if asked is not None:
        typer.echo(asked)
    for name, text in plan(loaded):
        typer.echo(f"{name:9} {text}")
    if no_data:
        typer.echo("rows      not looked at (--no-data)")
        return
    from hf_distill.runs.data_summary import summarize
    from hf_distill.runs.opening import open_run
    from hf_distill.runs.recipe.settings import StageSettings

    only_ours(debug=debug)
    with open_run(loaded, recipe_name(recipe), StageSettings(loaded), is_check=True) as run:
        lines, odd = summarize(loaded, run.splits, run.inputs)
        for name, text in lines:
            typer.echo(f"{name:9} {text}")
        print_warnings([f"data: {line}" for line in odd])
        run.check(needs_labels=loaded.baseline)
        typer.echo("models    each can read a batch of these data")
        if measure:
            _print_estimates(run)
    typer.echo(f"Nothing stands in the way of: hf-distill train {shlex.join([recipe, *(overrides or [])])}")


def _stopped(progress: "Progress", output_dir: str) -> NoReturn:
    """Say where a run was stopped, and where the same command goes on."""
    from hf_distill.runs.workspace import Workspace

    stage, where = progress.name, progress.where
    found = Workspace.attached(Path(output_dir).expanduser()).last_checkpoint(stage) if stage else None
    goes_on = "goes on there" if found is None else f"goes on at step {found.step:,}, its last checkpoint"
    if found is None and stage:
        goes_on = "begins this stage again, there is no checkpoint yet (training.save_steps)"
    progress.done()
    stop(f"{where}; the same command {goes_on}")


def _print_estimates(run: "Run") -> None:
    from hf_distill.cli.progress import duration
    from hf_distill.runs.estimate import estimates

    total = 0.0
    for stage, num_steps, seconds in estimates(run):
        total += seconds
        each = 1000 * seconds / max(num_steps, 1)
        typer.echo(f"time      {stage}: {num_steps:,} steps of {each:,.1f} ms, {duration(seconds)}")
    typer.echo(f"time      all: {duration(total)}, and the evaluations")
