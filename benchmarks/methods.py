"""Which method pays: students of one teacher by each soft loss and matching term, over several seeds.

    python benchmarks/methods.py mnist DATA --output methods.jsonl
    python benchmarks/methods.py sst2 DATA --model MODEL --output methods.jsonl --methods labels kl relation

DATA is a folder with train and test parquet files of MNIST (columns image, label), or train and validation files of
SST-2 (sentence, label). A line is appended to the output for each student, and students that have one are not trained
again, so a run can be stopped and go on. At the end, and with `--table`, comes the table: mean and deviation of the
accuracy after the last epoch, seconds per student, and the difference from `kl` of the same seed.

Of the training rows, 1,000 have their labels, the others teach by the teacher's soft targets alone; with `--labelled`
another number has. The teacher has learned from those labels.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, load_dataset
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    default_data_collator,
    set_seed,
)

from hf_distill import DistillationConfig, DistillationTrainer, student_from_teacher

_SOFT: dict[str, dict[str, Any]] = {
    "labels": {"alpha": 1.0},
    "kl": {},
    "kl, T 1": {"temperature": 1.0},
    "reverse_kl": {"soft_loss": "reverse_kl"},
    "js": {"soft_loss": "js"},
    "mse": {"soft_loss": "mse"},
    "hard": {"soft_loss": "hard"},
    "dkd": {"soft_loss": "dkd"},
    "dist": {"soft_loss": "dist"},
    "wttm": {"soft_loss": "wttm"},
    "alpha_beta": {"soft_loss": "alpha_beta"},
    "standardized": {"standardize_logits": True},
}
_MATCHING: dict[str, dict[str, Any]] = {
    "relation": {"relation_weight": 1.0},
    "hidden": {"hidden_weight": 1.0},
    "hidden, cosine": {"hidden_weight": 1.0, "hidden_loss": "cosine"},
    "vkd": {"feature_weight": 1.0},
    "rkd": {"feature_weight": 0.1, "feature_loss": "rkd"},
    "attention": {"attention_weight": 1000.0},
}
_PATIENCE = {f"{name}, {epochs} epochs": (name, epochs) for name in ("labels", "kl") for epochs in (3, 30)}
_NOT_FOR = {"mnist": {"relation"}, "sst2": {"dkd", "standardized", "attention"}}


@dataclass(frozen=True)
class Setting:
    """Data, teacher and student of one comparison."""

    train: Dataset
    labelled: Dataset
    test: Dataset
    teacher: Callable[[], PreTrainedModel]
    student: Callable[[PreTrainedModel], PreTrainedModel]
    collator: Any
    of_teacher: dict[str, Any]
    of_student: dict[str, Any]


def mnist(args: argparse.Namespace) -> Setting:
    """Images of 28 x 28 in grey; teacher and student are ResNets."""
    rows = load_dataset("parquet", data_dir=args.data)

    def pixels(batch: dict[str, list]) -> dict[str, list]:
        images = [
            torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8) for image in batch["image"]
        ]
        scaled = [(image.float() / 127.5 - 1).reshape(1, 28, 28) for image in images]
        return {"pixel_values": scaled, "labels": batch["label"]}

    def read(split: Dataset) -> Dataset:
        return split.map(pixels, batched=True, remove_columns=split.column_names).with_format("torch")

    def resnet(widths: list[int], depth: int) -> PreTrainedModel:
        shape = {"hidden_sizes": widths, "embedding_size": widths[0], "depths": [depth] * len(widths)}
        own = {"num_channels": 1, "num_labels": 10, "layer_type": "basic", "architectures": []}
        return AutoModelForImageClassification.from_config(AutoConfig.for_model("resnet", **shape, **own))

    train = read(rows["train"].select(range(args.rows or 5000)))
    return Setting(
        *_few_labels(train, args.labelled),
        read(rows["test"]),
        teacher=lambda: resnet([32, 64, 128], 2),
        student=lambda _: resnet([8, 16, 32], 1),
        collator=default_data_collator,
        of_teacher={"num_train_epochs": 40, "learning_rate": 2e-3, "per_device_train_batch_size": 32},
        of_student={"num_train_epochs": 10, "learning_rate": 4e-3, "per_device_train_batch_size": 64},
    )


def sst2(args: argparse.Namespace) -> Setting:
    """Sentences of two classes; the student is the first two of the teacher's layers."""
    rows, tokenizer = load_dataset("parquet", data_dir=args.data), AutoTokenizer.from_pretrained(args.model)

    def tokens(batch: dict[str, list]) -> dict[str, list]:
        return {**tokenizer(batch["sentence"], truncation=True, max_length=128), "labels": batch["label"]}

    def read(split: Dataset) -> Dataset:
        return split.map(tokens, batched=True, remove_columns=split.column_names)

    train = read(rows["train"].select(range(args.rows or 10_000)))
    return Setting(
        *_few_labels(train, args.labelled),
        read(rows["validation"]),
        teacher=lambda: AutoModelForSequenceClassification.from_pretrained(
            args.model, num_labels=2, dtype=torch.float32
        ),
        student=lambda teacher: student_from_teacher(teacher, num_layers=2, strategy="first"),
        collator=DataCollatorWithPadding(tokenizer),
        of_teacher={"num_train_epochs": 10, "learning_rate": 5e-5, "per_device_train_batch_size": 16},
        of_student={"num_train_epochs": 10, "learning_rate": 3e-4, "per_device_train_batch_size": 64},
    )


def _few_labels(train: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """Take the labels from all rows but the first ones; return all rows, and those."""
    hidden = train.map(lambda row, place: {"labels": row["labels"] if place < count else -100}, with_indices=True)
    return hidden, train.select(range(count))


def _arguments(folder: Path, seed: int, **chosen: Any) -> DistillationConfig:
    base: dict[str, Any] = {"use_cpu": not torch.cuda.is_available(), "bf16": True, "warmup_steps": 0.06}
    base |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "per_device_eval_batch_size": 128}
    return DistillationConfig(str(folder), seed=seed, logging_strategy="no", **{**base, **chosen})


def trained(setting: Setting, model: PreTrainedModel, teacher: Any, args: DistillationConfig) -> tuple[float, float]:
    """Train a model; return its accuracy and the seconds of the training."""
    rows = setting.train if args.uses_teacher else setting.labelled
    trainer = DistillationTrainer(model, teacher, args, train_dataset=rows, data_collator=setting.collator)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    predicted = trainer.predict(setting.test)
    return float((predicted.predictions.argmax(-1) == predicted.label_ids).mean()), seconds


def students(
    setting: Setting, teacher: PreTrainedModel, folder: Path, known: set, args: Any
) -> Iterator[dict[str, Any]]:
    """Train the students that are not known yet, seed by seed, and give a line for each."""
    methods = args.methods or [n for n in (*_SOFT, *_MATCHING, *_PATIENCE) if n not in _NOT_FOR[args.setting]]
    for seed in range(args.seeds):
        for method in methods:
            if (method, seed) in known:
                continue
            name, epochs = _PATIENCE.get(method, (method, setting.of_student["num_train_epochs"]))
            chosen = {
                "alpha": 0.1,
                "temperature": 4.0,
                **setting.of_student,
                **_SOFT.get(name, _MATCHING.get(name, {})),
            }
            chosen |= {"num_train_epochs": epochs, "allow_untrained_teacher": True}
            chosen |= {"precompute_teacher_logits": True} if name in _SOFT and name != "labels" else {}
            chosen |= (
                {"teacher_logits_dir": str(folder / "soft_targets")} if "precompute_teacher_logits" in chosen else {}
            )
            set_seed(seed)
            student = setting.student(teacher)
            accuracy, seconds = trained(
                setting, student, None if name == "labels" else teacher, _arguments(folder / "out", seed, **chosen)
            )
            yield {"method": method, "seed": seed, "accuracy": accuracy, "seconds": seconds}


def table(lines: list[dict[str, Any]]) -> str:
    """Return the methods with the mean over the seeds, and what each gives on top of `kl` with the same seed."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        found[line["method"]][line["seed"]] = line
    rows = ["| method | accuracy | against kl | seconds | seeds |", "| --- | --- | --- | --- | --- |"]
    for method, by_seed in found.items():
        values = [line["accuracy"] for line in by_seed.values()]
        pairs = [
            line["accuracy"] - found["kl"][seed]["accuracy"] for seed, line in by_seed.items() if seed in found["kl"]
        ]
        against = "" if method in ("kl", "the teacher") or not pairs else f"{_spread(pairs, '+.2f')}"
        seconds = statistics.mean(line["seconds"] for line in by_seed.values())
        rows.append(f"| {method} | {_spread(values, '.2f')} | {against} | {seconds:.0f} | {len(values)} |")
    return "\n".join(rows)


def _spread(values: list[float], form: str) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{100 * statistics.mean(values):{form}} ± {100 * deviation:.2f}"


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=["mnist", "sst2"])
    parser.add_argument("data")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="of sst2: what is fine-tuned")
    parser.add_argument("--output", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--labelled", type=int, default=1000, help="training rows with a label")
    parser.add_argument("--rows", type=int, help="training rows in all; 5,000 of mnist, 10,000 of sst2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", help="some of the methods; by default all that apply")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    if not args.table:
        transformers.logging.set_verbosity_error()
        setting = {"mnist": mnist, "sst2": sst2}[args.setting](args)
        folder = args.output.with_suffix("")
        set_seed(0)
        teacher = setting.teacher()
        if (folder / "teacher").exists():
            teacher = type(teacher).from_pretrained(folder / "teacher")
        else:
            accuracy, seconds = trained(
                setting, teacher, None, _arguments(folder / "out", 0, alpha=1.0, **setting.of_teacher)
            )
            lines.append({"method": "the teacher", "seed": 0, "accuracy": accuracy, "seconds": seconds})
            teacher.save_pretrained(folder / "teacher")
            args.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
        known = {(line["method"], line["seed"]) for line in lines}
        for line in students(setting, teacher, folder, known, args):
            lines.append(line)
            with args.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
