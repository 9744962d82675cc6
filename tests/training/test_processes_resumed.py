"""Trainings in two processes that were stopped and resumed, which must be those that were never stopped."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, PrinterCallback, TrainerCallback

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.training.distributed import shutdown_processes

NUM_ROWS = 45  # in two processes with batches of 4 the last one of an epoch is filled up with rows of its beginning
WAYS: dict[str, dict[str, Any]] = {
    "random, dropout": {"train_sampling_strategy": "random", "dropout": 0.1},
    "grouped, accumulated": {"train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 2},
    "cached": {"precompute_teacher_logits": True},
    "sequential": {"train_sampling_strategy": "sequential"},
    "split": {"accelerator_config": {"split_batches": True}},
}
STOPS = {"the first epoch": 4, "the second epoch": 8}


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def rows() -> Dataset:
    plain = []
    for place, row in enumerate(tiny.text_rows(NUM_ROWS)):
        length = 2 + (place * 7) % 5
        plain.append({name: value.tolist()[:length] if value.dim() else int(value) for name, value in row.items()})
    return Dataset.from_list(plain)


def train(folder: Path, way: dict[str, Any], stop: int, *, stopped: bool = False, resumed: bool = False) -> Any:
    """Train two epochs, or up to the stop, or from there on; return the weights."""
    settings = {**way}
    accumulated = settings.get("gradient_accumulation_steps", 1)
    args = DistillationConfig(
        str(folder),
        alpha=0.5,
        per_device_train_batch_size=4,
        num_train_epochs=2 * accumulated,
        save_steps=stop,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        learning_rate=1e-3,
        allow_untrained_teacher=True,
        **{name: value for name, value in settings.items() if name != "dropout"},
    )
    trainer = DistillationTrainer(
        tiny.bert(1, dropout=settings.get("dropout", 0.0)),
        tiny.bert(2),
        args,
        train_dataset=rows(),
        processing_class=tiny.tokenizer(),
        data_collator=DataCollatorWithPadding(tiny.tokenizer()),
        callbacks=[Stop(stop)] if stopped else [],
    )
    trainer.remove_callback(PrinterCallback)
    assert trainer.args.world_size == 2
    trainer.train(resume_from_checkpoint=resumed or None)
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def run_all(folder: Path) -> None:
    """Train in each way without a stop and with one, in both epochs, and write down how far the weights differ."""
    found = {}
    for name, way in WAYS.items():
        for where, stop in STOPS.items():
            whole = train(folder / f"{name}-whole-{stop}", way, stop)
            parted = folder / f"{name}-parted-{stop}"
            train(parted, way, stop, stopped=True)
            found[name, where] = float((whole - train(parted, way, stop, resumed=True)).abs().max())
    if os.environ["RANK"] == "0":
        torch.save(found, folder / "found.pt")


@pytest.mark.slow
def test_a_run_resumed_in_two_processes_ends_with_the_weights_of_one_never_stopped(tmp_path: Path) -> None:
    """Rows that fill up the last batch count again after a stop, or the epoch's order is another: another student."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, str(tmp_path)]
    subprocess.run([sys.executable, *command], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == len(WAYS) * len(STOPS)
    assert {case: difference for case, difference in found.items() if difference} == {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]))
    shutdown_processes()
