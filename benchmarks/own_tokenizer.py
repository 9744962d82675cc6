"""What does it cost a student to have another tokenizer than its teacher?

Distils a fine-tuned text classifier into two small new students that differ in their tokenizers alone: one reads what
the teacher reads, the other one byte-level BPE, trained here on the training texts. Prints their accuracies over
several seeds (last epoch), and the difference.

    python benchmarks/own_tokenizer.py --teacher FOLDER --data FOLDER [--seeds 2] [--epochs 3] [--rows N]
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml
from datasets import load_dataset
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.train import distill


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of a fine-tuned text classifier")
    parser.add_argument("--data", required=True, help="folder with train and validation files")
    parser.add_argument("--text-column", default="sentence")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rows", type=int, help="training rows; all, if not given")
    parser.add_argument("--vocabulary", type=int, default=8000, help="size of the new tokenizer's")
    given = parser.parse_args()
    logging.set_verbosity_error()
    accuracies: dict[str, list[float]] = {"teacher's": [], "its own": []}
    teacher = 0.0
    with tempfile.TemporaryDirectory() as work:
        train_tokenizer(given, Path(work) / "tokenizer")
        sizes = {"teacher's": len(AutoTokenizer.from_pretrained(given.teacher)), "its own": given.vocabulary}
        for seed in range(given.seeds):
            for name in accuracies:
                recipe = recipe_of(given, sizes[name], seed, Path(work) / f"{len(accuracies[name])}-{name[:3]}")
                if name == "its own":
                    recipe["student"]["processor"] = str(Path(work) / "tokenizer")
                file = Path(work) / "recipe.yaml"
                file.write_text(yaml.safe_dump(recipe))
                results = distill(load_recipe(file), "own_tokenizer")
                accuracies[name].append(results.student.metrics["accuracy"])
                teacher = results.teacher.metrics["accuracy"]
                print(json.dumps({"tokenizer": name, "seed": seed, "accuracy": accuracies[name][-1]}), flush=True)
    print(f"\nteacher {teacher:.4f}\n\n| student's tokenizer | accuracy |\n| --- | ---: |")
    for name, values in accuracies.items():
        deviation = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"| {name} | {statistics.mean(values):.4f}{deviation} |")
    difference = statistics.mean(accuracies["its own"]) - statistics.mean(accuracies["teacher's"])
    print(f"\nits own less the teacher's: {100 * difference:+.2f} points")


def train_tokenizer(given: argparse.Namespace, folder: Path) -> None:
    """Train a tokenizer on the training texts and save it, with BERT's special tokens around each text."""
    texts = load_dataset(given.data, split="train")[given.text_column]
    trained = ByteLevelBPETokenizer(lowercase=True, add_prefix_space=True)
    trained.train_from_iterator(texts, vocab_size=given.vocabulary, special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
    ).save_pretrained(folder)


def recipe_of(given: argparse.Namespace, vocabulary: int, seed: int, folder: Path) -> dict[str, Any]:
    """Return the recipe of one run."""
    shape = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    return {
        "task": "text-classification",
        "data": {
            "path": given.data,
            "text_column": given.text_column,
            "train_split": "train",
            "eval_split": "validation",
            "max_train_rows": given.rows,
            "max_length": 128,
        },
        "teacher": {"model": given.teacher},
        "student": {"config": {"model_type": "bert", "vocab_size": vocabulary, **shape}},
        "baseline": False,
        "training": {
            "alpha": 0.1,
            "temperature": 4.0,
            "num_train_epochs": given.epochs,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 64,
            "warmup_steps": 0.06,
            "seed": seed,
            "save_strategy": "no",
            "bf16": True,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 500,
        },
        "metrics": ["accuracy"],
        "output_dir": str(folder),
    }


if __name__ == "__main__":
    main()
