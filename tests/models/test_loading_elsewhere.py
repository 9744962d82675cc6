"""Students of every making are plain models: a process that has no hf_distill loads them and gives the same logits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithPadding, PreTrainedModel

from hf_distill import DistillationConfig, DistillationTrainer, student_from_teacher
from hf_distill.models.vocabulary import count_tokens, prune_embeddings, prune_vocabulary

TEXTS = ["the film is good", "a dull plot", "the plot is dull", "a good film"]
ELSEWHERE = """
import json, sys
sys.modules["hf_distill"] = None  # an import of it is an error
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
with torch.no_grad():
    logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()
scores = pipeline("text-classification", folder, device="cpu", top_k=None)(texts)
print(json.dumps({"logits": logits, "scores": [{each["label"]: each["score"] for each in row} for row in scores]}))
"""


def layer_dropped() -> tuple[Any, Any]:
    return student_from_teacher(tiny.bert(1, num_layers=4), num_layers=2), tiny.tokenizer()


def pruned() -> tuple[Any, Any]:
    whole, student = tiny.tokenizer(), tiny.bert(0)
    tokenizer, kept = prune_vocabulary(whole, count_tokens(whole(TEXTS)["input_ids"]))
    prune_embeddings(student, kept)
    return student, tokenizer


def lora() -> tuple[Any, Any]:
    return get_peft_model(tiny.bert(0), LoraConfig(r=4, lora_alpha=8, task_type="SEQ_CLS")), tiny.tokenizer()


@pytest.mark.parametrize("make", [layer_dropped, pruned, lora])
def test_a_process_without_this_package_gives_the_same_logits(make: Any, tmp_path: Path) -> None:
    """A student that nobody but its maker can load."""
    student, tokenizer = make()
    rows = Dataset.from_dict({"text": TEXTS, "labels": [0, 1, 2, 0], **tokenizer(TEXTS)})
    trainer = DistillationTrainer(
        student,
        tiny.bert(1, num_layers=4),
        DistillationConfig(
            str(tmp_path / "out"),
            max_steps=4,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            allow_untrained_teacher=True,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        teacher_processing_class=tiny.tokenizer() if make is pruned else None,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    model: PreTrainedModel = trainer.model.merge_and_unload() if make is lora else trainer.model
    model.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    with torch.no_grad():
        expected = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "student"), json.dumps(TEXTS)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=0, atol=1e-5)
    labels = model.config.id2label
    for row, scores in zip(expected.softmax(-1), found["scores"], strict=True):
        assert scores == pytest.approx({labels[place]: float(value) for place, value in enumerate(row)}, abs=1e-5)
