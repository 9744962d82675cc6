"""A last batch of one row, and evaluation when it is dropped."""

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from hf_distill import DistillationConfig, DistillationTrainer


def images(number: int) -> Dataset:
    pixels = torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [i % 3 for i in range(number)]})


def net() -> MobileNetV2ForImageClassification:
    torch.manual_seed(0)
    return MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32, depth_multiplier=0.35, **tiny.labels()))


def trainer(model, rows, **settings) -> DistillationTrainer:
    settings = {"alpha": 1.0, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, **settings}
    args = DistillationConfig("out", use_cpu=True, report_to=[], disable_tqdm=True, **settings)
    return DistillationTrainer(model, None, args, train_dataset=rows, eval_dataset=rows)


def test_a_last_batch_of_one_row_is_refused_before_the_first_step():
    """An epoch is trained, and then PyTorch's error ends it."""
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"\(9 rows in batches of 4\): set dataloader_drop_last to true"):
        trainer(net(), images(9))
    with pytest.raises(ValueError, match="set per_device_train_batch_size to 2 or more"):
        trainer(net(), images(8), per_device_train_batch_size=1)
    torch.random.set_rng_state(state)


def test_what_can_be_trained_is():
    """A refusal by a number of rows that is no trouble to other models."""
    trainer(net(), images(8))
    trainer(net(), images(9), dataloader_drop_last=True)
    with torch.device("cpu"):
        trainer(tiny.resnet(), images(9).map(lambda row: row))  # its maps are larger than one pixel


def test_evaluation_keeps_the_rows_that_training_drops():
    """`Trainer` leaves the last batch out of an evaluation, too: metrics of other rows than the set has."""
    found = trainer(net(), images(10), dataloader_drop_last=True)
    assert found.predict(images(10)).predictions.shape == (10, 3)
    assert found.evaluate()["eval_samples_per_second"] > 0
    assert len(found.get_train_dataloader()) == 2
    assert len(found.get_eval_dataloader()) == 3
    assert found.args.dataloader_drop_last
