"""The commands about the recipes that come with the package: `recipes list` and `recipes copy`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from hf_distill.cli.console import app

recipes_app = typer.Typer(help="The recipes that come with the package.", no_args_is_help=False)
app.add_typer(recipes_app, name="recipes")


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
