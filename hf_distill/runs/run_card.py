"""The card of a run folder, rebuilt from its recipe.yaml and results.json alone."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard

from hf_distill.evaluation.curves import PLOT, training_curves
from hf_distill.evaluation.results import Results
from hf_distill.hub.card.licenses import license_conflicts, student_license
from hf_distill.hub.card.model_card import model_card
from hf_distill.hub.card.origins import inferred_lineage
from hf_distill.hub.portable import portable
from hf_distill.hub.readme import license_in, merge, read_readme
from hf_distill.runs.recipe.reading import bundled_recipes, command_for, read_resolved, to_yaml
from hf_distill.runs.recipe.schema import Recipe


class RunCard(NamedTuple):
    """A card and what it is shown with.

    Attributes:
        card: with the name of the picture in it, if there is one.
        plot: the picture, as PNG; None if the run logged nothing to draw.
        license_warnings: what the teachers' licenses forbid, a line each.
    """

    card: ModelCard
    plot: bytes | None
    license_warnings: list[str]


def card_of_run(run: Path, *, repo_id: str | None = None, license: str | None = None, plot_name: str = PLOT) -> RunCard:
    """Make a run's card, with no network and no model.

    Raises:
        ValueError: the folder holds no finished run.
    """
    recipe, results = read_run(run)
    plot = training_curves(results)
    return card_of(recipe, results, plot, repo_id=repo_id, license=license, plot_name=plot_name)


def card_of(
    recipe: Recipe,
    results: Results,
    plot: bytes | None,
    *,
    repo_id: str | None = None,
    folder: Path | None = None,
    license: str | None = None,
    plot_name: str = PLOT,
) -> RunCard:
    """Make the card of a run that is at hand, around a picture of its curves; see `card_of_run`."""
    shared = published(recipe, results)
    # A recipe of the user's own is repeated by the file that is published with the model.
    is_bundled = results.recipe in bundled_recipes()
    card = model_card(
        recipe.model_dump(),
        results,
        command_for(shared, results.recipe) if is_bundled else "hf-distill train recipe.yaml",
        repo_id=repo_id,
        folder=None if folder is None else folder.as_posix(),
        plot=None if plot is None else plot_name,
        license=license,
    )
    return RunCard(card, plot, license_lines(recipe, results, license))


def license_lines(recipe: Recipe, results: Results, license: str | None = None) -> list[str]:
    """Return what the teachers' licenses say to the student's, a line each; see `licenses.license_conflicts`."""
    settings = recipe.model_dump()
    license = student_license(settings, results.lineage, license).get("license")
    return license_conflicts(settings, results.lineage, license)


def read_run(run: Path) -> tuple[Recipe, Results]:
    """Read what a run has left; results that have no lineage get what the recipe tells of it.

    Raises:
        ValueError: one of the two files is not there or cannot be read; the message names it.
    """
    for name in ("recipe.yaml", "results.json"):
        if not (run / name).is_file():
            raise ValueError(
                f"{run} holds no finished run: it has no {name}. Name the output_dir of `hf-distill train`."
            )
    try:
        recipe, results = read_resolved(run / "recipe.yaml"), Results.read(run)
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from error
    # Once local paths are cut to their last names, these no longer tell what was local.
    return recipe, replace(results, lineage=results.lineage or inferred_lineage(recipe.model_dump()))


def published(recipe: Recipe, results: Results) -> Recipe:
    """Return a recipe as strangers may see it; see `portable`."""
    return Recipe.model_validate(portable(recipe.model_dump(), results.lineage))


def save_card(run: Path, *, repo_id: str | None = None) -> tuple[Path, RunCard]:
    """Write a run's card anew into its student's README.md, with the picture beside it.

    Raises:
        ValueError: the folder holds no finished run or no student, or the README.md cannot be read.
    """
    recipe, results = read_run(run)
    readme = run / "student" / "README.md"
    if not readme.parent.is_dir():
        raise ValueError(f"{run} has no student: name the file for the card, --output FILE.md")
    plot, license = training_curves(results), license_in(readme)
    made = card_of(recipe, results, plot, repo_id=repo_id, folder=readme.parent, license=license)
    write_card(made, readme, readme.parent / PLOT)
    return readme, made


def export_card(run: Path, output: Path, *, repo_id: str | None = None) -> RunCard:
    """Write a run's card into a file, and what it was made from into the folder of the same name beside it.

    That folder holds recipe.yaml without local paths, results.json and the picture, and the card can be made from it.

    Raises:
        ValueError: the folder holds no finished run, or the file is no .md or cannot be read.
    """
    if output.suffix != ".md" or output.is_dir():
        raise ValueError(f"--output: expected a file that ends in .md, got {output}")
    recipe, results = read_run(run)
    folder = output.with_suffix("")
    _check_not_foreign_folder(folder)
    plot_name = f"{folder.name}/{PLOT}"
    plot = training_curves(results)
    made = card_of(recipe, results, plot, repo_id=repo_id, license=license_in(output), plot_name=plot_name)
    write_card(made, output, folder / PLOT)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_bytes(to_yaml(published(recipe, results)).encode())
    (folder / "results.json").write_bytes(results.to_json().encode())
    return made


def _check_not_foreign_folder(folder: Path) -> None:
    """Refuse to write what a card was made from over anything else than what an earlier one was made from."""
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    ours = {"recipe.yaml", "results.json"}
    if (folder.exists() and not folder.is_dir()) or there - ours - {PLOT} or (there and not ours <= there):
        what = ", ".join(sorted(there - ours - {PLOT})[:3]) or "no card was made from it"
        raise ValueError(
            f"--output: recipe.yaml, results.json and {PLOT} go into the folder {folder}, which is something else "
            f"({what}): choose another name for the card"
        )


def write_card(made: RunCard, readme: Path, plot: Path) -> None:
    """Write a card into a README, which may hold somebody's own text, and the picture beside it.

    Raises:
        ValueError: the README cannot be read or its marks are broken; nothing is written then.
    """
    text = merge(read_readme(readme), made.card)
    readme.parent.mkdir(parents=True, exist_ok=True)
    plot.parent.mkdir(parents=True, exist_ok=True)
    if made.plot is None:
        plot.unlink(missing_ok=True)
    else:
        plot.write_bytes(made.plot)
    readme.write_bytes(text.encode())
