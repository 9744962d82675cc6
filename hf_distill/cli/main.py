"""The command line: `hf-distill train`, `cache`, `check`, `push`, `card` and `recipes`."""

import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hf_distill import __version__

if TYPE_CHECKING:
    from hf_distill.hub.commit import PushResult
    from hf_distill.hub.files import Outgoing

app = typer.Typer(
    name="hf-distill",
    help="Turn a heavy Transformers classifier into a small one, and know what it cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
recipes_app = typer.Typer(help="The recipes that come with the package.", no_args_is_help=False)
app.add_typer(recipes_app, name="recipes")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a bundled recipe's name.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings in place of the recipe's: training.learning_rate=1e-3."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Run the command line; a user's mistake ends with exit code 2 and no traceback."""
    show = warnings.showwarning
    warnings.showwarning = partial(_show_warning, show)
    try:
        app()
    except (ValueError, OSError) as error:
        _fail(error)
    finally:
        warnings.showwarning = show


def _show_warning(
    show: Callable[..., None], message: Warning | str, category: type[Warning], filename: str, *where: Any
) -> None:
    """Print a warning of this package as one line, and any other as Python does."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        _warn_of([str(message)])
    else:
        show(message, category, filename, *where)


def _fail(error: Exception) -> NoReturn:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    for line in (text.strip() or type(error).__name__).splitlines():
        typer.echo(f"error: {line}", err=True)
    if "--debug" not in sys.argv and type(error).__name__ != "RecipeError":
        typer.echo("(--debug shows where it happened)", err=True)
    sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-distill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete a run with other settings in the same output folder.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Train teacher, student and baseline, print how they compare, and publish the student if the recipe names a hub.

    The same command goes on where a run was stopped.
    """
    from hf_distill.runs.recipe.reading import load_recipe, recipe_name

    loaded = load_recipe(recipe, overrides or [])
    from accelerate import PartialState

    from hf_distill.runs.train import distill, publish_student
    from hf_distill.training.distributed import shutdown_processes

    results = distill(loaded, recipe_name(recipe), overwrite=overwrite)
    is_main = PartialState().is_main_process
    if is_main:
        from hf_distill.evaluation.tables import results_table, summary

        _print_table(*results_table(results))
        typer.echo(summary(results))
        typer.echo(f"The student is in {Path(loaded.output_dir) / 'student'}, all results in results.json beside it.")
        from hf_distill.runs.run_card import license_lines

        _warn_of(license_lines(loaded, results))
    shutdown_processes()
    published = publish_student(loaded) if is_main else None
    if published is not None:
        _print_published(published)


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

    from hf_distill.hub.destination import Destination
    from hf_distill.hub.push import check_destination
    from hf_distill.runs.cache import cache_soft_targets, preview_soft_targets, share_soft_targets
    from hf_distill.training.distributed import shutdown_processes

    to = None if push is None else Destination(push, private or None, revision, create_pr, overwrite, kind="dataset")
    if to is not None and not dry_run and PartialState().is_main_process:
        check_destination(to)
    cached = cache_soft_targets(loaded, recipe_name(recipe))
    is_main = PartialState().is_main_process
    shutdown_processes()
    if not is_main:
        return
    size = f"{cached.num_bytes / 2**20:.2f} MiB, {cached.num_bytes / cached.num_rows:.0f} bytes a row"
    typer.echo(f"Soft targets of {cached.num_rows:,} rows are in {cached.folder}: {size}.")
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in cached.metrics.items())
    computed, before = cached.num_computed, cached.num_rows - cached.num_computed
    typer.echo(
        f"Teacher {metrics}. Soft targets: {computed:,} computed, {before:,} already cached ({cached.seconds:.1f} s)."
    )
    if to is None:
        _warn_of([] if cached.warning is None else [cached.warning])
    elif dry_run:
        _print_outgoing(preview_soft_targets(cached, to), to.repo_id)
    else:
        _print_published(share_soft_targets(cached, to), "these soft targets")


@app.command()
def card(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The output folder of a finished `hf-distill train`.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write FILE.md, and what it is made from into the folder FILE."),
    ] = None,
    repo_id: Annotated[
        str | None, typer.Option("--repo-id", metavar="NAME", help="namespace/name, for the card's title and snippets.")
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option("--verify", metavar="NAME", help="No RUN: compare a published card with its results.json."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="With --verify: a branch, tag or commit; else main.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Make the model card of a run anew, from its recipe.yaml and results.json alone.

    It goes into the student's README.md, where text that you have added stays, or into --output FILE.md.
    """
    if (run is None) == (verify is None) or (verify is not None and (output or repo_id)):
        raise ValueError("expected RUN, to make its card, or --verify NAME alone, to check one on the Hub")
    if verify is not None:
        _verify_card(verify, revision)
        return
    if revision is not None:
        raise ValueError("--revision belongs to --verify: a run has none")
    assert run is not None
    from hf_distill.runs.run_card import export_card, save_card

    if output is None:
        output, made = save_card(run, repo_id=repo_id)
    else:
        made = export_card(run, output, repo_id=repo_id)
    typer.echo(f"{output}")
    _warn_of(made.license_warnings)


def _verify_card(repo_id: str, revision: str | None) -> None:
    from hf_distill.evaluation.results import Results
    from hf_distill.hub.card.model_card import verify
    from hf_distill.hub.push import download_texts

    card, results = download_texts(repo_id, ("README.md", "results.json"), revision).values()
    differences = verify(card, Results.from_json(results))
    for line in differences:
        typer.echo(line)
    if differences:
        raise typer.Exit(1)
    typer.echo(f"The numbers in the card of {repo_id} are those of its results.json.")


@app.command()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a finished `hf-distill train`.")],
    repo_id: Annotated[
        str, typer.Option("--repo-id", metavar="NAME", help="name (in your own namespace) or namespace/name.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="A branch, made if there is none; else main.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the student by a pull request.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that hf-distill has not made.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go out into an empty repository; the Hub is not asked.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Publish the student of a finished run on the Hub, in one commit.

    Weights, processor, model card, recipe.yaml, results.json and the training curves go out; files with keys, paths or
    names of this machine do not. The same command again does nothing twice, and text that you add to README.md stays.
    """
    from hf_distill.hub.destination import Destination
    from hf_distill.runs.publish import outgoing, publish

    to = Destination(repo_id, private or None, revision, create_pr, overwrite)
    if not dry_run:
        published = publish(run, to)
        _warn_of(list(published.license_warnings))
        _print_published(published)
        return
    _print_outgoing(outgoing(run, to), repo_id)


@app.command()
def check(recipe: RecipeArgument, overrides: OverridesArgument = None, debug: DebugOption = False) -> None:
    """Check a recipe and print what it would do, where its models would live and how much memory they need.

    Nothing is trained or written, and of the models nothing but their configs is loaded. A recipe that runs code of
    others says so in the first line.
    """
    from hf_distill.hub.card.parts import code_of_others
    from hf_distill.runs.recipe.describe import plan
    from hf_distill.runs.recipe.reading import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    asked = code_of_others(loaded.model_dump())
    if asked is not None:
        typer.echo(asked)
    for name, text in plan(loaded):
        typer.echo(f"{name:9} {text}")


@recipes_app.callback(invoke_without_command=True)
def _recipes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes_app.command("list")
def list_recipes() -> None:
    """List the recipes that come with the package."""
    from hf_distill.runs.recipe.reading import bundled_recipes

    for name, path in bundled_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:24} {first.removeprefix('#').strip()}")


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name, such as vision/digits.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put it.")],
) -> None:
    """Copy a recipe into a folder, to change it there."""
    from hf_distill.runs.recipe.reading import bundled_recipes

    known = bundled_recipes()
    name = name.removesuffix(".yaml")
    if name not in known:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(known)}")
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name a folder")
    target = folder / known[name].name
    if target.exists():
        raise ValueError(f"{target} exists already: remove it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(known[name], target)
    typer.echo(f"{target}")


def _print_outgoing(files: "list[Outgoing]", repo_id: str) -> None:
    for file in files:
        typer.echo(f"{file.size:>15,}  {file.path_in_repo}")
    typer.echo(f"{sum(file.size for file in files):>15,}  bytes in {len(files)} files would go to {repo_id}")


def _print_published(published: "PushResult", what: str = "this student") -> None:
    where, number = published.repo_id, len(published.files)
    if not published.files and not published.removed:
        typer.echo(f"Nothing to push, {where} holds {what} already: {published.url}")
    else:
        done = f"{number} {'file' if number == 1 else 'files'} {'proposed' if published.pull_request else 'pushed'}"
        typer.echo(f"{done} to {where} in commit {published.commit[:8]}: {published.url}")
    if published.removed:
        typer.echo(f"Removed there, left by another push: {', '.join(published.removed)}")
    for note in published.notes:
        typer.echo(f"note: {' '.join(note.split())}", err=True)


def _warn_of(lines: list[str]) -> None:
    for line in lines:
        typer.echo(f"warning: {line}", err=True)


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
