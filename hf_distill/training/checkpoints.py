"""A `Trainer` whose resumed runs are the runs that were never stopped, and whose predictions keep the data's order."""

import warnings
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from hf_distill.training.sampler import EpochLengthGroupedSampler, knows_lengths, row_lengths


class ResumableTrainer(Trainer):
    """`Trainer`, with what it lacks for a resumed run to end with the same weights.

    Length-grouped batches come in an order that depends on the seed and the epoch alone; data sets that augment their
    rows are told the epoch (`set_epoch`); weights that are saved under other names than the model's are found again.
    Evaluation and prediction go through the data in their order, whatever the sampling strategy of the training.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_EpochCallback)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy, lengths = self.args.train_sampling_strategy, self.args.length_column_name
        if strategy not in ("auto", "group_by_length") or not has_length(train_dataset):
            return super()._get_train_sampler(train_dataset)
        names = getattr(self.processing_class, "model_input_names", None) or ["input_ids"]
        # The data set given here has lost its unused columns, its lengths among them.
        original: Any = self.train_dataset
        with_lengths = original if len(original) == len(train_dataset) else train_dataset  # type: ignore[arg-type]
        if strategy == "auto" and not knows_lengths(with_lengths, names[0]):
            return super()._get_train_sampler(train_dataset)  # any other strategy than the parent's is random there
        return EpochLengthGroupedSampler(
            # All that makes one step: several processes then see the rows that one with their batch together would.
            self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            row_lengths(with_lengths, names[0], lengths),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # The parent groups evaluation by length as well, and `predict` then returns the rows in another order.
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None
        return SequentialSampler(eval_dataset)  # type: ignore[arg-type]

    # The parent loads a checkpoint's weights under the names in the file, but `save_pretrained` writes many models, ViT
    # among them, under older names: it then resumes, with a warning at most, from the weights that training started
    # with. https://github.com/huggingface/transformers/issues/43701

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_saved_under_other_names(resume_from_checkpoint):
            self._load_renamed(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._is_saved_under_other_names(self.state.best_model_checkpoint):
            self._load_renamed(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _is_saved_under_other_names(self, checkpoint: str) -> bool:
        if not isinstance(self.model, PreTrainedModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        saved = {name for file in Path(checkpoint).glob("model*.safetensors") for name in _names_in(file)}
        return not saved <= self.model.state_dict().keys()

    def _load_renamed(self, checkpoint: str) -> None:
        loaded, report = type(self.model).from_pretrained(checkpoint, dtype=self.model.dtype, output_loading_info=True)
        if report["missing_keys"]:
            raise ValueError(
                f"the checkpoint {checkpoint} lacks {', '.join(sorted(report['missing_keys'])[:4])}: it is damaged or "
                "of another model. Resume from another one."
            )
        self.model.load_state_dict(loaded.state_dict())


class _EpochCallback(TrainerCallback):
    """Tell the data set and the sampler which epoch begins, also when a run is resumed, and warn if that is another."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader: Any = kwargs.get("train_dataloader")
        accumulated = args.gradient_accumulation_steps
        if state.global_step == 0 or not state.epoch or not has_length(loader):
            return
        num_batches = len(loader)
        whole, part = divmod(state.global_step, max(-(-num_batches // accumulated), 1))
        epoch = whole + part * accumulated / num_batches
        if abs(epoch - state.epoch) > 1e-6:
            warnings.warn(
                f"the checkpoint is of epoch {state.epoch:.4g}, and with the present settings its {state.global_step} "
                f"steps are {epoch:.4g} epochs: the batch size, gradient_accumulation_steps, the number of processes "
                "or of rows were others, so rows are skipped or trained on again. Resume with the former settings.",
                UserWarning,
                stacklevel=2,
            )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader, epoch = kwargs.get("train_dataloader"), int(state.epoch or 0)
        dataset = getattr(loader, "dataset", None)
        if isinstance(dataset, Dataset) and hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        # In several processes the loader of a resumed epoch, which skips batches, does not reach its sampler.
        if has_length(dataset) and hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)  # type: ignore[union-attr]


def _names_in(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as weights:
        return list(weights.keys())
