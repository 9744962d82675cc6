"""What does distillation cost, compared with training the student alone?

In one process, in turns, trains a student for an epoch with the plain `Trainer`, with soft targets that were made
beforehand, with the teacher beside it, and as most tutorials do it: random batches, teacher and student forwarded in
`compute_loss`, `KLDivLoss(reduction="batchmean")`. Prints the medians of the rounds as ratios to the plain `Trainer`
with the same batches, with the peak of the memory, how fast soft targets are made and what they take, and what the
evaluation of as many rows takes when the teacher is asked and when its answers are remembered.

    python benchmarks/speed.py
    python benchmarks/speed.py --data SST2 --teacher all-MiniLM-L6-v2    # folders, where there is no Hub

Texts are those of SST-2, a six-layer MiniLM teaches two of its layers; images are random ones of CIFAR's shape, a
ResNet-56 teaches a ResNet-20. Nobody is trained to be good: the time does not depend on it. On a GPU add --bf16.
"""

import argparse
import ctypes
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.utils import logging

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.models.students import student_from_teacher
from hf_distill.training.sampler import EpochLengthGroupedSampler, row_lengths

MIB = 2**20
MAX_TOKENS = 128
COMPILING_STEPS = 20
NUM_EPOCHS = 3  # of which the last lines speak
FIRST_EVALUATION, LATER_EVALUATION = "first evaluation, online", "later evaluation, online"
MAKING, BARE_LOOP, FORWARD = "making soft targets", "a bare loop over the teacher", "the teacher's forward alone"


@dataclass(frozen=True)
class Task:
    """A teacher, a student and data.

    Attributes:
        teacher: a folder, so that whoever trains loads the teacher and can let it go.
        load_teacher: loads it.
        build_student: builds the student, always the same.
        data: the training rows.
        collator: makes batches of them.
        is_text: rows have lengths, by which batches are made.
    """

    teacher: Path
    load_teacher: Callable[[], PreTrainedModel]
    build_student: Callable[[], PreTrainedModel]
    data: datasets.Dataset
    collator: Callable[[list], dict[str, Tensor]]
    is_text: bool

    def sampler(self, batch_size: int) -> Sampler | None:
        """Return the order of the rows that `DistillationTrainer` takes for texts."""
        if not self.is_text:
            return None
        return EpochLengthGroupedSampler(batch_size, row_lengths(self.data, "input_ids", "length"), seed=42)


class PlainTrainer(Trainer):
    """`Trainer` with the batches of `DistillationTrainer`."""

    task: Task

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.task.sampler(self.args.train_batch_size) or super()._get_train_sampler(train_dataset)


class TutorialTrainer(Trainer):
    """What is copied most: both models in `compute_loss`."""

    teacher: nn.Module

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Blend the student's loss with a divergence from the teacher."""
        outputs = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        divergence = nn.KLDivLoss(reduction="batchmean")(
            nn.functional.log_softmax(outputs.logits / 4.0, dim=-1), nn.functional.softmax(teacher_logits / 4.0, dim=-1)
        )
        loss = 0.1 * outputs.loss + 0.9 * 16.0 * divergence
        return (loss, outputs) if return_outputs else loss


class _Meter(TrainerCallback):
    """Measure the seconds of a training, and the peak of its memory.

    Args:
        skipped: steps at the beginning that are not timed, but taken for as long as the others: models are compiled in
            them.
    """

    def __init__(self, skipped: int) -> None:
        self.seconds = 0.0
        self.peak = 0.0
        self._skipped = skipped

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reset_peak()
        self._start = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._skipped:
            self._start = now()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = (now() - self._start) * state.max_steps / (state.max_steps - self._skipped)
        self.peak = peak()


def now() -> float:
    """Return the time, when the GPU has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak() -> None:
    """Start to measure the peak of the memory: of the GPU, or of the process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> float:
    """Return the peak of the memory in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def make_text_task(arguments: argparse.Namespace, folder: Path) -> Task:
    """Take SST-2 and two of a teacher's layers."""
    named = Path(arguments.data)
    source: Any = (
        {"path": "parquet", "data_files": str(named / "train.parquet")} if named.is_dir() else {"path": str(named)}
    )
    rows = datasets.load_dataset(**source, split="train").shuffle(seed=0)
    rows = rows.select(range(min(arguments.rows, len(rows))))
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    data = rows.map(
        lambda batch: {
            **tokenizer(batch["sentence"], truncation=True, max_length=MAX_TOKENS),
            "labels": batch["label"],
        },
        batched=True,
        remove_columns=rows.column_names,
    )
    torch.manual_seed(0)
    teacher = AutoModelForSequenceClassification.from_pretrained(
        arguments.teacher, num_labels=2, dtype=torch.float32
    ).eval()
    teacher.save_pretrained(folder / "teacher")
    student_from_teacher(teacher, [0, 5]).save_pretrained(folder / "student")
    return Task(
        folder / "teacher",
        lambda: AutoModelForSequenceClassification.from_pretrained(folder / "teacher"),
        lambda: AutoModelForSequenceClassification.from_pretrained(folder / "student"),
        data,
        DataCollatorWithPadding(tokenizer),
        is_text=True,
    )


def make_image_task(arguments: argparse.Namespace, folder: Path) -> Task:
    """Take images of CIFAR's shape and two of its ResNets."""
    torch.manual_seed(0)
    for name, blocks in (("teacher", 9), ("student", 3)):
        config = ResNetConfig(
            num_channels=3,
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[blocks] * 3,
            layer_type="basic",
            num_labels=10,
        )
        ResNetForImageClassification(config).save_pretrained(folder / name)
    num_rows = arguments.rows
    data = datasets.Dataset.from_dict(
        {
            "pixel_values": torch.randn(num_rows, 3, 32, 32).numpy(),
            "labels": torch.randint(0, 10, (num_rows,)).numpy(),
        },
        features=datasets.Features(
            {"pixel_values": datasets.Array3D((3, 32, 32), "float32"), "labels": datasets.Value("int64")}
        ),
    ).with_format("torch")
    return Task(
        folder / "teacher",
        lambda: ResNetForImageClassification.from_pretrained(folder / "teacher"),
        lambda: ResNetForImageClassification.from_pretrained(folder / "student"),
        data,
        default_data_collator,
        is_text=False,
    )


class Bench:
    """The ways of training, on one task.

    Args:
        task: what is trained on.
        arguments: those of the command line.
        folder: for what the trainers write.
    """

    def __init__(self, task: Task, arguments: argparse.Namespace, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.batch_size = arguments.batch
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, list[float]] = {}
        self.settings: dict[str, Any] = {
            "num_train_epochs": 1,
            "per_device_train_batch_size": arguments.batch,
            "per_device_eval_batch_size": arguments.batch,
            "bf16": arguments.bf16,
            "use_cpu": not torch.cuda.is_available(),
            "save_strategy": "no",
            "logging_steps": 50,
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        self.bytes_per_row = 0.0
        self.compiles = arguments.compile

    def go_round(self) -> None:
        """Go once through all ways."""
        self.plain("plain", PlainTrainer)
        self.cached()
        self.online()
        if self.task.is_text:
            self.plain("plain, random batches", Trainer)
        self.tutorial()
        self.bare_loop()
        self.bare_teacher()
        if self.compiles:
            self.compiled()

    def plain(self, name: str, kind: type[Trainer]) -> None:
        """Train the student alone."""
        trainer = kind(**self.common(TrainingArguments(str(self.folder / "out"), **self.settings)))
        if isinstance(trainer, PlainTrainer):
            trainer.task = self.task
        self._train(name, trainer)

    def tutorial(self) -> None:
        """Train as the tutorials do."""
        trainer = TutorialTrainer(**self.common(TrainingArguments(str(self.folder / "out"), **self.settings)))
        trainer.teacher = self.task.load_teacher().to(trainer.args.device).eval()
        self._train("tutorial", trainer)

    def online(self) -> None:
        """Train with the teacher beside; then evaluate twice on the same rows."""
        trainer = DistillationTrainer(teacher=str(self.task.teacher), **self.common(self.config()))
        self._train("online", trainer)
        for name in (FIRST_EVALUATION, LATER_EVALUATION):
            start = now()
            trainer.evaluate(self.task.data)
            self._note(name, now() - start)

    def cached(self) -> None:
        """Have the teacher answer for all rows; then train."""
        with tempfile.TemporaryDirectory(dir=self.folder) as kept:
            args = self.config(precompute_teacher_logits=True, teacher_logits_dir=kept)
            trainer = DistillationTrainer(teacher=str(self.task.teacher), **self.common(args))
            start = now()
            trainer.precompute_teacher_logits()
            self._note(MAKING, now() - start)
            size = sum(file.stat().st_size for file in Path(kept).glob("*.safetensors"))
            self.bytes_per_row = size / len(self.task.data)
            self._train("cached", trainer)

    def compiled(self) -> None:
        """Train with the teacher beside, and both models compiled."""
        args = self.config(torch_compile=True, teacher_torch_compile=True)
        try:
            trainer = DistillationTrainer(teacher=str(self.task.teacher), **self.common(args))
            self._train("online, compiled", trainer, num_skipped=COMPILING_STEPS)
        finally:
            for name in [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO_")]:
                del os.environ[name]  # by which all later trainers would be compiled

    def bare_loop(self) -> None:
        """Run the teacher over all rows, the longest first, in batches as large as when soft targets are made."""
        teacher, size = self._teacher(), 4 * self.batch_size
        rows = self.task.data
        order = list(range(len(rows)))
        if self.task.is_text:
            lengths = row_lengths(rows, "input_ids", "length")
            order.sort(key=lambda index: -lengths[index])
        start = now()
        for first in range(0, len(order), size):
            batch = self.task.collator(rows.__getitems__(order[first : first + size]))
            self._forward(teacher, batch).cpu()
        self._note(BARE_LOOP, now() - start)

    def bare_teacher(self) -> None:
        """Run the teacher over the batches of a training, which are made before."""
        teacher = self._teacher()
        sampler: Iterable[int] = self.task.sampler(self.batch_size) or torch.randperm(len(self.task.data)).tolist()
        order = list(sampler)
        batches = [
            self.task.collator(self.task.data.__getitems__(order[first : first + self.batch_size]))
            for first in range(0, len(order), self.batch_size)
        ]
        start = now()
        for batch in batches:
            self._forward(teacher, batch)
        self._note(FORWARD, now() - start)

    def floor(self) -> float:
        """Return the operations of the teacher's forward, as a part of those of the student's step."""
        batch = self.task.collator(self.task.data.__getitems__(list(range(self.batch_size))))
        counts = []
        for model in (self.task.load_teacher(), self.task.build_student()):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.eval()(**{name: value for name, value in batch.items() if name != "labels"})
            counts.append(counter.get_total_flops())
        return counts[0] / (3 * counts[1])

    def config(self, **more: Any) -> DistillationConfig:
        """Return the settings of a training with a teacher."""
        return DistillationConfig(
            str(self.folder / "out"),
            **self.settings,
            alpha=0.1,
            temperature=4.0,
            allow_untrained_teacher=True,
            **more,
        )

    def common(self, args: TrainingArguments) -> dict[str, Any]:
        """Return what all trainers are given."""
        return {
            "model": self.task.build_student(),
            "args": args,
            "train_dataset": self.task.data,
            "data_collator": self.task.collator,
        }

    def _train(self, name: str, trainer: Trainer, num_skipped: int = 0) -> None:
        meter = _Meter(num_skipped)
        trainer.add_callback(meter)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        self._note(name, meter.seconds)
        self.peaks.setdefault(name, []).append(meter.peak)

    def _teacher(self) -> PreTrainedModel:
        return self.task.load_teacher().to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def _forward(self, teacher: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: value.to(teacher.device) for name, value in batch.items() if name != "labels"}
        with torch.no_grad(), torch.autocast(teacher.device.type, torch.bfloat16, enabled=self.settings["bf16"]):
            logits: Tensor = teacher(**inputs).logits
        return logits

    def _note(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    # ---- What was found ----

    def ratio(self, name: str, *others: str) -> float:
        """Return the median, over the rounds, of one way's seconds divided by those of others together."""
        sums = [sum(values) for values in zip(*(self.seconds[other] for other in others), strict=True)]
        return statistics.median(own / other for own, other in zip(self.seconds[name], sums, strict=True))

    def speed_up(self) -> float:
        """Return how many times as long as with soft targets, which are made first, the tutorial's epochs take."""
        rounds = zip(*(self.seconds[n] for n in ("tutorial", MAKING, "cached")), strict=True)
        return statistics.median(NUM_EPOCHS * t / (making + NUM_EPOCHS * cached) for t, making, cached in rounds)

    def report(self) -> None:
        """Print the ratios."""
        base = statistics.median(self.peaks["plain"])
        print(f"{'':34} {'seconds':>8} {'ratio':>7} {'peak MiB':>9} {'ratio':>7}")
        for name, values in self.seconds.items():
            line = f"{name:34} {statistics.median(values):8.2f} {self.ratio(name, 'plain'):7.3f}"
            if name in self.peaks:
                memory = statistics.median(self.peaks[name])
                line += f" {memory:9.0f} {memory / base:7.3f}"
            print(line)
        print(f"making soft targets, of a bare loop's rate   {self.ratio(BARE_LOOP, MAKING):.3f}")
        print(f"online / (plain + the teacher's forward)     {self.ratio('online', 'plain', FORWARD):.3f}")
        print(f"F_T / (3 F_S), the least that online adds    {self.floor():.3f}")
        print(f"{NUM_EPOCHS} epochs, tutorial / (making + cached)       {self.speed_up():.2f}")
        print(f"soft targets, bytes a row                    {self.bytes_per_row:.1f}", flush=True)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="stanfordnlp/sst2", help="of the Hub, or a folder with train.parquet")
    parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--task", choices=["text", "image", "both"], default="both")
    parser.add_argument("--rows", type=int, default=3200, help="of an epoch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; unset: as many as it takes")
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    parser.add_argument("--compile", action="store_true", help="train with compiled models, too")
    return parser


def prepare(arguments: argparse.Namespace) -> None:
    """Be quiet, and take as many threads as was said."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def benches(arguments: argparse.Namespace) -> Iterator[tuple[str, Bench]]:
    """Make the tasks that were asked for, one after the other, each with a folder that is gone afterwards."""
    for name, make in {"text": make_text_task, "image": make_image_task}.items():
        if arguments.task in (name, "both"):
            with tempfile.TemporaryDirectory() as folder:
                yield name, Bench(make(arguments, Path(folder)), arguments, Path(folder))


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    arguments = parser.parse_args()
    if arguments.compile and arguments.rows <= COMPILING_STEPS * arguments.batch:
        parser.error(f"--compile: the first {COMPILING_STEPS} batches are not timed, --rows must be more than these")
    prepare(arguments)
    for name, bench in benches(arguments):
        bench.go_round()  # not counted: it finds and fills what later rounds share
        bench.seconds.clear()
        bench.peaks.clear()
        for _ in range(arguments.rounds):
            bench.go_round()
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
        rounds = f"{arguments.rounds} rounds, {where}"
        print(f"\n{name}: {len(bench.task.data)} rows, batches of {arguments.batch}, {rounds}")
        bench.report()


if __name__ == "__main__":
    main()
