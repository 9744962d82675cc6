"""A finished run, published on the Hub."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard

from hf_distill.evaluation.curves import PLOT, training_curves
from hf_distill.hub.commit import PushResult
from hf_distill.hub.destination import Destination
from hf_distill.hub.files import README, Outgoing, check_loadable, student_files
from hf_distill.hub.push import Content, preview, push
from hf_distill.hub.readme import read_readme
from hf_distill.runs.recipe.reading import to_yaml
from hf_distill.runs.run_card import card_of, published, read_run


def publish(
    run: Path, to: Destination, *, token: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> PushResult:
    """Publish a finished run in one commit; its folder is only read.

    Raises:
        ValueError: the run is not fit to go out, or (`HubError`) the Hub did not take it; what to do is in the message.
    """
    warnings: list[str] = []
    result = push(_content(run, warnings), to, token=token, sleep=sleep)
    return replace(result, license_warnings=tuple(dict.fromkeys(warnings)))


def outgoing(run: Path, to: Destination, token: str | None = None) -> list[Outgoing]:
    """Return what of a run would go out into an empty repository; the Hub is not asked.

    Raises:
        ValueError: the run is not finished or its student cannot be loaded by others; or there are keys, folders or
            names of this machine in a file.
    """
    return preview(_content(run, []), to, token=token)


def _content(run: Path, warnings: list[str]) -> Content:
    """Return what of a run is pushed; of weights no more than the header is read."""
    _check_finished(run)
    recipe, results = read_run(run)
    student = run / "student"
    files = student_files(student)
    check_loadable(student, files)
    plot = training_curves(results)
    if plot is not None and PLOT not in {file.path_in_repo for file in files}:
        files.append(Outgoing(PLOT, plot))
    files.append(Outgoing("recipe.yaml", to_yaml(published(recipe, results)).encode()))
    files.append(Outgoing("results.json", (run / "results.json").read_bytes()))

    def card(license: str | None, repo_id: str) -> ModelCard:
        made = card_of(recipe, results, plot, repo_id=repo_id, license=license)
        warnings[:] = made.license_warnings
        return made.card

    return Content(
        title=f"Publish {results.recipe}, a student distilled with hf_distill",
        files=files,
        folder=run,
        card=card,
        readme=read_readme(student / README),
        public=list(map(str, results.data.get("label_names") or [])),
    )


def _check_finished(run: Path) -> None:
    if not run.is_dir():
        raise ValueError(f"{run}: there is no such folder; expected the output folder of `hf-distill train`")
    missing = [name for name in ("recipe.yaml", "results.json", "student") if not (run / name).exists()]
    if missing and (run.resolve().parent / "results.json").is_file():
        raise ValueError(f"{run} is a part of a run: name the run's folder, {run.resolve().parent}")
    if missing:
        raise ValueError(
            f"{run} holds no finished run, {', '.join(missing)} is missing: let `hf-distill train` end first"
        )
