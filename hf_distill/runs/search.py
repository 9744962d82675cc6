"""Search a recipe's settings: one teacher, many students, the best settings as a recipe."""

import json
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.evaluation.metrics import LOCAL_METRICS
from hf_distill.runs.progress import Progress
from hf_distill.runs.recipe.reading import load_recipe, recipe_name, to_yaml
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.shared_teacher import taught_once
from hf_distill.runs.train import distill
from hf_distill.training.config import DistillationConfig

DEFAULT_RANGES = ("training.alpha=0..0.9", "training.temperature=1..8")
_CHOOSING = "data.eval_split=0.1"  # where the recipe has no split but that of its results


@dataclass(frozen=True)
class Range:
    """What a setting may be: from `low` to `high`, on a log scale perhaps, or one of `choices`."""

    key: str
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False
    is_log: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Read `key=low..high`, `key=low..high:log` or `key=one,other`.

        Raises:
            ValueError: it is none of these.
        """
        key, _, values = text.partition("=")
        low, dots, high = values.removesuffix(":log").partition("..")
        if key and dots:
            try:
                ends = float(low), float(high)
            except ValueError:
                ends = math.nan, math.nan
            is_log = values.endswith(":log")
            if not (ends[0] < ends[1] and (ends[0] > 0 or not is_log)):
                raise ValueError(f"--over {text}: expected two numbers, the lower first (above 0 with :log)")
            hints = typing.get_type_hints(DistillationConfig)
            hint = hints.get(key.removeprefix("training."), None) if key.startswith("training.") else None
            is_whole = hint is int if hint is not None else "." not in low + high and all(e % 1 == 0 for e in ends)
            return cls(key, *ends, is_whole=is_whole, is_log=is_log)
        choices = tuple(values.split(","))
        if not key or len(choices) < 2:
            raise ValueError(f"--over {text}: expected KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=ONE,OTHER")
        return cls(key, choices=choices)

    @property
    def ends(self) -> list[str]:
        """Return overrides with the extreme values, or with each choice."""
        values = self.choices or ((int(self.low), int(self.high)) if self.is_whole else (self.low, self.high))
        return [f"{self.key}={value}" for value in values]

    def suggest(self, trial: Any) -> str:
        """Return the override of a trial."""
        if self.choices:
            value = trial.suggest_categorical(self.key, self.choices)
        elif self.is_whole:
            value = trial.suggest_int(self.key, int(self.low), int(self.high), log=self.is_log)
        else:
            value = trial.suggest_float(self.key, self.low, self.high, log=self.is_log)
        return f"{self.key}={value if self.choices else json.dumps(value)}"


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        recipe: the file of the best recipe.
        overrides: its settings that were searched.
        metric: by which it is the best.
        value: of that, on the rows that chose it.
        chosen_on: which rows these are.
        num_trials: that are finished, those of former commands among them.
    """

    recipe: Path
    overrides: list[str]
    metric: str
    value: float
    chosen_on: str
    num_trials: int


def search(
    source: str,
    overrides: Sequence[str],
    ranges: Sequence[Range],
    num_trials: int,
    *,
    progress: Progress | None = None,
    tell: Callable[[int, list[str], float], None] = lambda *_: None,
) -> Found:
    """Train students with settings that Optuna suggests, all of one teacher, until there are so many trials.

    The rows that choose are never those of the recipe's results: of its `eval_split` if it has a `test_split` besides,
    else a tenth of the training rows, set apart. A search that was stopped goes on where it was.

    Args:
        source: the recipe, a file or a bundled one's name.
        overrides: settings in place of the recipe's.
        ranges: what is searched.
        num_trials: in all.
        progress: is told where each run is.
        tell: is told the number, the settings and the metric of each trial.

    Raises:
        ValueError: the recipe, a range, or the folder of an earlier search does not fit.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("a search needs Optuna: pip install 'hf_distill[search]'") from error
    whole = load_recipe(source, overrides)
    folder = Path(whole.output_dir).expanduser()
    folder = folder.with_name(f"{folder.name}_search")
    own, chosen_on = _of_all_trials(whole)
    for each in ranges:
        for end in each.ends:
            load_recipe(source, [*overrides, *own, end])
    if whole.metric_names[0] not in LOCAL_METRICS:
        raise ValueError(
            f"a search takes the largest value of the first metric, {whole.metric_names[0]}, which may be better "
            f"when it is lower: name one of {', '.join(LOCAL_METRICS)} first"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder, [*overrides, *own], ranges)
    taught = taught_once(source, [*overrides, *own], folder, progress)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=int(whole.training.get("seed", 42)))
    study: Any = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}",
        study_name=whole.task,
        sampler=sampler,
        direction="maximize",
        load_if_exists=True,
    )
    while (number := len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))) < num_trials:
        trial = study.ask()
        chosen = [each.suggest(trial) for each in ranges]
        recipe = load_recipe(source, [*overrides, *own, *taught, *chosen, f"output_dir={folder / 'trial'}"])
        results = distill(recipe, recipe_name(source), overwrite=True, progress=progress)
        metric, value = next(iter(results.student.metrics.items()))
        study.tell(trial, value)
        study.set_user_attr("metric", metric)
        tell(number + 1, chosen, value)
    params = study.best_params.items()
    best = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in params]
    metric, value = study.user_attrs["metric"], study.best_value
    file = folder / "best.yaml"
    head = f"# The best of {number} trials: {metric} {value:.4f} on {chosen_on}; searched: {', '.join(best)}\n"
    file.write_text(head + to_yaml(load_recipe(source, [*overrides, *best])), encoding="utf-8")
    return Found(file, best, metric, value, chosen_on, number)


def _of_all_trials(recipe: Recipe) -> tuple[list[str], str]:
    """Return the overrides of all trials, and say on which rows the best is chosen."""
    own = ["baseline=false", "hub=null", "training.allow_untrained_teacher=true"]
    if recipe.data.test_split is not None:
        return [*own, "data.test_split=null"], f"the split {recipe.data.eval_split}, and not on that of the results"
    return [*own, _CHOOSING], f"a tenth of {recipe.data.train_split}, which no trial was trained on"


def _check_same(folder: Path, overrides: list[str], ranges: Sequence[Range]) -> None:
    """Raise ValueError if the folder holds a search of something else."""
    file, now = folder / "search.json", [*overrides, *(str(each) for each in ranges)]
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != now:
        raise ValueError(f"{folder} holds a search of other settings: move it away, or set another output_dir")
    file.write_text(json.dumps(now), encoding="utf-8")
