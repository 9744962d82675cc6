"""What does it cost, and does it change the student, to have the teacher elsewhere?

Trains one student from one teacher for some steps with each placement and quantisation, and prints for each the
largest difference of the loss curve from that of `same` (relative to the loss), the peak of the GPU's memory and the
seconds per step. What this machine cannot do is printed with the reason.

    python benchmarks/placement.py
    torchrun --nproc_per_node 2 benchmarks/placement.py          # `sharded`, too

With --hidden-size 1024 --layers 24 the teacher has the size of BERT-large; the student has half as many layers.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.teachers.memory import device_name
from hf_distill.teachers.placement import check_placement
from hf_distill.training.distributed import shutdown_processes

VOCABULARY = 1000
CASES: tuple[tuple[str, str | None], ...] = (
    ("same", None),
    ("cpu", None),
    ("auto", None),
    ("sharded", None),
    ("same", "8bit"),
    ("same", "4bit"),
)


class _Clock(TrainerCallback):
    """Keep the seconds of each step, as the GPU has them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(_now() - self._begin)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def build(arguments: argparse.Namespace, num_layers: int, seed: int) -> PreTrainedModel:
    """Build a classifier of random weights, large enough for logits that differ from row to row."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, arguments.hidden_size // 64),
        intermediate_size=4 * arguments.hidden_size,
        max_position_embeddings=arguments.length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        num_labels=8,
    )
    return BertForSequenceClassification(config)


def make_rows(arguments: argparse.Namespace, count: int) -> list[dict[str, Tensor]]:
    """Make rows of random tokens with random labels."""
    random = torch.Generator().manual_seed(1)
    shape = (arguments.length,)
    return [
        {
            "input_ids": torch.randint(0, VOCABULARY, shape, generator=random),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "labels": torch.randint(0, 8, (), generator=random),
        }
        for _ in range(count)
    ]


def train(
    arguments: argparse.Namespace, teacher: Path, placement: str, quantization: str | None
) -> tuple[list[float], float, float | None]:
    """Train with one placement.

    Returns:
        the loss of each step; the median of the seconds per step without the first two; the peak of the memory of this
        process's GPU in MiB, or None without one.
    """
    clock = _Clock()
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationConfig(
            output_dir=folder,
            alpha=0.1,
            temperature=2.0,
            teacher_placement=placement,
            teacher_quantization=quantization,
            allow_untrained_teacher=True,
            per_device_train_batch_size=arguments.batch,
            max_steps=arguments.steps,
            learning_rate=1e-4,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
            use_cpu=not torch.cuda.is_available(),
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer = DistillationTrainer(
            model=build(arguments, arguments.layers // 2, seed=0),
            teacher=str(teacher),
            args=args,
            train_dataset=make_rows(arguments, arguments.steps * arguments.batch * PartialState().num_processes),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = sorted(clock.seconds[2:])
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return losses, seconds[len(seconds) // 2], peak


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="of each training, at least 3")
    parser.add_argument("--batch", type=int, default=8, help="rows per process")
    parser.add_argument("--length", type=int, default=32, help="tokens of a row")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4, help="of the teacher")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    state = PartialState(cpu=not torch.cuda.is_available())

    def show(line: str) -> None:
        if state.is_main_process:
            print(line, flush=True)

    size = sum(p.numel() for p in build(arguments, arguments.layers, seed=1).parameters()) / 1e6
    show(f"Teacher of {size:.1f} million parameters; {state.num_processes} process(es) on {device_name('same')}\n")
    show("| placement | loss curve, difference | seconds per step | GPU peak, MiB |")
    show("| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        shared = broadcast_object_list([folder])  # save_pretrained writes in the first process alone
        teacher = Path(shared[0]) / "teacher"
        build(arguments, arguments.layers, seed=1).save_pretrained(teacher)
        state.wait_for_everyone()
        expected: list[float] = []
        for placement, quantization in CASES:
            name = placement if quantization is None else f"{placement}, {quantization}"
            try:
                check_placement(placement, quantization, num_processes=state.num_processes, is_named=True)
            except ValueError as error:
                show(f"| {name} | not run: {error} | | |")
                continue
            losses, seconds, peak = train(arguments, teacher, placement, quantization)
            expected = expected or losses
            difference = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
            show(f"| {name} | {difference:.1e} | {seconds:.4f} | {'-' if peak is None else f'{peak:.0f}'} |")
        shutdown_processes()


if __name__ == "__main__":
    main()
