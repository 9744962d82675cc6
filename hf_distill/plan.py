"""What a recipe would do, in words."""

from pathlib import Path
from typing import Any

from hf_distill.recipe import Recipe, Student, Teacher
from hf_distill.workspace import STAGES, state_of


def plan(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the steps of a run, each with its name; nothing is loaded for it.

    Args:
        recipe: a valid recipe.
    """
    data = recipe.data
    judged = data.test_split or data.eval_split or "the validation or test split"
    rows = f"at most {data.max_train_rows:,} rows of " if data.max_train_rows else ""
    alpha, temperature = recipe.training.get("alpha", 0.1), recipe.training.get("temperature", 4.0)
    teacher = _model(recipe.teacher)
    if recipe.teacher.training is None:
        teacher += ", ready"
    else:
        teacher += f", trained on the labels first ({_settings(recipe.teacher.training)})"
    return [
        ("task", recipe.task),
        ("data", f"{data.dataset or data.path}: {rows}{data.train_split} for training, {judged} for the results"),
        ("teacher", teacher),
        (
            "student",
            f"{_model(recipe.student)}, alpha {alpha}, temperature {temperature} ({_settings(recipe.training)})",
        ),
        ("baseline", "the same student on the labels alone" if recipe.baseline else "none"),
        ("metrics", ", ".join(recipe.metrics)),
        ("output", _output(recipe)),
    ]


def _model(section: Teacher | Student) -> str:
    if section.model is not None:
        return section.model + (f" at {section.revision}" if section.revision else "")
    if section.config is not None:
        return f"a new {section.config.get('model_type')} ({_settings(section.config, 'model_type')})"
    assert isinstance(section, Student)
    assert section.from_teacher is not None
    return f"the teacher's layers {', '.join(map(str, section.from_teacher.layers))}"


def _settings(settings: dict[str, Any], *without: str) -> str:
    shown = [f"{name} {value}" for name, value in settings.items() if name not in ("alpha", "temperature", *without)]
    return ", ".join(shown) or "default settings"


def _output(recipe: Recipe) -> str:
    folder = Path(recipe.output_dir).expanduser()
    changed, finished = state_of(folder, recipe)
    if changed is None:
        return f"{folder}, new"
    if changed:
        return f"{folder}, where a run with other settings is ({'; '.join(changed)}): train would refuse it"
    left = [stage for stage in STAGES if stage not in finished and _is_wanted(recipe, stage)]
    return f"{folder}, finished there: {', '.join(finished) or 'nothing'}, left: {', '.join(left) or 'nothing'}"


def _is_wanted(recipe: Recipe, stage: str) -> bool:
    return {"teacher": recipe.teacher.training is not None, "baseline": recipe.baseline}.get(stage, True)
