"""Whole trainings in several processes, which must be those of one process with their batches together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, PrinterCallback

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.data.soft_losses import SOFT_LOSSES
from hf_distill.training.distributed import shutdown_processes

KINDS = ("plain", "ensemble", "unlabelled", "grouped", "matching", "reverse_kl", "dkd")
NUM_ROWS = 29  # divides by no number of processes


def rows_of(kind: str) -> Any:
    rows = tiny.text_rows(NUM_ROWS)
    if kind == "unlabelled":
        return [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    if kind != "grouped":
        return rows
    plain = []
    for place, row in enumerate(rows):  # of many lengths, so that the order of the batches matters
        length = 2 + (place * 7) % 5
        plain.append({name: value.tolist()[:length] if value.dim() else int(value) for name, value in row.items()})
    return Dataset.from_list(plain)


def train(kind: str, batch_size: int, folder: Path) -> None:
    """Train and write down the losses, the final weights and the evaluation."""
    teachers = [tiny.bert(1, initializer_range=0.3, hidden_size=32 if kind == "matching" else 16), tiny.distilbert(2)]
    rows = rows_of(kind)
    weights: dict[str, Any] = (
        {"alpha": 0.0} if kind == "unlabelled" else {"alpha": 0.3, "alpha_end": 0.6, "schedule": "linear"}
    )
    weights |= {"hidden_weight": 0.5, "feature_weight": 1.0, "relation_weight": 1.0} if kind == "matching" else {}
    weights |= {"soft_loss": kind} if kind in SOFT_LOSSES else {}
    trainer = DistillationTrainer(
        model=tiny.bert(0),
        teacher=teachers if kind == "ensemble" else teachers[0],
        args=DistillationConfig(
            output_dir=str(folder / "out"),
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            num_train_epochs=3,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            **tiny.SGD,
            logging_steps=1,
            temperature=2.0,
            **weights,
            train_sampling_strategy="group_by_length" if kind == "grouped" else "random",
            allow_untrained_teacher=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny.tokenizer(),
        data_collator=DataCollatorWithPadding(tiny.tokenizer()),
    )
    trainer.remove_callback(PrinterCallback)
    assert trainer.args.world_size == int(os.environ.get("WORLD_SIZE", "1"))
    trainer.train()
    evaluation = trainer.evaluate()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        parts = [entry["soft_loss"] for entry in trainer.state.log_history if "loss" in entry]
        numbers = {"losses": losses, "soft_losses": parts, "eval_loss": evaluation["eval_loss"]}
        (folder / f"{kind}.json").write_text(json.dumps(numbers))
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), folder / f"{kind}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_training_is_that_of_one_process_with_their_batches_together(count: int, tmp_path: Path) -> None:
    """Rows repeated to fill up the last batch, other rows in a batch, means of means: another student, and no error."""
    several, one = tmp_path / "several", tmp_path / "one"
    several.mkdir()
    one.mkdir()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), __file__, str(several)]
    subprocess.run([sys.executable, *command], check=True)
    for kind in KINDS:
        train(kind, 2 * count, one)
        found, expected = (json.loads((folder / f"{kind}.json").read_text()) for folder in (several, one))
        assert len(expected["losses"]) == 3 * -(-NUM_ROWS // (2 * count))
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-4), (kind, name)
        weights, wanted = (torch.load(folder / f"{kind}.pt") for folder in (several, one))
        start = tiny.bert(0).state_dict()
        assert not torch.equal(wanted["classifier.weight"], start["classifier.weight"])
        for name in wanted:
            torch.testing.assert_close(
                weights[name], wanted[name], rtol=0, atol=1e-5, msg=lambda text, n=name: n + text
            )


@pytest.mark.slow
def test_the_command_line_ends_well_in_two_processes(tmp_path: Path) -> None:
    """A process that closes its connections too soon: all results are written, and the launcher reports a failure."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hf_distill", "train"]
    command += ["vision/digits", "training.use_cpu=true", "training.num_train_epochs=1", f"output_dir={tmp_path}/out"]
    command += ["teacher.training.num_train_epochs=1", "training.allow_untrained_teacher=true"]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("The student agrees with the teacher") == 1
    assert (tmp_path / "out" / "results.json").exists()


if __name__ == "__main__":
    for each in KINDS:
        train(each, 2, Path(sys.argv[1]))
    shutdown_processes()
