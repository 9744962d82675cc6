"""The command line: `hf-distill train`, `check` and `recipes`."""

import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hf_distill import __version__

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
    try:
        app()
    except (ValueError, OSError) as error:
        _fail(error)


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
    """Train teacher, student and baseline, and print how they compare.

    The same command goes on where a run was stopped.
    """
    from hf_distill.recipe import load_recipe, recipe_name

    loaded = load_recipe(recipe, overrides or [])
    from accelerate import PartialState

    from hf_distill.run import distill

    results = distill(loaded, recipe_name(recipe), overwrite=overwrite)
    if PartialState().is_main_process:
        from hf_distill.evaluation.report import results_table, summary

        _print_table(*results_table(results))
        typer.echo(summary(results))
        typer.echo(f"The student is in {Path(loaded.output_dir) / 'student'}, all results in results.json beside it.")
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        # A process that ends while its group is open may abort, and the launcher then kills the others. One that closes
        # it while another is on its way out of the last barrier breaks that one's connection, hence the pause.
        # (Not by Accelerate's state: settings that are checked on the way may have reset it in one process.)
        distributed.barrier()
        time.sleep(1)
        distributed.destroy_process_group()


@app.command()
def check(recipe: RecipeArgument, overrides: OverridesArgument = None, debug: DebugOption = False) -> None:
    """Check a recipe and print what it would do, where its models would live and how much memory they need.

    Nothing is trained or written, and of the models nothing but their configs is loaded.
    """
    from hf_distill.plan import plan
    from hf_distill.recipe import load_recipe

    for name, text in plan(load_recipe(recipe, overrides or [])):
        typer.echo(f"{name:9} {text}")


@recipes_app.callback(invoke_without_command=True)
def _recipes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes()


@recipes_app.command("list")
def list_recipes() -> None:
    """List the recipes that come with the package."""
    from hf_distill.recipe import bundled_recipes

    for name, path in bundled_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:24} {first.removeprefix('#').strip()}")


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name, such as vision/digits.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put it.")],
) -> None:
    """Copy a recipe into a folder, to change it there."""
    from hf_distill.recipe import bundled_recipes

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
