"""What `Trainer` lacks for a resumed run to end with the same weights."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import has_length

from hf_distill.data.processors import max_tokens

# `Trainer` loads a checkpoint's weights under the names in the file, but `save_pretrained` writes many models, ViT
# among them, under older names: it then resumes, with a warning at most, from the weights that training started with.
# https://github.com/huggingface/transformers/issues/43701


def load_renamed(trainer: Any, checkpoint: str) -> bool:
    """Load the weights of a checkpoint that are saved under other names than the model's.

    Raises:
        ValueError: the checkpoint lacks some of the weights.
    """
    model = trainer.model
    if not isinstance(model, PreTrainedModel) or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return False
    saved = {name for file in Path(checkpoint).glob("model*.safetensors") for name in _names_in(file)}
    if saved <= model.state_dict().keys():
        return False
    loaded, report = type(model).from_pretrained(checkpoint, dtype=model.dtype, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(
            f"the checkpoint {checkpoint} lacks {', '.join(sorted(report['missing_keys'])[:4])}: it is damaged or "
            "of another model. Resume from another one."
        )
    model.load_state_dict(loaded.state_dict())
    return True


class EpochCallback(TrainerCallback):
    """Tell the data set and the sampler which epoch begins, also when a run is resumed, and warn if that is another."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn of a resumed run whose steps are other rows than before."""
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
        """Tell the data set and the sampler the epoch."""
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


@contextmanager
def saving_cleanly(trainer: Any, output_dir: str | None) -> Iterator[None]:
    """Keep a README.md, into which PEFT writes beside adapters, as it is, and the token out of the pickled settings.

    A tokenizer is saved with the number of tokens that the model takes, which is what a pipeline truncates to.
    """
    args = trainer.args
    folder = Path(args.output_dir if output_dir is None else output_dir)
    if folder.resolve() == Path(args.output_dir).resolve():
        trainer._finish_current_push()  # it may be reading what is written now
    readme = folder / "README.md"
    before = readme.read_bytes() if args.should_save and readme.is_file() else None
    token, args.hub_token = args.hub_token, None
    tokenizer = trainer.processing_class
    length = getattr(tokenizer, "model_max_length", None)
    most = None if length is None else max_tokens(getattr(trainer.student, "config", None), tokenizer)
    if most is not None:
        tokenizer.model_max_length = most
    try:
        yield
    finally:
        args.hub_token = token
        if most is not None:
            tokenizer.model_max_length = length
        if before is not None and readme.read_bytes() != before:
            readme.write_bytes(before)
