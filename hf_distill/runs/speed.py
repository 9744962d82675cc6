"""How fast the teacher, the students and the baseline of a run are."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from transformers import PreTrainedModel

from hf_distill.data.fingerprints import LABEL_COLUMNS
from hf_distill.evaluation.latency import Speed, Timed, measure_speed
from hf_distill.evaluation.predictor import Collate, precision_of
from hf_distill.runs.building import Member
from hf_distill.runs.preprocessing import Section
from hf_distill.runs.stages import Run
from hf_distill.teachers.loading import forward_parameters

_SPLIT = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def speeds(
    run: Run, members: Sequence[Member], students: Mapping[str, tuple[Section, PreTrainedModel]]
) -> dict[str, Speed]:
    """Measure the teachers together, if they are models, and each student, on rows of the evaluation split.

    Nothing is measured where models are split over processes.

    Args:
        run: the run, whose settings decide device and precision.
        members: its teachers; those that were released are loaded again.
        students: by the name of their stage.
    """
    args = run.settings.of("student")
    if PartialState().distributed_type in _SPLIT or args.teacher_placement == "sharded":
        return {}  # models that are split over processes cannot be run by one of them
    found: list[dict[str, Speed]] = [{}]
    if PartialState().is_main_process:
        models: dict[str, list[Timed]] = {}
        if all(member.source is not None for member in members):
            models["teacher"] = [_timed(run, each.section, run.builder.model_of(each)) for each in members]
        models |= {name: [_timed(run, section, model)] for name, (section, model) in students.items()}
        rows = run.rows(run.recipe.student, run.inputs.eval_role)
        found = [measure_speed(models, len(rows), args.device, partial(precision_of, args))]
    return broadcast_object_list(found)[0]  # type: ignore[no-any-return]


def _timed(run: Run, section: Section, model: PreTrainedModel) -> Timed:
    reader, rows = run.inputs.reader(section), run.rows(section, run.inputs.eval_role)
    taken = forward_parameters(model)
    collate = Collate(reader.collator, taken | {*LABEL_COLUMNS})

    def batch_of(numbers: Sequence[int]) -> dict[str, Any]:
        batch = collate([rows[number] for number in numbers])
        return {name: value for name, value in batch.items() if name in taken}

    return Timed(model, batch_of)
