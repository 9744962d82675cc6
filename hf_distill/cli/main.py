"""The command line, `hf-distill`: each module named below has the commands of one kind."""

import warnings
from typing import Annotated

import typer

from hf_distill import __version__
from hf_distill.cli.console import app, fail, show_warning

# For their commands, in the order of the help.
from hf_distill.cli import data, train, compare, search, export, publish, recipes  # noqa: F401  # isort: skip


def main() -> None:
    """Run the command line; an error ends with exit code 2 and no traceback, a stop with 130."""
    show = warnings.showwarning
    warnings.showwarning = show_warning
    try:
        app()
    except Exception as error:  # of this package or of a library: to a user they are the same
        fail(error)
    finally:
        warnings.showwarning = show


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
