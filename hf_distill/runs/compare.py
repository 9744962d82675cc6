"""Compare student and baseline over folds and seeds: one teacher a fold, many students."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value

from hf_distill.data.fingerprints import hash_rows
from hf_distill.data.labels import MISSING_LABEL
from hf_distill.data.loading import Splits
from hf_distill.evaluation.comparison import Comparison, Trial, compare, folds_of
from hf_distill.evaluation.predictions import PREDICTIONS, Predictions
from hf_distill.runs.opening import load_splits, readable_images
from hf_distill.runs.progress import Progress
from hf_distill.runs.recipe.reading import load_recipe, recipe_name
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.shared_teacher import taught_once
from hf_distill.runs.train import distill
from hf_distill.runs.workspace import write_whole

FILE = "comparison.json"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        folds: of the training rows; 0 is the recipe's own evaluation split.
        seeds: of the student's training, from 0.
        train_fraction: of the rows that the student and its baseline are trained on; the teacher has all.
        label_budgets: labels that the student and its baseline have, one comparison for each; the other rows teach
            the student by the teacher's soft targets.
    """

    folds: int
    seeds: int
    train_fraction: float | None = None
    label_budgets: tuple[int, ...] = ()


def compare_recipe(
    source: str,
    overrides: Sequence[str],
    plan: Plan,
    *,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[list[Comparison], Path]:
    """Train teacher, students and baselines for each fold and seed, and compare them.

    The folds are of the training split, equal inputs in one of them; the recipe's evaluation split is not looked at. A
    comparison that was stopped goes on with the run that was not finished.

    Returns:
        a comparison for each label budget, or one; and the folder, in which comparison.json has all figures.

    Raises:
        ValueError: the recipe, the plan or an earlier comparison in the folder does not fit.
    """
    recipe = load_recipe(source, overrides)
    folder = Path(recipe.output_dir).expanduser()
    folder = folder.with_name(f"{folder.name}_compare")
    _check_plan(recipe, plan)
    splits = readable_images(recipe, load_splits(recipe)[1])[0]
    pairs, budgets = _pairs(splits, plan, recipe.data.split_seed), plan.label_budgets or (None,)
    for budget in budgets:
        _of_student(splits, pairs[0][0], plan, budget, recipe.data.split_seed)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder, source, overrides, plan)
    own = [*overrides, "baseline=true", "hub=null", "training.allow_untrained_teacher=true"]
    trials: dict[int | None, list[Trial]] = {}
    for number, (train, test) in enumerate(pairs, start=bool(plan.folds)):
        place = folder / f"fold-{number}" if plan.folds else folder
        fold = _Fold(source, own, recipe, plan, splits, number, train, test, place, progress, tell)
        for budget in budgets:
            trials.setdefault(budget, []).extend(fold.trials(budget))
    found = [compare(each) for each in trials.values()]
    write_whole(folder / FILE, json.dumps(_told(recipe_name(source), plan, trials, found), indent=2) + "\n")
    return found, folder


@dataclass(frozen=True)
class _Fold:
    """One teacher, and its students."""

    source: str
    overrides: list[str]
    recipe: Recipe
    plan: Plan
    splits: Splits
    number: int
    train: np.ndarray
    test: np.ndarray | None
    folder: Path
    progress: Progress | None
    tell: Callable[[str], None]

    @cached_property
    def data(self) -> list[str]:
        return save_splits(self.folder / "data", self.splits, {"train": self.train, "test": self.test}, self.recipe)

    @cached_property
    def taught(self) -> list[str]:
        self.tell(f"{self._name()}teacher")
        return taught_once(self.source, [*self.overrides, *self.data], self.folder, self.progress)

    def trials(self, budget: int | None) -> list[Trial]:
        """Train what is not trained yet, and read what all students predict."""
        chosen = _of_student(self.splits, self.train, self.plan, budget, self.recipe.data.split_seed)
        parent = self.folder if budget is None else self.folder / f"labels-{budget}"
        num_train = int(np.sum(labels_of(self.splits)[self.train] != MISSING_LABEL))
        num_labels = num_train if chosen is None else len(chosen["train"])
        found = []
        for seed in range(self.plan.seeds):
            run = parent / f"seed-{seed}"
            if not (run / "results.json").is_file() or not (run / PREDICTIONS).is_file():
                taught, data = self.taught, self.data
                if chosen is not None:
                    data = save_splits(
                        parent / "data-of-student", self.splits, {**chosen, "test": self.test}, self.recipe
                    )
                self.tell(f"{self._name(budget)}seed {seed}")
                last = [f"training.seed={seed}", f"output_dir={run}"]
                of_run = load_recipe(self.source, [*self.overrides, *data, *taught, *last])
                distill(of_run, recipe_name(self.source), progress=self.progress)
            found.append(Trial(self.number, seed, num_labels, num_train, Predictions.read(run)))
        return found

    def _name(self, budget: int | None = None) -> str:
        of = f"fold {self.number} of {self.plan.folds}, " if self.plan.folds else ""
        return of if budget is None else f"{of}{budget:,} labels, "


def _check_plan(recipe: Recipe, plan: Plan) -> None:
    if recipe.task == "token-classification":
        raise ValueError("compare is for whole rows, and not for words with tags")
    if plan.train_fraction is not None and plan.label_budgets:
        raise ValueError("--train-fraction and --label-budgets both choose the student's rows: give one")
    if plan.train_fraction is not None and not 0 < plan.train_fraction < 1:
        raise ValueError(f"--train-fraction: expected a number above 0 and below 1, got {plan.train_fraction}")
    if plan.folds == 1 or plan.folds < 0 or plan.seeds < 1 or (not plan.folds and plan.seeds < 2):
        raise ValueError("there is nothing to compare: give 2 or more --folds, or 2 or more --seeds")


def _check_same(folder: Path, source: str, overrides: Sequence[str], plan: Plan) -> None:
    """Raise ValueError if the folder holds a comparison of something else."""
    file = folder / "plan.json"
    now = json.loads(json.dumps([recipe_name(source), list(overrides), asdict(plan)]))
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != now:
        raise ValueError(f"{folder} holds another comparison: move it away, or set another output_dir")
    write_whole(file, json.dumps(now))


def labels_of(splits: Splits) -> np.ndarray:
    """Return the class indices of the training rows, -100 where there is none."""
    return np.asarray(splits.train.with_format("numpy")["labels"][:])


def _pairs(splits: Splits, plan: Plan, seed: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return the rows of the training split that each fold trains and is evaluated on; None: on the recipe's split."""
    if not plan.folds:
        return [(np.arange(len(splits.train)), None)]
    return [*folds_of_training(splits, plan.folds, seed)]


def folds_of_training(splits: Splits, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split the training rows into folds, equal inputs in one; see `evaluation.comparison.folds_of`."""
    _, groups = np.unique(hash_rows(splits.train, splits.columns.inputs).digests, axis=0, return_inverse=True)
    return folds_of(labels_of(splits), np.ravel(groups), count, seed)


def _of_student(
    splits: Splits, train: np.ndarray, plan: Plan, budget: int | None, seed: int
) -> dict[str, np.ndarray] | None:
    """Return the rows that a student is trained on, and those that it has no labels of; None: the teacher's."""
    size = budget if budget is not None else plan.train_fraction
    if size is None:
        return None
    from sklearn.model_selection import train_test_split

    labels = labels_of(splits)[train]
    known, others = train[labels != MISSING_LABEL], train[labels == MISSING_LABEL]
    try:
        few, rest = train_test_split(
            known, train_size=size, stratify=labels[labels != MISSING_LABEL], random_state=seed
        )
    except ValueError as error:
        option = "--label-budgets" if budget is not None else "--train-fraction"
        raise ValueError(f"{option} {size}: {error} (of {len(known):,} labelled rows)") from error
    if budget is None:
        return {"train": np.sort(few)}
    return {"train": np.sort(few), "rest": np.sort(np.concatenate([rest, others]))}


def save_splits(folder: Path, splits: Splits, chosen: Mapping[str, np.ndarray | None], recipe: Recipe) -> list[str]:
    """Save rows as splits of a data set, once; return the overrides by which they are a recipe's data."""
    if not (folder / "dataset_dict.json").is_file():
        evaluated = splits.evaluation if splits.test is None else splits.test
        parts = {
            name: _plain(evaluated if rows is None else splits.train.select(rows), splits.label_names)
            for name, rows in chosen.items()
        }
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        DatasetDict(parts).save_to_disk(part)
        part.rename(folder)
    gone = ("dataset", "name", "revision", "separator", "encoding", "test_split", "max_train_rows", "label_names")
    settings = [f"data.{key}=null" for key in gone]
    settings += [f"data.path={folder}", "data.train_split=train", "data.eval_split=test", "data.label_column=labels"]
    named = ("text_column", "text_pair_column") if recipe.is_text else ("image_column",)
    settings += [f"data.{key}={name}" for key, name in zip(named, splits.columns.inputs, strict=False)]
    rest = f"{{path: '{folder}', split: rest}}" if "rest" in chosen else "null"
    return [*settings, f"data.unlabelled={rest}"]


def _plain(rows: Dataset, label_names: Sequence[str]) -> Dataset:
    """Return rows whose labels are classes by name, and None where there is none."""
    labels = [None if label == MISSING_LABEL else int(label) for label in rows.with_format(None)["labels"]]
    plain = rows.with_format(None).remove_columns("labels").add_column("labels", labels, feature=Value("int64"))
    return plain.cast_column("labels", ClassLabel(names=[*label_names]))


def _told(name: str, plan: Plan, trials: dict[int | None, list[Trial]], found: Sequence[Comparison]) -> dict:
    runs = [
        {
            "fold": trial.fold or None,
            "seed": trial.seed,
            "label_budget": budget,
            "accuracy": {model: float(right.mean()) for model, right in trial.right.items()},
        }
        for budget, each in trials.items()
        for trial in each
    ]
    comparisons = [
        {"label_budget": budget, **{key: _number(value) for key, value in asdict(comparison).items()}}
        for budget, comparison in zip(trials, found, strict=True)
    ]
    return {"recipe": name, "plan": asdict(plan), "comparisons": comparisons, "runs": runs}


def _number(value: object) -> object:
    if isinstance(value, dict):
        return {key: _number(each) for key, each in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
