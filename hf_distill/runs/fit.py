"""Whether the models of a run fit its data, found out before any is trained."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_distill.data.fingerprints import LABEL_COLUMNS
from hf_distill.data.token_rows import check_token_rows, check_vocabulary, token_limits
from hf_distill.evaluation.predictor import Collate, placed
from hf_distill.models.sources import first_line
from hf_distill.runs.preprocessing import Inputs, Section
from hf_distill.runs.recipe.schema import Recipe, Student
from hf_distill.runs.recipe.settings import StageSettings
from hf_distill.teachers.loading import forward_parameters
from hf_distill.training.last_batch import check_last_batch
from hf_distill.training.matching import Matching


def check_fit(
    recipe: Recipe, built: Sequence[tuple[Section, PreTrainedModel]], inputs: Inputs, settings: StageSettings
) -> None:
    """Refuse models that would fail on the data: on a token, a row, a batch, or the last batch of an epoch.

    Args:
        recipe: of the run.
        built: its models, each with its section; those without weights are on the meta device.
        inputs: the data as they read them.
        settings: of the stages.

    Raises:
        ValueError: the message begins with the key of the model.
    """
    stages = {id(section): stage for stage, section in {**recipe.teacher_stages(), **recipe.student_stages()}.items()}
    for section, model in built:
        key, reader = section_key(recipe, section), inputs.reader(section)
        reader.give_padding_id(model.config)
        if recipe.is_text:
            limits = token_limits(model, key)
            check_vocabulary(reader.processor, limits, _remedy(section, key))
            for role in ("train", "evaluation"):
                check_token_rows(inputs.rows(reader, role), [limits], role)
        taken = forward_parameters(model)
        batches = _Batches(inputs.rows(reader, "train"), Collate(reader.collator, taken | {*LABEL_COLUMNS}), taken)
        if id(section) in stages:
            check_last_batch(model, batches.of_one, len(batches.rows), settings.of(stages[id(section)]), key)
        _check_forward(model, batches.of(2), key)
    models, taught_by = {id(section): model for section, model in built}, list[Section](recipe.teachers)
    for stage, student in recipe.student_stages().items():
        teacher = models.get(id(taught_by[0])) if len(taught_by) == 1 else None
        Matching(settings.of(stage), models[id(student)], teacher)
        taught_by = [student]


class _Batches(NamedTuple):
    """Batches of the first rows, as a model takes them."""

    rows: Any
    collate: Collate
    taken: set[str]

    def of(self, number: int) -> dict[str, Any]:
        batch = self.collate([self.rows[row] for row in range(min(number, len(self.rows)))])
        return {name: value for name, value in batch.items() if name in self.taken}

    def of_one(self) -> dict[str, Any]:
        return self.of(1)


def section_key(recipe: Recipe, section: Section) -> str:
    """Return the key of a recipe at which a model is described."""
    if section is recipe.student:
        return "student"
    if isinstance(section, Student):
        return f"stages.{next(i for i, each in enumerate(recipe.stages) if each is section)}"
    if not isinstance(recipe.teacher, list):
        return "teacher"
    return f"teacher.{next(i for i, each in enumerate(recipe.teacher) if each is section)}"


def _remedy(section: Section, key: str) -> str:
    if section.config is not None:
        return f"set {key}.config.vocab_size={{number}}"
    return f"name the tokenizer that the model was trained with ({key}.processor), or resize its embeddings"


def _check_forward(model: PreTrainedModel, batch: dict[str, Any], key: str) -> None:
    """Raise ValueError if a model cannot read a batch; without weights, its shapes are what is tried."""
    device, is_training = model.device, model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(**placed(batch, device, model.dtype))
    except NotImplementedError:
        return  # a step that needs values, which there are none of on the meta device
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if device.type == "meta" and ("meta" in str(error) or ".item()" in str(error)):
            return
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        raise ValueError(f"{key}: the model cannot read the data ({shapes}): {first_line(error)}") from error
    finally:
        model.train(is_training)
