"""What all commands share: the application, its arguments, and how it prints."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

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

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a bundled recipe's name.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings in place of the recipe's: training.learning_rate=1e-3."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def show_warning(
    show: Callable[..., None], message: Warning | str, category: type[Warning], filename: str, *where: Any
) -> None:
    """Print a warning of this package as one line, and any other as Python does."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        print_warnings([str(message)])
    else:
        show(message, category, filename, *where)


def fail(error: Exception) -> NoReturn:
    """Print an error, a line each, and end with exit code 2."""
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


def print_warnings(lines: list[str]) -> None:
    """Print warnings, a line each."""
    for line in lines:
        typer.echo(f"warning: {line}", err=True)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table: the first column to the left, numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def print_outgoing(files: "list[Outgoing]", repo_id: str) -> None:
    """Print which files would go to a repository, and their size."""
    for file in files:
        typer.echo(f"{file.size:>15,}  {file.path_in_repo}")
    typer.echo(f"{sum(file.size for file in files):>15,}  bytes in {len(files)} files would go to {repo_id}")


def print_published(published: "PushResult", what: str = "this student") -> None:
    """Print what a push has done."""
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
