"""A recipe: the YAML file that says what is distilled into what, on which data, and how."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hf_distill.hub.card.parts import yaml_of
from hf_distill.runs.recipe.conflicts import conflicts
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.recipe.validation import (
    NUMBER,
    described,
    flat,
    numbers_as_text,
    settle_consent,
    shown,
    training_problems,
    with_all_settings,
)

_MOST_BYTES, _MOST_VALUES, _MOST_PROBLEMS = 2**20, 100_000, 20
_BUNDLED = Path(__file__).parent / "bundled"  # in a wheel
_CHECKOUT = Path(__file__).parents[3] / "recipes"  # in a clone
# Keys that say nothing of what is trained, and how.
_NOT_OF_THE_TRAINING = {"output_dir", "hub"}
# Keys of a section that exclude each other: naming one on the command line takes the place of the others.
_EXCLUSIVE = {
    "data": ("dataset", "path"),
    "teacher": ("model", "config", "column", "logits"),
    "student": ("model", "config", "from_teacher"),
    "stages": ("model", "config", "from_teacher"),
}
_EXCLUSIVE_WITHIN = {  # likewise in a section of a section
    "from_teacher": {"layers": ("num_layers", "strategy"), "num_layers": ("layers",), "strategy": ("layers",)},
    "unlabelled": {"path": ("dataset", "name", "revision"), "dataset": ("path",)},
}


class RecipeError(ValueError):
    """One or more problems of a recipe; the message has a line for each: file, key, got, expected."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        lines = [f"{source}: {_printable(problem)}" for problem in problems]
        rest = [f"{source}: and {len(lines) - _MOST_PROBLEMS} more problems"] if len(lines) > _MOST_PROBLEMS else []
        super().__init__("\n".join(lines[:_MOST_PROBLEMS] + rest))


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: with all problems at once.
    """
    path = find_recipe(source)
    try:
        values = _read_yaml(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(str(source), [f"not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(values, dict):
        raise RecipeError(str(source), [f"expected a mapping with task, data, teacher, student; got {shown(values)}"])
    problems = _apply_overrides(values, overrides)
    if problems:
        raise RecipeError(str(source), problems)
    settle_consent(values)
    recipe, problems = None, []
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [described(problem, Recipe) for problem in error.errors()]
    problems += training_problems(values) + numbers_as_text(values)
    if recipe is not None:
        problems += conflicts(recipe)
    if problems or recipe is None:
        raise RecipeError(str(source), problems)
    return recipe


def read_resolved(path: Path) -> Recipe:
    """Read the recipe that a run has written beside its results.

    Raises:
        ValueError: it is not one that this version has written.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            settle_consent(values)
        return Recipe.model_validate(values)
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
    """Return the command that repeats a run; of local paths only the last part is shown."""
    if name not in bundled_recipes():
        return f"hf-distill train {name}.yaml"
    original, own = _by_key(with_all(read_resolved(find_recipe(name)))), _by_key(with_all(recipe))
    changed = {key: value for key, value in own.items() if value is not None and value != original.get(key)}
    overrides = [f"{key}={_on_command_line(value)}" for key, value in changed.items()]
    gone = [
        key
        for key, value in own.items()
        if value is None and any(each.startswith(f"{key}.") for each in original) and not _is_replaced(key, changed)
    ]
    return shlex.join(["hf-distill", "train", name, *(f"{key}=null" for key in gone), *overrides])


def _is_replaced(key: str, changed: Mapping[str, Any]) -> bool:
    """Tell whether a key is unset by another one that is set, such as a config by a model."""
    section, _, name = key.rpartition(".")
    exclusive = _EXCLUSIVE.get(key.partition(".")[0], ())
    return name in exclusive and any(f"{section}.{other}" in changed for other in exclusive)


def _by_key(recipe: Recipe) -> dict[str, Any]:
    """Return settings by their dotted keys; of the metrics, which are named or have settings, the whole list."""
    values = recipe.model_dump(exclude={*_NOT_OF_THE_TRAINING, "metrics"})
    return {**flat(values), **recipe.model_dump(include={"metrics"}, exclude_none=True)}


def _on_command_line(value: Any) -> str:
    if isinstance(value, str) and (value.startswith((".", "~", "/")) or Path(value).exists()):
        return Path(value).name
    if isinstance(value, str) and not isinstance(yaml.safe_load(value), str):  # a bare no is false
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_yaml(recipe: Recipe) -> str:
    """Return a recipe with all its defaults, as it is written beside the results."""
    return yaml_of(with_all(recipe).model_dump())


def with_all(recipe: Recipe) -> Recipe:
    """Return a recipe with the defaults that decide the result of its trainings."""
    values = recipe.model_dump()
    for teacher in values["teacher"] if isinstance(values["teacher"], list) else [values["teacher"]]:
        if teacher["training"] is not None:
            of_all = {name: value for name, value in values["training"].items() if name in ("bf16", "fp16")}
            teacher["training"] = with_all_settings({**of_all, **teacher["training"]}, is_teacher=True)
    return Recipe.model_validate({**values, "training": with_all_settings(values["training"], is_teacher=False)})


def _printable(text: str) -> str:
    """Return a text with control characters, which a terminal would obey, as their escapes."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def _read_yaml(path: Path) -> Any:
    """Read a file of a bounded size, nested to a bounded depth, whose aliases stand for a bounded number of values.

    Raises:
        yaml.YAMLError: it is not YAML, or beyond these bounds.
        UnicodeDecodeError: it is not UTF-8.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise yaml.YAMLError(f"the file has {path.stat().st_size:,} bytes, a recipe at most {_MOST_BYTES:,}")
    loader = _UniqueKeyLoader(path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        if root is not None and _num_values(root, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MOST_VALUES:,} values, those behind aliases among them")
        return None if root is None else loader.construct_document(root)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values below a node of YAML, once for each alias; a node within itself has infinitely many."""
    if id(node) not in known:
        known[id(node)] = math.inf
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        each = [part for pair in below for part in pair] if isinstance(node, yaml.MappingNode) else below
        known[id(node)] = 1 + sum(_num_values(part, known) for part in each)
    return known[id(node)]


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML libraries keep the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=deep) for key in own]
        repeated = [str(key) for place, key in enumerate(keys) if key in keys[:place]]
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(repeated)} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(f"override {override!r}: expected key=value, such as training.learning_rate=1e-3")
            continue
        try:
            is_float = NUMBER.fullmatch(text) and not text.lstrip("+-").isdigit()
            # A colour such as #808080 would be a comment of YAML.
            value = float(text) if is_float else text if text.startswith("#") else yaml.safe_load(text)
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
            within = _EXCLUSIVE_WITHIN.get(path[depth - 1], {}) if depth and value is not None else {}
            for other in within.get(part, ()):
                section.pop(other, None)
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
