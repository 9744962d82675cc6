"""How long the stages of a run would take, from a few steps of each."""

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transformers import TrainerCallback, set_seed

from hf_distill.runs.building import Member
from hf_distill.runs.stages import Run

_STEPS = 12
_WARM_UP = 2


class Estimate(NamedTuple):
    """What a stage would take.

    Attributes:
        stage: its name.
        num_steps: of its training.
        seconds: of its training, evaluation not counted.
    """

    stage: str
    num_steps: int
    seconds: float


def estimates(run: Run) -> Iterator[Estimate]:
    """Train a few steps of each stage of a run, and throw them away; teachers that would be trained teach untrained."""
    recipe = run.recipe
    members: list[Member] = []
    trained = recipe.teacher_stages()
    stages = {id(section): stage for stage, section in trained.items()}
    for section in recipe.teachers:
        stage = stages.get(id(section))
        if stage is None:
            members.append(Member(section, run.builder.ready_teacher(section), section.model, None))
            continue
        model = run.model_of(stage, section, [])
        yield _estimate(run, stage, section, model, [])
        members.append(Member(section, model, None, None))
    first = members
    for stage, student in recipe.student_stages().items():
        model = run.model_of(stage, student, members)
        yield _estimate(run, stage, student, model, [] if run.shared is not None else members)
        members = [Member(student, model, None, None)]
    if recipe.baseline:
        yield _estimate(run, "baseline", recipe.student, run.model_of("baseline", recipe.student, first), [])


def _estimate(run: Run, stage: str, section: Any, model: Any, members: Sequence[Member]) -> Estimate:
    of_stage = run.settings.of(stage)
    with tempfile.TemporaryDirectory() as folder:
        args = copy.copy(of_stage)
        args.max_steps, args.output_dir, args.allow_untrained_teacher = _STEPS, folder, True
        args.eval_strategy = args.save_strategy = args.logging_strategy = "no"  # type: ignore[assignment]
        args.load_best_model_at_end, args.report_to, args.precompute_teacher_logits = False, [], False
        args.teacher_logits_dir = None
        if not members and stage != "baseline":
            args.alpha = 1.0
        set_seed(args.seed)
        clock = _Clock()
        rows = run.rows(section, "train", members, run.recipe.data.augment, args)
        trainer = run.trainer(section, model, members, args, train_dataset=rows, callbacks=[clock])
        trainer.train()
        per_epoch = max(len(trainer.get_train_dataloader()) // args.gradient_accumulation_steps, 1)
    steps = of_stage.max_steps if of_stage.max_steps > 0 else int(per_epoch * of_stage.num_train_epochs)
    return Estimate(stage, steps, clock.seconds_per_step * steps)


class _Clock(TrainerCallback):
    """Measure the steps after the first ones, which are slower than the rest."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._times.append(time.perf_counter())

    @property
    def seconds_per_step(self) -> float:
        start = min(_WARM_UP, len(self._times) - 2)
        return (self._times[-1] - self._times[start]) / max(len(self._times) - 1 - start, 1)
