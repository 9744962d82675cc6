"""A recipe's teacher, trained once for many students."""

from collections.abc import Sequence
from pathlib import Path

from hf_distill.runs.opening import open_run
from hf_distill.runs.progress import Progress
from hf_distill.runs.recipe.reading import load_recipe, recipe_name
from hf_distill.runs.recipe.schema import SOFT_TARGETS
from hf_distill.runs.recipe.settings import StageSettings


def taught_once(source: str, overrides: Sequence[str], folder: Path, progress: Progress | None) -> list[str]:
    """Train the teacher of a recipe, if that has not been done; return overrides for its students.

    They use that teacher, and one cache of its soft targets if the recipe has one.

    Raises:
        ValueError: there are several teachers to train.
    """
    recipe = load_recipe(source, overrides)
    is_trained = any(teacher.training is not None for teacher in recipe.teachers)
    if isinstance(recipe.teacher, list) and is_trained:
        raise ValueError(
            "one teacher is trained for all students, and the recipe has several: train the recipe, and name their "
            "folders in its place (teacher.0.model ...)"
        )
    is_cached = recipe.training.get("precompute_teacher_logits", False)
    logits = [f"training.teacher_logits_dir={folder / SOFT_TARGETS}"] if is_cached else []
    if not is_trained:
        return logits
    recipe = load_recipe(source, [*overrides, f"output_dir={folder / 'teacher'}"])
    stages = list(recipe.teacher_stages())
    with open_run(recipe, recipe_name(source), StageSettings(recipe), stages=stages, progress=progress) as run:
        run.progress.begin(len(stages))
        run.prepare(needs_labels=True)
        run.teachers()
    model = folder / "teacher" / "teacher"
    gone = [f"teacher.{key}=null" for key in ("training", "augment", "config")]
    return [*gone, f"teacher.model={model}", *logits]
