"""Settings of a recipe that do not go together."""

from typing import Any

from hf_distill.runs.recipe.schema import OF_IMAGES, OF_TEXTS, Recipe, Student, Teacher
from hf_distill.runs.recipe.validation import OF_THE_PROCESS, logits_problems, marked


def conflicts(recipe: Recipe) -> list[str]:
    """Find settings that have no effect, or that are missing, given the others."""
    parts = (_of_data, _of_teachers, _of_students, _of_training, _of_consent)
    return [problem for part in parts for problem in part(recipe)]


def _of_data(recipe: Recipe) -> list[str]:
    data = recipe.data
    elsewhere = ("image_column",) if recipe.is_text else ("text_column", "text_pair_column", "max_length")
    problems = [f"data.{key}: has no effect in {recipe.task}" for key in elsewhere if getattr(data, key) is not None]
    problems += _of_augment(recipe)
    if recipe.is_text and data.background != type(data).model_fields["background"].default:
        problems.append(f"data.background: has no effect in {recipe.task}")
    if recipe.task == "token-classification" and data.text_pair_column is not None:
        problems.append("data.text_pair_column: has no effect in token-classification")
    if data.path is not None:
        problems += [
            f"data.{key}: belongs to a Hub data set, and data.path is a local one"
            for key in ("name", "revision")
            if getattr(data, key) is not None
        ]
    if recipe.is_text and isinstance(data.processor, dict):
        problems.append("data.processor: expected the Hub id or folder of a tokenizer, got a mapping")
    models: list[Teacher | Student] = [*recipe.teachers, *recipe.students]
    if recipe.is_text and data.processor is None and not any(section.model or section.processor for section in models):
        problems.append("data.processor: is missing; name a tokenizer, since no model comes with one")
    return problems


def _of_augment(recipe: Recipe) -> list[str]:
    problems = []
    sections = {"data": recipe.data.augment}
    sections |= {f"teacher.{place}": teacher.augment for place, teacher in enumerate(recipe.teachers)}
    for section, augment in sections.items():
        chosen = {} if augment is None else {name: value for name, value in augment.model_dump().items() if value}
        of_others = OF_IMAGES if recipe.is_text else OF_TEXTS
        problems += [f"{section}.augment.{key}: has no effect in {recipe.task}" for key in chosen if key in of_others]
        if not recipe.is_text or section != "data" or not chosen:
            continue
        changes = [name for name in OF_TEXTS[1:] if name in chosen]
        if ("copies" in chosen) != bool(changes):
            problems.append("data.augment: needs copies, and one or more of mask, swap and drop: all or none of it")
    return problems


def _of_teachers(recipe: Recipe) -> list[str]:
    problems = []
    for place, teacher in enumerate(recipe.teachers):
        key = "teacher" if isinstance(recipe.teacher, Teacher) else f"teacher.{place}"
        if teacher.augment is not None and recipe.is_text:
            problems.append(f"{key}.augment: has no effect in {recipe.task}")
        if teacher.augment is not None and teacher.training is None:
            problems.append(f"{key}.augment: has no effect on a teacher that is not trained")
        if teacher.logits is not None:
            problems += logits_problems(recipe.model_dump(), key, is_alone=len(recipe.teachers) == 1)
        if teacher.column is not None and len(recipe.teachers) > 1:
            problems.append(f"{key}.column: is a teacher on its own, and cannot be one of several")
    if not _generalists(recipe):
        problems.append("teacher: specialists teach beside a teacher that knows all labels: add one to the list")
    return problems


def _of_students(recipe: Recipe) -> list[str]:
    first = recipe.teachers[0]
    is_model = first.column is None and first.logits is None and first.specialist is None
    if recipe.students[0].from_teacher is None or is_model:
        return []
    key = "stages.0" if recipe.stages else "student"
    return [f"{key}.from_teacher: the first teacher is no model of all labels: use model or config"]


def _of_training(recipe: Recipe) -> list[str]:
    problems = []
    is_trained = all(teacher.training is not None for teacher in recipe.teachers)
    if is_trained and recipe.training.get("teacher_label_map"):
        problems.append("training.teacher_label_map: has no effect, a teacher trained here has the data's labels")
    sections = {"training": recipe.training}
    sections |= {f"stages.{i}.training": stage.training for i, stage in enumerate(recipe.stages)}
    problems += _of_one_process(recipe)
    for section, settings in sections.items():
        problems += _of_several_teachers(recipe, section, settings)
    for i, stage in enumerate(recipe.stages[1:], start=1):
        problems += [
            f"stages.{i}.training.{key}: has no effect, this one is taught by the stage before it"
            for key in sorted(marked("first teachers"))
            if key in stage.training
        ]
    for section, settings in sections.items():
        if settings.get("alpha") == 1 and settings.get("alpha_end") in (None, 1):
            problems.append(
                f"{section}.alpha: 1 leaves the teacher out, and a recipe is for distillation; 0 to 0.9 is usual"
            )
    return problems


def _of_one_process(recipe: Recipe) -> list[str]:
    """Find trainings that want another device or precision than the others, which a process has but one of."""
    is_list = isinstance(recipe.teacher, list)
    others = {f"teacher.{i}" if is_list else "teacher": each.training for i, each in enumerate(recipe.teachers)}
    others |= {f"stages.{i}": stage.training for i, stage in enumerate(recipe.stages)}
    return [
        f"{section}.training.{name}: {value} differs from training.{name} ({recipe.training.get(name, 'not set')}): "
        "all trainings of a run share it, set it under training alone"
        for section, settings in others.items()
        for name, value in (settings or {}).items()
        if name in OF_THE_PROCESS and (value or False) != (recipe.training.get(name) or False)
    ]


def _of_consent(recipe: Recipe) -> list[str]:
    """Find code of others that nobody has consented to run, and consent to nothing."""
    from hf_distill.evaluation.metrics import refusal  # numpy takes its time, and a list of recipes needs none

    is_list = isinstance(recipe.teacher, list)
    sections: dict[str, Teacher | Student] = {
        **{f"teacher.{i}" if is_list else "teacher": teacher for i, teacher in enumerate(recipe.teachers)},
        **{f"stages.{i}": stage for i, stage in enumerate(recipe.stages)},
        "student": recipe.student,
    }
    problems = []
    for key, section in sections.items():
        if section.trust_remote_code and section.model is None:
            problems.append(f"{key}.trust_remote_code: has no effect without {key}.model")
        if section.processor_trust_remote_code and section.processor is None:
            problems.append(f"{key}.processor_trust_remote_code: has no effect without {key}.processor")
    if recipe.data.processor_trust_remote_code and not isinstance(recipe.data.processor, str):
        problems.append("data.processor_trust_remote_code: has no effect without the name of a data.processor")
    is_of_one = len(recipe.teachers) == 1 and recipe.teachers[0].model is not None
    settings = {f"stages.{i}.training": stage.training for i, stage in enumerate(recipe.stages)}
    settings |= {} if is_of_one else {"training": recipe.training}
    problems += [
        f"{key}.teacher_trust_remote_code: is consent for the code of the only teacher.model: say "
        "trust_remote_code: true beside each model that comes with code"
        for key, training in settings.items()
        if training.get("teacher_trust_remote_code")
    ]
    refused = [(place, refusal(metric)) for place, metric in enumerate(recipe.model_dump()["metrics"])]
    return problems + [f"metrics.{place}: {problem}" for place, problem in refused if problem is not None]


def _of_several_teachers(recipe: Recipe, section: str, settings: dict[str, Any]) -> list[str]:
    problems = []
    num_generalists, weights = len(_generalists(recipe)), settings.get("teacher_weights")
    for key in ("teacher_weights", "teacher_combination"):
        if settings.get(key) is not None and num_generalists < 2 and recipe.teachers[0].logits is None:
            problems.append(f"{section}.{key}: has no effect with one teacher")
    if settings.get("teacher_quantization") is not None and len(recipe.teachers) > 1:
        own = [key for key in ("revision", "trust_remote_code") if any(getattr(t, key) for t in recipe.teachers)]
        problems += [f"teacher: {key} is not possible for one of several quantised teachers" for key in own]
    if isinstance(weights, list) and num_generalists > 1 and len(weights) != num_generalists:
        problems.append(
            f"{section}.teacher_weights: expected a number for each of the {num_generalists} teachers that are "
            f"no specialists, got {len(weights)}"
        )
    return problems


def _generalists(recipe: Recipe) -> list[Teacher]:
    return [teacher for teacher in recipe.teachers if teacher.specialist is None]
