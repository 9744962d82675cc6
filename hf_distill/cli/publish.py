"""The commands that hand a student to others: `card` and `push`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_distill.cli.console import DebugOption, app, print_outgoing, print_published, print_warnings


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
    print_warnings(made.license_warnings)


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
        print_warnings(list(published.license_warnings))
        print_published(published)
        return
    print_outgoing(outgoing(run, to), repo_id)
