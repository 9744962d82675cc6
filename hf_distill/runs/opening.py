"""Open a run: its output folder, its data, its processors."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from hf_distill.data.augmented_texts import with_augmented
from hf_distill.data.images import check_images
from hf_distill.data.loading import Splits, find_columns, load_rows, prepare_splits, split_of
from hf_distill.evaluation.metrics import Metrics
from hf_distill.hub.card.lineage import data_origin
from hf_distill.runs.building import in_the_students_order
from hf_distill.runs.preprocessing import Inputs
from hf_distill.runs.progress import Progress
from hf_distill.runs.recipe.schema import OF_TEXTS, Recipe
from hf_distill.runs.recipe.settings import StageSettings
from hf_distill.runs.shared_targets import shared_targets
from hf_distill.runs.stages import Run
from hf_distill.runs.workspace import Workspace, check_folders_apart

_TAKEN = [*signature(prepare_splits).parameters.values(), *signature(find_columns).parameters.values()]
_OF_THE_FILES = set(signature(load_rows).parameters)  # keys of a recipe's data, as are these
_OF_THE_SPLITS = {each.name for each in _TAKEN if each.kind is each.KEYWORD_ONLY} - {"seed", "unlabelled"}


@contextlib.contextmanager
def open_run(
    recipe: Recipe,
    name: str,
    settings: StageSettings,
    *,
    overwrite: bool = False,
    stages: Sequence[str] | None = None,
    progress: Progress | None = None,
    is_check: bool = False,
) -> Iterator[Run]:
    """Open a run's output folder and load its data; nothing is written yet.

    It may be for some stages alone, or for a check, for which soft targets that others have shared are not downloaded.

    Raises:
        ValueError: something in the data, the models or the output folder is not as it should be.
    """
    folder = Path(recipe.output_dir).expanduser()
    check_folders_apart(recipe)
    with _held(folder, recipe, overwrite=overwrite, stages=stages) as workspace:
        with PartialState().main_process_first():
            shared = shared_targets(recipe, whole=not is_check)
        data = recipe.data
        rows, splits = load_splits(recipe)
        if PartialState().is_main_process:
            for text in splits.warnings:
                warnings.warn(text, UserWarning, stacklevel=1)
        splits, images = readable_images(recipe, in_the_students_order(recipe, splits))
        with PartialState().main_process_first():
            inputs = Inputs(recipe, splits, shared)
            if recipe.is_text and data.augment is not None and data.augment.copies:
                splits = replace(splits, train=_augmented(recipe, splits, inputs.mask_token))
                inputs = Inputs(recipe, splits, shared)
        origin = data_origin(data.dataset, data.revision, rows)
        metrics = Metrics(recipe.model_dump()["metrics"], splits.label_names)
        yield Run(
            recipe, name, settings, workspace, splits, inputs, metrics, origin, shared, images, progress or Progress()
        )


def load_splits(recipe: Recipe) -> tuple[Any, Splits]:
    """Load the data of a recipe: as they are found, and as the splits of a run."""
    rows = load_rows(**recipe.data.model_dump(include=_OF_THE_FILES))
    splits = prepare_splits(
        rows,
        recipe.task,
        seed=int(recipe.training.get("seed", 42)),
        unlabelled=_unlabelled(recipe),
        **recipe.data.model_dump(include=_OF_THE_SPLITS),
    )
    return rows, splits


def splits_of(recipe: Recipe) -> Splits:
    """Load the splits of a run that is finished, whose images have been looked at before."""
    splits = load_splits(recipe)[1]
    return readable_images(recipe, splits)[0] if recipe.data.skip_unreadable else splits


def readable_images(recipe: Recipe, splits: Splits) -> tuple[Splits, dict[str, Any]]:
    """Return the splits without rows whose images cannot be read, if that is wanted, and what the images are like.

    Raises:
        ValueError: an image cannot be read or scaled, and is not to be skipped.
    """
    if recipe.is_text:
        return splits, {}
    kinds: Counter[str] = Counter()
    kept: dict[str, Dataset] = {}
    skipped: dict[str, int] = {}
    for role, rows in splits.named().items():
        bad: list[int] | None = [] if recipe.data.skip_unreadable else None
        kinds += check_images(rows, splits.columns.inputs[0], role, recipe.data.background, unreadable=bad)
        kept[role] = rows if not bad else rows.select(sorted(set(range(len(rows))) - set(bad)))
        skipped |= {role: len(bad)} if bad else {}
    if skipped and PartialState().is_main_process:
        told = ", ".join(f"{number} of the {role} split" for role, number in skipped.items())
        warnings.warn(f"data: left out, since they cannot be read: images {told}", UserWarning, stacklevel=2)
    info: dict[str, Any] = {"unusual_images": dict(kinds)} if kinds else {}
    return replace(splits, **kept), info | ({"skipped_images": skipped} if skipped else {})


def _unlabelled(recipe: Recipe) -> Dataset | None:
    """Load the rows without labels that a recipe names."""
    source = recipe.data.unlabelled
    if source is None:
        return None
    try:
        rows = load_rows(**source.model_dump(include=_OF_THE_FILES))
    except ValueError as error:
        raise ValueError(f"data.unlabelled: {str(error).removeprefix('data: ').removeprefix('data.')}") from error
    chosen = split_of(rows, source.split, "unlabelled.split")
    if source.max_rows is not None and source.max_rows < len(chosen):
        chosen = chosen.shuffle(seed=int(recipe.training.get("seed", 42))).select(range(source.max_rows))
    return chosen


def _augmented(recipe: Recipe, splits: Splits, mask_token: str | None) -> Dataset:
    """Return the training rows with changed copies, as a recipe says.

    Raises:
        ValueError: words are to be masked, and there is no token for that.
    """
    assert recipe.data.augment is not None
    if recipe.data.augment.mask and mask_token is None:
        raise ValueError(
            "data.augment.mask: the models' tokenizers have no mask token, or several: use swap and drop alone"
        )
    seed = int(recipe.training.get("seed", 42))
    changes = recipe.data.augment.model_dump(include={*OF_TEXTS})
    return with_augmented(splits.train, splits.columns.inputs, mask_token=mask_token, seed=seed, **changes)


@contextlib.contextmanager
def _held(folder: Path, recipe: Recipe, **options: Any) -> Any:
    """Open the workspace; of several processes the main one, and the others after it."""
    state = PartialState()
    workspace = Workspace(folder, recipe, **options) if state.is_main_process else None
    state.wait_for_everyone()
    if workspace is None:
        workspace = Workspace.attached(folder)
    try:
        yield workspace
    finally:
        workspace.release()
