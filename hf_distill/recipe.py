"""A recipe: the YAML file that says what is distilled into what, on which data, and how."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from hf_distill.problems import (
    NOT_OF_THE_TEACHERS,
    NUMBER,
    OF_THE_FIRST_TEACHERS,
    ONE,
    SEVERAL,
    described,
    flat,
    logits_problems,
    numbers_as_text,
    training_problems,
)

_BUNDLED = Path(__file__).parent / "recipes"  # in a wheel
_CHECKOUT = Path(__file__).parent.parent / "recipes"  # in a clone
SOFT_TARGETS = "_teacher_logits"
"""The folder of soft targets in a run's output folder, unless the recipe names another."""
# Keys that say nothing of what is trained, and how.
_NOT_OF_THE_TRAINING = {"output_dir", "hub"}
# Keys of a section that exclude each other: naming one on the command line takes the place of the others.
_EXCLUSIVE = {
    "data": ("dataset", "path"),
    "teacher": ("model", "config", "column", "logits"),
    "student": ("model", "config", "from_teacher"),
    "stages": ("model", "config", "from_teacher"),
}


class RecipeError(ValueError):
    """One or more problems of a recipe; the message has a line for each: file, key, got, expected."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class Augment(_Section):
    """Random changes to training images."""

    crop_padding: Annotated[int, Field(ge=0)] = Field(
        0, description="Pixels of padding on each side before a random crop to the former size."
    )
    horizontal_flip: bool = Field(False, description="Mirror half of the images.")


class Data(_Section):
    """Where the rows come from."""

    dataset: str | None = Field(None, description="Hub id of a data set, or sklearn:digits.")
    name: str | None = Field(None, description="Configuration of a Hub data set.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    path: str | None = Field(None, description="A local file or folder: parquet, csv, json, images, save_to_disk.")
    text_column: str | None = Field(None, description="Column of texts (of lists of words, for tokens).")
    text_pair_column: str | None = Field(None, description="Column of the second text of a pair.")
    image_column: str | None = Field(None, description="Column of images.")
    label_column: str | None = Field(None, description="Column of labels.")
    label_names: list[str] | None = Field(None, min_length=2, description="Names of the classes, in their order.")
    train_split: str = Field("train", description="Training split, or a part of one: train[:90%].")
    eval_split: str | None = Field(None, description="Split that the models are judged on.")
    test_split: str | None = Field(None, description="Split of the final results, if another.")
    max_train_rows: Annotated[int, Field(gt=0)] | None = Field(None, description="Use so many training rows.")
    max_length: Annotated[int, Field(gt=0)] | None = Field(None, description="Tokens kept of a text.")
    augment: Augment | None = Field(None, description="Random changes to training images.")
    processor: str | dict[str, Any] | None = Field(
        None,
        description="Tokenizer or image processor: a Hub id or folder, or fields of a ViTImageProcessor. By default "
        "the teacher's, or the student's, or one made from the model's config.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        return _exactly_one(self, "dataset", "path")


class SpecialistSettings(_Section):
    """What makes a teacher a specialist: it knows some of the classes, and a dustbin for the rest."""

    oversampling: Annotated[float, Field(gt=0, strict=False)] = Field(
        1.0, description="How many times more often than in the data its own classes were shown in its training."
    )
    dustbin: str = Field("dustbin", description="The label of all other classes.")


class Teacher(_Section):
    """A teacher: ready, to be trained first, a column of the data, or soft targets that others have shared."""

    model: str | None = Field(None, description="Hub id or folder.")
    config: dict[str, Any] | None = Field(None, description="A new model: model_type and fields of its config.")
    column: Literal["teacher_logits", "teacher_probs"] | None = Field(
        None, description="Column of soft targets that come with the data."
    )
    logits: str | None = Field(
        None, description="Data set on the Hub, or folder, of soft targets that `hf-distill cache` has made."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(False, description="Run the Python code that comes with the model.")
    new_head: bool = Field(False, description="Replace a head for another number of labels.")
    processor: str | None = Field(None, description="Instead of data.processor, for this model.")
    training: dict[str, Any] | None = Field(None, description="Fields of TrainingArguments; absent: a ready teacher.")
    augment: Augment | None = Field(None, description="Instead of data.augment, for the teacher's training.")
    specialist: SpecialistSettings | None = Field(None, description="This teacher knows only some of the classes.")

    @model_validator(mode="after")
    def _one_source(self) -> "Teacher":
        if self.config is not None and self.training is None:
            raise ValueError("a teacher made from a config knows nothing yet: give it training: {...}")
        if self.specialist is not None and (self.model is None or self.training is not None):
            raise ValueError("a specialist must be a ready model: give it model, and no training")
        others = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.column is not None and others != {"column"}:
            raise ValueError("a column of the data is no model: leave out all but column")
        if self.logits is not None and others - {"logits", "revision", "model", "config", "column"}:
            raise ValueError("soft targets are no model, theirs is not loaded: leave out all but logits and revision")
        return _exactly_one(self, "model", "config", "column", "logits")


class FromTeacher(_Section):
    """A student made of a teacher's layers; of several teachers, the first one's."""

    layers: list[int] = Field(min_length=1, description="The teacher's encoder layers that are copied, from 0.")


class Student(_Section):
    """The student."""

    model: str | None = Field(None, description="Hub id or folder.")
    config: dict[str, Any] | None = Field(None, description="A new model: model_type and fields of its config.")
    from_teacher: FromTeacher | None = Field(None, description="Layers of the teacher.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(False, description="Run the Python code that comes with the model.")
    new_head: bool = Field(False, description="Replace a head for another number of labels.")
    processor: str | None = Field(None, description="Instead of data.processor, for this model.")

    @model_validator(mode="after")
    def _one_source(self) -> "Student":
        return _exactly_one(self, "model", "config", "from_teacher")


class Stage(Student):
    """A student on the way, which teaches the next one: an assistant, or an earlier generation."""

    training: dict[str, Any] = Field(
        default_factory=dict, description="Fields of DistillationConfig, in place of those in the recipe's training."
    )


class Hub(_Section):
    """Where `train` publishes the student at its end."""

    repo_id: str = Field(description="name (in your own namespace) or namespace/name.")
    private: bool | None = Field(None, description="Whether a new repository is seen by its owner alone.")
    revision: str | None = Field(None, description="Branch, made if there is none; main by default.")
    create_pr: bool = Field(False, description="Propose the student by a pull request.")

    @model_validator(mode="after")
    def _possible(self) -> "Hub":
        check_destination_words(self.repo_id, self.revision, create_pr=self.create_pr)
        return self


def check_destination_words(repo_id: str, revision: str | None, *, create_pr: bool) -> None:
    """Refuse names that no repository or branch on the Hub can have.

    Raises:
        ValueError: with what is wrong.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} can be no repository's name: expected name or namespace/name, each of at most 96 letters, "
            "digits, '-', '_' and '.' (but no '--' and no '..')"
        ) from error
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"revision {revision} is a commit, and nothing is added to one: name a branch")
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"a pull request goes to main: leave out create_pr, or the revision {revision!r}")


def _how_many(value: Any) -> str:
    return SEVERAL if isinstance(value, list) else ONE


Teachers = Annotated[
    Annotated[Teacher, Tag(ONE)] | Annotated[list[Teacher], Field(min_length=1), Tag(SEVERAL)],
    Discriminator(_how_many),
]


class Recipe(_Section):
    """A whole run."""

    task: Literal["text-classification", "token-classification", "image-classification"]
    data: Data
    teacher: Teachers = Field(description="The teacher, or a list of teachers whose probabilities are averaged.")
    stages: list[Stage] = Field([], description="Students on the way, each the next one's teacher.")
    student: Student
    baseline: bool = Field(True, description="Train the student a second time without a teacher, to compare.")
    training: dict[str, Any] = Field(default_factory=dict, description="Fields of DistillationConfig.")
    metrics: list[str] = Field(["accuracy", "f1"], min_length=1, description="accuracy, f1, or Hub ids of metrics.")
    output_dir: str = Field(description="Folder of the run.")
    hub: Hub | None = Field(None, description="Where to publish the student at the end.")

    @property
    def is_text(self) -> bool:
        """Tell whether the inputs are texts."""
        return self.task != "image-classification"

    @property
    def teachers(self) -> list[Teacher]:
        """Return the teachers, one or several."""
        return [self.teacher] if isinstance(self.teacher, Teacher) else self.teacher

    @property
    def students(self) -> list[Student]:
        """Return the students in the order of their training, the last of which is the run's."""
        return [*self.stages, self.student]

    def teacher_stages(self) -> dict[str, Teacher]:
        """Return the teachers that are trained here, by the name of their stage."""
        names = (
            ["teacher"] if isinstance(self.teacher, Teacher) else [f"teacher-{i + 1}" for i in range(len(self.teacher))]
        )
        return {
            name: section for name, section in zip(names, self.teachers, strict=True) if section.training is not None
        }

    def student_stages(self) -> dict[str, Student]:
        """Return the students, by the name of their stage."""
        return {**{f"stage-{i + 1}": stage for i, stage in enumerate(self.stages)}, "student": self.student}

    def stage_names(self) -> list[str]:
        """Name all that is trained, in the order of its training."""
        return [*self.teacher_stages(), *self.student_stages(), *(["baseline"] if self.baseline else [])]

    def to_yaml(self) -> str:
        """Return the recipe with all its defaults, as it is written beside the results."""
        return yaml_of(self.model_dump())


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, or the name of a recipe that comes with the package (`vision/digits`).
        overrides: `dotted.key=value`, the value in YAML (and `1e-3` is a number). Naming one of several sources that
            exclude each other (`data.path` beside `data.dataset`) takes the place of the other.

    Raises:
        RecipeError: with all problems at once.
    """
    path = find_recipe(source)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(str(source), [f"not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(values, dict):
        raise RecipeError(str(source), [f"expected a mapping with task, data, teacher, student; got {values!r}"])
    problems = _apply_overrides(values, overrides)
    if problems:
        raise RecipeError(str(source), problems)
    recipe, problems = None, []
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [described(problem, Recipe) for problem in error.errors()]
    problems += training_problems(values) + numbers_as_text(values)
    if recipe is not None:
        problems += _conflicts(recipe)
    if problems or recipe is None:
        raise RecipeError(str(source), problems)
    return recipe


def read_resolved(path: Path) -> Recipe:
    """Read the recipe that a run has written beside its results.

    Raises:
        ValueError: it is not one that this version has written.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML") from error


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    root = _BUNDLED if _BUNDLED.is_dir() else _CHECKOUT
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.rglob("*.yaml"))
        if path.parent.name in ("text", "vision")
    }


def find_recipe(source: str | Path) -> Path:
    """Return the file of a recipe: the file itself, or the bundled recipe of that name.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    bundled = bundled_recipes()
    name = str(source).removesuffix(".yaml").removeprefix("recipes/")
    if name in bundled:
        return bundled[name]
    raise RecipeError(str(source), [f"there is no such file; recipes that come with the package: {', '.join(bundled)}"])


def recipe_name(source: str | Path) -> str:
    """Return a recipe's short name: `vision/digits` for one of the package's, else the file's name."""
    path = find_recipe(source).resolve()
    return next((name for name, file in bundled_recipes().items() if file.resolve() == path), path.stem)


def command_for(recipe: Recipe, name: str) -> str:
    """Return the command that repeats a run; of local paths only the last part is shown.

    Args:
        recipe: the resolved recipe.
        name: its short name; for one of the package's, all that was changed by overrides is added.
    """
    if name not in bundled_recipes():
        return f"hf-distill train {name}.yaml"
    original = flat(load_recipe(name).model_dump())
    changed = {
        key: value
        for key, value in flat(recipe.model_dump(exclude=_NOT_OF_THE_TRAINING)).items()
        if value is not None and value != original.get(key)
    }
    overrides = (shlex.quote(f"{key}={_on_command_line(value)}") for key, value in changed.items())
    return " ".join(["hf-distill train", name, *overrides])


def differences(old: Recipe, new: Recipe, *, has_students: bool = True) -> list[str]:
    """List the settings in which two recipes differ, leaving out where the student goes, here and on the Hub.

    Args:
        old: one recipe.
        new: the other.
        has_students: without one, what means nothing to the teachers (how soft targets are kept) is left out.
    """
    before, after = (flat(recipe.model_dump(exclude=_NOT_OF_THE_TRAINING)) for recipe in (old, new))
    return [
        f"{key}: {before.get(key, 'unset')!r} -> {after.get(key, 'unset')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and (has_students or key.split(".")[-1] not in NOT_OF_THE_TEACHERS)
    ]


def _on_command_line(value: Any) -> str:
    if isinstance(value, str) and (value.startswith((".", "~", "/")) or Path(value).exists()):
        return Path(value).name
    return str(value).lower() if isinstance(value, bool) else str(value)


def yaml_of(values: dict[str, Any]) -> str:
    """Write settings as YAML, in their order."""
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML libraries keep the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        repeated = [str(key) for place, key in enumerate(keys) if key in keys[:place]]
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(repeated)} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def _exactly_one(section: Any, *names: str) -> Any:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}; got {' and '.join(given) or 'none'}")
    return section


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(f"override {override!r}: expected key=value, such as training.learning_rate=1e-3")
            continue
        try:
            value = float(text) if NUMBER.fullmatch(text) and not text.lstrip("+-").isdigit() else yaml.safe_load(text)
        except yaml.YAMLError as error:
            problems.append(f"override {override!r}: the value is not valid YAML: {' '.join(str(error).split())}")
            continue
        try:
            _set(values, key.split("."), value)
        except LookupError as error:
            problems.append(f"override {override!r}: {error.args[0]}")
    return problems


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    section: Any = values
    for depth, part in enumerate(path):
        if isinstance(section, list):
            if not (part.isdigit() and int(part) < len(section)):
                what = ".".join(path[:depth])
                raise LookupError(f"{what} is a list of {len(section)}: name one by its number, {what}.0 and so on")
            part_or_index: Any = int(part)
        elif isinstance(section, dict):
            part_or_index = part
            exclusive = _EXCLUSIVE.get(path[0], ())
            if part in exclusive and value is not None and _is_section(path[:depth]):
                for other in set(exclusive) - {part}:
                    section.pop(other, None)
        else:
            raise LookupError(f"{path[depth - 1]} is {section!r} and has no keys below it")
        if depth == len(path) - 1:
            section[part_or_index] = value
        else:
            if isinstance(section, dict) and section.get(part) is None:
                section[part] = {}
            section = section[part_or_index]


def _is_section(path: list[str]) -> bool:
    """Tell whether a path leads to a section itself: `teacher`, or `teacher.0` in a list of them."""
    return len(path) == 1 or (len(path) == 2 and path[1].isdigit())


def _conflicts(recipe: Recipe) -> list[str]:
    """Find settings that have no effect, or that are missing, given the others."""
    data, problems = recipe.data, []
    elsewhere = ("image_column", "augment") if recipe.is_text else ("text_column", "text_pair_column", "max_length")
    problems += [f"data.{key}: has no effect in {recipe.task}" for key in elsewhere if getattr(data, key) is not None]
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
    generalists = [teacher for teacher in recipe.teachers if teacher.specialist is None]
    if not generalists:
        problems.append("teacher: specialists teach beside a teacher that knows all labels: add one to the list")
    first, training = recipe.teachers[0], recipe.training
    is_model = first.column is None and first.logits is None and first.specialist is None
    if recipe.students[0].from_teacher is not None and not is_model:
        key = "stages.0" if recipe.stages else "student"
        problems.append(f"{key}.from_teacher: the first teacher is no model of all labels: use model or config")
    if all(teacher.training is not None for teacher in recipe.teachers) and training.get("teacher_label_map"):
        problems.append("training.teacher_label_map: has no effect, a teacher trained here has the data's labels")
    sections = {"training": training} | {f"stages.{i}.training": s.training for i, s in enumerate(recipe.stages)}
    for section, settings in sections.items():
        for key in ("teacher_weights", "teacher_combination"):
            if settings.get(key) is not None and len(generalists) < 2 and first.logits is None:
                problems.append(f"{section}.{key}: has no effect with one teacher")
        if settings.get("teacher_quantization") is not None and len(recipe.teachers) > 1:
            own = [key for key in ("revision", "trust_remote_code") if any(getattr(t, key) for t in recipe.teachers)]
            problems += [f"teacher: {key} is not possible for one of several quantised teachers" for key in own]
        weights = settings.get("teacher_weights")
        if isinstance(weights, list) and len(generalists) > 1 and len(weights) != len(generalists):
            problems.append(
                f"{section}.teacher_weights: expected a number for each of the {len(generalists)} teachers that are "
                f"no specialists, got {len(weights)}"
            )
    for i, stage in enumerate(recipe.stages[1:], start=1):
        problems += [
            f"stages.{i}.training.{key}: has no effect, this one is taught by the stage before it"
            for key in OF_THE_FIRST_TEACHERS
            if key in stage.training
        ]
    for key, settings in sections.items():
        if settings.get("alpha") == 1 and settings.get("alpha_end") in (None, 1):
            problems.append(
                f"{key}.alpha: 1 leaves the teacher out, and a recipe is for distillation; 0 to 0.9 is usual"
            )
    return problems
