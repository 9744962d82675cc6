"""Is the gradient of an accumulated or distributed batch that of the one full batch?

Prints, for BERT and ViT and each kind of target, the norm of the gradient divided by the full batch's, and the relative
distance of the two; and the same for the plain Trainer of Transformers on labels alone. All in double precision, in
which rounding is far below any mistake. Exits with 1 if a distance of ours is above 1e-12. Run it with
`python benchmarks/gradients.py`; it starts the processes itself.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.training.distributed import shutdown_processes

NUM_LABELS = 3
LIMIT = 1e-12
CASES = {
    # name: rows, batch size of a process, accumulated micro-batches, processes
    "4 x 2": (8, 2, 4, 1),
    "2 + 2 + 2 + 1": (7, 2, 4, 1),
    "4 + 2": (6, 4, 2, 1),
    "2 processes x 4": (8, 4, 1, 2),
    "2 processes x 2 x 2": (8, 2, 2, 2),
    "2 processes, 4 and 3": (7, 4, 1, 2),
    "3 processes, 3, 3 and 1": (7, 3, 1, 3),
    "3 processes x 2, then 2, 2 and 1": (11, 2, 2, 3),
}
FAMILIES = ("bert", "vit")
KINDS = ("single", "multi", "regression", "token", "unlabelled")
PROBLEM_TYPES = {"single": "single_label_classification", "multi": "multi_label_classification"}


def build(family: str, kind: str, seed: int) -> PreTrainedModel:
    """Build a small model of a family for a kind of target."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    settings: dict[str, Any] = {
        **shape,
        "num_labels": NUM_LABELS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
        "problem_type": "regression" if kind == "regression" else PROBLEM_TYPES.get(kind),
    }
    if family == "vit":
        return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **settings)).double()
    config = BertConfig(vocab_size=100, max_position_embeddings=16, **settings)
    return (BertForTokenClassification if kind == "token" else BertForSequenceClassification)(config).double()


def make_rows(family: str, kind: str, count: int) -> list[dict[str, Tensor]]:
    """Make rows whose labels are missing unevenly, as they are in real unlabelled data."""
    random = torch.Generator().manual_seed(1)
    rows = []
    for place in range(count):
        row: dict[str, Tensor] = {}
        if family == "vit":
            row["pixel_values"] = torch.randn(3, 8, 8, generator=random, dtype=torch.float64)
        else:
            length = 4 + place % 5
            row["attention_mask"] = (torch.arange(8) < length).long()
            row["input_ids"] = torch.randint(1, 100, (8,), generator=random) * row["attention_mask"]
        missing = torch.rand(8, generator=random) < (0.7 if place < count // 2 else 0.2)
        if kind == "single":
            row["labels"] = torch.randint(0, NUM_LABELS, (), generator=random).masked_fill(missing[0], -100)
        elif kind == "multi":
            values = torch.randint(0, 2, (NUM_LABELS,), generator=random).float()
            row["labels"] = values.masked_fill(missing[:NUM_LABELS], -100.0)
        elif kind == "regression":
            row["labels"] = torch.randn(NUM_LABELS, generator=random).masked_fill(missing[0], -100.0)
        elif kind == "token":
            labels = torch.randint(0, NUM_LABELS, (8,), generator=random)
            row["labels"] = labels.masked_fill(missing | (row["attention_mask"] == 0), -100)
        rows.append(row)
    if kind == "single":  # never a half of the batch without any label
        rows[0]["labels"], rows[-1]["labels"] = torch.tensor(1), torch.tensor(2)
    return rows


class _Gradient(TrainerCallback):
    """Keep the gradient of the first optimizer step."""

    value: Tensor

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradients = [p.grad.flatten() for p in kwargs["model"].parameters() if p.grad is not None]
        self.value = torch.cat(gradients).clone()


def gradient(family: str, kind: str, count: int, batch: int, accumulated: int, *, stock: bool = False) -> Tensor:
    """Train for one step and return the gradient that the optimizer got."""
    keep = _Gradient()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulated,
            "max_steps": 1,
            "max_grad_norm": 0.0,
            "train_sampling_strategy": "sequential",
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "ddp_find_unused_parameters": False,
        }
        shared: dict[str, Any] = {
            "model": build(family, kind, seed=0),
            "train_dataset": make_rows(family, kind, count),
            "callbacks": [keep],
        }
        if stock:
            trainer = Trainer(args=TrainingArguments(**settings), **shared)
        else:
            alpha = 0.0 if kind == "unlabelled" else 0.5
            args = DistillationConfig(alpha=alpha, temperature=2.0, **settings)
            trainer = DistillationTrainer(teacher=build(family, kind, seed=1), args=args, **shared)
        trainer.remove_callback(PrinterCallback)
        assert trainer.args.world_size == int(os.environ.get("WORLD_SIZE", "1"))
        trainer.train()
    return keep.value


def compare(value: Tensor, full: Tensor) -> tuple[float, float]:
    """Return the ratio of the norms, and the distance relative to the full batch's."""
    return float(value.norm() / full.norm()), float((value - full).norm() / full.norm())


def start_processes(folder: Path, families: tuple[str, ...] = FAMILIES) -> None:
    """Write the gradients of the distributed cases of some families of models into a folder."""
    for count in sorted({case[3] for case in CASES.values()} - {1}):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count, __file__]
        command += ["--work-in", folder, "--families", *families]
        subprocess.run([sys.executable, *map(str, command)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def work(folder: Path, families: list[str]) -> None:
    """Be one of several processes: write the gradients of the distributed cases."""
    for family, kind in [pair for pair in combinations() if pair[0] in families]:
        for name, (count, batch, accumulated, processes) in CASES.items():
            if processes == int(os.environ["WORLD_SIZE"]):
                value = gradient(family, kind, count, batch, accumulated)
                if os.environ["RANK"] == "0":
                    torch.save(value, folder / f"{family}-{kind}-{name}.pt")
    shutdown_processes()


def combinations() -> list[tuple[str, str]]:
    """List the pairs of model family and kind of target."""
    return [(family, kind) for family in FAMILIES for kind in KINDS if (family, kind) != ("vit", "token")]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), help=argparse.SUPPRESS)
    folder = parser.parse_args().work_in
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if folder is not None:
        work(folder, parser.parse_args().families)
        return 0
    print("| model | targets | batch | ours: ratio | distance | plain Trainer: ratio |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    worst = 0.0
    with tempfile.TemporaryDirectory() as made:
        start_processes(Path(made))
        for family, kind in combinations():
            for name, (count, batch, accumulated, processes) in CASES.items():
                full = gradient(family, kind, count, count, 1)
                if processes == 1:
                    value = gradient(family, kind, count, batch, accumulated)
                else:
                    value = torch.load(Path(made) / f"{family}-{kind}-{name}.pt")
                ratio, distance = compare(value, full)
                worst = max(worst, distance)
                plain = "-"
                if processes == 1 and kind == "single":
                    stock_full = gradient(family, kind, count, count, 1, stock=True)
                    stock = gradient(family, kind, count, batch, accumulated, stock=True)
                    plain = f"{compare(stock, stock_full)[0]:.4f}"
                print(f"| {family} | {kind} | {name} | {ratio:.7f} | {distance:.0e} | {plain} |")
    print(f"\nThe largest distance is {worst:.1e}, {LIMIT:.0e} is allowed.")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
