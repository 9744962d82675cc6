"""Evaluating does not change what is trained."""

import pytest
import tiny
import torch
from datasets import Dataset

from hf_distill import DistillationConfig, DistillationTrainer


def weights_after(**settings) -> dict[str, torch.Tensor]:
    texts = [f"a {word} film" for word in tiny.WORDS[8:16]] * 2
    encoded = tiny.tokenizer()(texts)["input_ids"]
    rows = Dataset.from_dict({"input_ids": encoded, "labels": [i % 3 for i in range(len(texts))]})
    args = DistillationConfig(
        "out", use_cpu=True, report_to=[], disable_tqdm=True, num_train_epochs=2, save_strategy="no", **settings
    )
    student, teacher = tiny.bert(1, dropout=0.3), tiny.bert(2)
    trainer = DistillationTrainer(
        student, teacher, args, train_dataset=rows, eval_dataset=rows, processing_class=tiny.tokenizer()
    )
    trainer.train()
    return student.state_dict()


@pytest.mark.filterwarnings("ignore:the teacher")
def test_a_student_is_the_same_however_often_it_is_evaluated():
    """An evaluation draws a seed for its loader, and every dropout after it is another one."""
    often = weights_after(eval_strategy="steps", eval_steps=1, allow_untrained_teacher=True)
    never = weights_after(eval_strategy="no", allow_untrained_teacher=True)
    assert all(torch.equal(often[name], never[name]) for name in never)
