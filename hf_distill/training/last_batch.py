"""Batch normalization and a last batch of one row, which has no variance to normalize by."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_last_batch(
    model: nn.Module, first_row: Callable[[], Mapping[str, Any]], num_rows: int, args: Any, who: str
) -> None:
    """Refuse a training whose last batch of an epoch would have one row, if the model cannot be trained on one.

    Args:
        model: to be trained; it may be on the meta device.
        first_row: makes a batch of one row, as the model takes it.
        num_rows: of the training data.
        args: the settings of the training.
        who: the model's name, for the message.

    Raises:
        ValueError: with what to set.
    """
    size = args.train_batch_size
    is_alone = size == 1 or (num_rows % size == 1 and not args.dataloader_drop_last)
    if args.world_size > 1 or not is_alone or not any(isinstance(part, _BatchNorm) for part in model.modules()):
        return
    device, probe = next(model.parameters()).device, copy.deepcopy(model).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            probe(**{name: value.to(device) for name, value in first_row().items()})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        remedy = "set per_device_train_batch_size to 2 or more"
        if size > 1:
            remedy = "set dataloader_drop_last to true, or another per_device_train_batch_size"
        raise ValueError(
            f"{who} has batch normalization, which cannot be trained on one row, and the last batch of an epoch has "
            f"one ({num_rows:,} rows in batches of {size}): {remedy}"
        ) from error
