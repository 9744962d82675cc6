"""What does a matching term cost, beside soft targets of the same teacher at each step? Time of a step, and memory.

    python benchmarks/matching.py --teacher FOLDER --data FOLDER [--steps 20] [--layers 2]

The teacher is a fine-tuned text classifier, the data are those of SST-2 (train and validation files). The student is
some of the teacher's layers. The terms take turns within one process, step by step, on the same batches; memory is what
autograd keeps of a step for its backward pass, parameters left out. Prints both as ratios to those of `kl`.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
import transformers
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from hf_distill import DistillationConfig, DistillationTrainer, student_from_teacher

TERMS: dict[str, dict[str, Any]] = {
    "kl": {},
    "relation": {"relation_weight": 1.0},
    "hidden": {"hidden_weight": 1.0},
    "hidden, cosine": {"hidden_weight": 1.0, "hidden_loss": "cosine"},
    "vkd": {"feature_weight": 1.0},
    "rkd": {"feature_weight": 1.0, "feature_loss": "rkd"},
}


def trainers(args: argparse.Namespace, terms: list[str], folder: str) -> dict[str, DistillationTrainer]:
    """Return a trainer for each term, with a teacher of its own."""
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    rows = load_dataset("parquet", data_dir=args.data, split=f"train[:{32 * args.steps}]")
    rows = rows.map(lambda batch: tokenizer(batch["sentence"], truncation=True, max_length=128), batched=True)
    found = {}
    for term in terms:
        teacher = AutoModelForSequenceClassification.from_pretrained(args.teacher, dtype=torch.float32)
        settings = DistillationConfig(
            folder,
            per_device_train_batch_size=32,
            max_steps=args.steps,
            report_to="none",
            disable_tqdm=True,
            allow_untrained_teacher=True,
            train_sampling_strategy="sequential",
            use_cpu=not torch.cuda.is_available(),
            **TERMS[term],
        )
        student = student_from_teacher(teacher, num_layers=args.layers)
        data = {"train_dataset": rows.rename_column("label", "labels"), "processing_class": tokenizer}
        collator = DataCollatorWithPadding(tokenizer)
        trainer = DistillationTrainer(student, teacher, settings, data_collator=collator, **data)
        trainer.create_optimizer()
        found[term] = trainer
    return found


def step(trainer: DistillationTrainer, batch: dict[str, Any]) -> float:
    """Train on a batch; return the seconds."""
    start = time.perf_counter()
    trainer.model.train()
    trainer.training_step(trainer.model, dict(batch), trainer._get_num_items_in_batch([batch], trainer.args.device))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kept_bytes(trainer: DistillationTrainer, batch: dict[str, Any]) -> int:
    """Train on a batch; return the bytes of the tensors that were kept for the backward pass, each storage once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(trainer, batch)
    return sum(kept.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        of_terms = trainers(args, list(TERMS), folder)
        batches = list(next(iter(of_terms.values())).get_train_dataloader())
        seconds: dict[str, list[float]] = {term: [] for term in of_terms}
        for batch in batches:
            for term, trainer in of_terms.items():
                seconds[term].append(step(trainer, batch))
        memory = {term: kept_bytes(trainer, batches[0]) for term, trainer in of_terms.items()}
    print("| term | time of a step | kept for the backward pass |\n| --- | ---: | ---: |")
    for term in TERMS:
        ratios = [own / of_kl for own, of_kl in zip(seconds[term][2:], seconds["kl"][2:], strict=True)]
        print(f"| {term} | {statistics.median(ratios):.3f} | {memory[term] / memory['kl']:.3f} |")


if __name__ == "__main__":
    main()
