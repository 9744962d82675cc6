"""Where does a step's time go that is not the student's, and how much of it is there?

Trains the student of `speed.py` in turns with the plain `Trainer`, with soft targets that were made beforehand and with
the teacher beside it, and times in each step the student's forward, the teacher's, backward, the optimizer (gradient
clipping, step, scheduler, zeroing) and the data loader. The rest is overhead: the loss, and all that the trainer does
besides. Prints the medians of the steps in microseconds, and what ours has more than the plain `Trainer`; the last line
is ours where it counts the parameters at each step and looks for NaN in each loss, as `Trainer` does.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --data SST2 --teacher all-MiniLM-L6-v2    # folders, where there is no Hub
"""

import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from speed import Bench, PlainTrainer, benches, now, parser_of, prepare
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_distill import DistillationTrainer

PARTS = ("forward", "teacher", "backward", "optimizer", "data")


class _Stopwatch(TrainerCallback):
    """Time the parts of each step, from the end of the one before."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._own: dict[str, float] = {}
        self._last = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time is added to a part."""

        @functools.wraps(function)  # the trainer looks at forward's signature
        def call(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                self._own[part] = self._own.get(part, 0.0) + now() - start

        return call

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time a method of an object from now on."""
        setattr(owner, name, self.timed(part, getattr(owner, name)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch(kwargs["optimizer"], "step", "optimizer")
        self.watch(kwargs["lr_scheduler"], "step", "optimizer")
        self.watch(kwargs["model"], "zero_grad", "optimizer")
        self._last = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        end = now()
        parts = {part: self._own.get(part, 0.0) for part in PARTS}
        self.steps.append({**parts, "all": end - self._last})
        self._own.clear()
        self._last = end


def watched(kind: type[Trainer]) -> type[Trainer]:
    """Return a kind of trainer that lets a stopwatch time it."""

    class Watched(kind):  # type: ignore[valid-type, misc]
        stopwatch: _Stopwatch

        def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
            watch, source = self.stopwatch, epoch_iterator
            fetch = watch.timed("data", lambda: next(source))

            class Timed:
                def __iter__(self) -> "Timed":
                    return self

                def __next__(self) -> Any:
                    return fetch()

            return super().get_batch_samples(Timed(), num_batches, device)

    return Watched


def profile(trainer: Trainer, teacher: nn.Module | None) -> list[dict[str, float]]:
    """Train, and return the seconds of the parts of each step."""
    watch: Any = _Stopwatch()
    trainer.stopwatch = watch  # type: ignore[attr-defined]
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)
    watch.watch(trainer.model, "forward", "forward")
    watch.watch(trainer.accelerator, "backward", "backward")
    watch.watch(trainer.accelerator, "clip_grad_norm_", "optimizer")
    if teacher is not None:
        watch.watch(teacher, "forward", "teacher")
    trainer.train()
    return list(watch.steps[5:])  # the first ones warm up


def report(name: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Print the parts, as medians of all steps."""
    print(f"\n{name}, microseconds a step")
    print(f"{'':22}" + "".join(f"{part:>11}" for part in (*PARTS, "overhead", "all", "of it", "over plain")))
    plain = None
    for kind, steps in found.items():
        parts = {part: statistics.median(step[part] for step in steps) * 1e6 for part in (*PARTS, "all")}
        overhead = statistics.median(step["all"] - sum(step[part] for part in PARTS) for step in steps) * 1e6
        plain = overhead if plain is None else plain
        print(
            f"{kind:22}"
            + "".join(f"{parts[part]:11.0f}" for part in PARTS)
            + f"{overhead:11.0f}{parts['all']:11.0f}{overhead / parts['all']:11.2%}"
            + f"{(overhead - plain) / parts['all']:11.2%}"
        )


def main() -> None:
    """Print the tables."""
    arguments = parser_of(__doc__).parse_args()
    prepare(arguments)
    for name, bench in benches(arguments):
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for kind, steps in _round(bench).items():
                found.setdefault(kind, []).extend(steps)
        report(name, found)


def _round(bench: Bench) -> dict[str, list[dict[str, float]]]:
    folder = bench.folder
    plain: Any = watched(PlainTrainer)(**bench.common(TrainingArguments(str(folder / "out"), **bench.settings)))
    plain.task = bench.task
    kept = {"precompute_teacher_logits": True, "teacher_logits_dir": str(folder / "kept")}
    ours = watched(DistillationTrainer)
    cached: Any = ours(teacher=str(bench.task.teacher), **bench.common(bench.config(**kept)))
    cached.precompute_teacher_logits()
    online: Any = ours(teacher=str(bench.task.teacher), **bench.common(bench.config()))
    args = bench.config(**kept, logging_nan_inf_filter=True)
    as_parent: Any = ours(teacher=str(bench.task.teacher), **bench.common(args))
    as_parent.precompute_teacher_logits()
    as_parent.floating_point_ops = functools.partial(Trainer.floating_point_ops, as_parent)
    return {
        "plain": profile(plain, None),
        "cached": profile(cached, None),
        "online": profile(online, online.teacher),
        "cached, parent's ways": profile(as_parent, None),
    }


if __name__ == "__main__":
    main()
