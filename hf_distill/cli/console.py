"""What all commands share: the application, its arguments, and how it prints."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
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
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a card differs from its results, 2 a mistake in what was given, 130 stopped.",
)

_MOST_LINES = 5  # of an error

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a bundled recipe's name.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings in place of the recipe's: training.learning_rate=1e-3."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only results and warnings.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


_shown: set[str] = set()  # warnings, each of which is shown once


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line, once, without the place in a library that it comes from."""
    text = " ".join(str(message).split())
    if text not in _shown:
        _shown.add(text)
        print_warnings([text])


def fail(error: Exception) -> NoReturn:
    """Print an error, a line each, and end with exit code 2."""
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    text = str(error).strip()
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif not isinstance(error, ValueError | OSError):  # of a library, and may go on for pages
        text = f"{type(error).__name__}: {(text or 'no message').splitlines()[0]}"
    lines = [line for line in (text or type(error).__name__).splitlines() if line.strip()]
    is_of_recipe = type(error).__name__ == "RecipeError"  # whose problems are told all at once
    most = len(lines) if is_of_recipe else _MOST_LINES
    for line in lines[:most]:
        typer.echo(f"error: {in_recipe_words(line)}", err=True)
    if len(lines) > most:
        typer.echo(f"error: and {len(lines) - most} more lines", err=True)
    if "--debug" not in sys.argv and not is_of_recipe:
        typer.echo("(--debug shows where it happened)", err=True)
    sys.exit(2)


def in_recipe_words(line: str) -> str:
    """Say as a recipe does what Python calls a keyword of the settings: `training.bf16=true` for `bf16=True`."""
    config = sys.modules.get("hf_distill.training.config")
    fields = {} if config is None else config.DistillationConfig.__dataclass_fields__

    def changed(found: re.Match[str]) -> str:
        return f"training.{found[1]}={found[2].lower()}" if found[1] in fields else found[0]

    return re.sub(r"(?<![\w.])(\w+)=(True|False)\b", changed, line)


def is_first_process() -> bool:
    """Tell whether this is the process that prints; Accelerate, whose state depends on settings, is not asked."""
    return os.environ.get("RANK", "0") == "0"


def only_ours(*, debug: bool) -> None:
    """Silence bars without a name, and what libraries tell of their own doings; with --debug these are shown."""
    import datasets
    import huggingface_hub.utils.logging
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    if not debug:
        transformers.logging.set_verbosity_error()
        huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def stop(where: str) -> NoReturn:
    """Say where a command was stopped, and end with exit code 130."""
    typer.echo(f"\nstopped {where}", err=True)
    sys.exit(130)


def print_warnings(lines: list[str]) -> None:
    """Print warnings, a line each."""
    for line in lines:
        typer.echo(f"warning: {line}", err=True)


def print_table(header: list[str], rows: list[list[str]], *, spare: Sequence[str] = ()) -> None:
    """Print a table: the first column to the left, numbers to the right; a narrow terminal lacks spare columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    widths = {name: max(map(len, (name, *cells))) + 1 for name, cells in columns.items()}
    for name in spare:
        if sum(widths[each] for each in columns) > console.width:
            columns.pop(name, None)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table, "")


def print_sentence(text: str) -> None:
    """Print a sentence, which a terminal breaks between words."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(text, markup=False)


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
