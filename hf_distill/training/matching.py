"""Matching: which layers of a student and its teacher are compared, by which learned projections, and what it gives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hf_distill.models.internals import (
    Point,
    Recorder,
    attention_parts,
    attention_points,
    family,
    is_of_stages,
    layers_of,
    pooled_point,
    width_of,
)
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.source import TEACHER_INPUTS
from hf_distill.training.config import DistillationConfig
from hf_distill.training.losses.matching import (
    attention_transfer_loss,
    feature_loss,
    hidden_loss,
    relation_loss,
    rkd_loss,
)
from hf_distill.training.objective import is_token_level

PROJECTIONS_FILE = "projections.safetensors"


def layer_pairs(
    layer_map: str | Sequence[Sequence[int]] | None, num_student: int, num_teacher: int
) -> list[tuple[int, int]]:
    """Return pairs of a student's layer and the teacher's that it is compared with.

    Args:
        layer_map: `uniform`, the layers of the student evenly over the teacher's, last with last (TinyBERT, arXiv
            1909.10351, section 3.1); `last`, these alone; or the pairs, where -1 is the last layer.
        num_student: layers of the student.
        num_teacher: layers of the teacher.

    Raises:
        ValueError: a layer is not there.
    """
    if layer_map == "last":
        return [(num_student - 1, num_teacher - 1)]
    if layer_map in ("uniform", None):
        return [(i, max(round((i + 1) * num_teacher / num_student) - 1, 0)) for i in range(num_student)]
    pairs: list[tuple[int, int]] = [(ours, theirs) for ours, theirs in layer_map]  # type: ignore[str-unpack,misc,union-attr]
    for layer, count, who in [(a, num_student, "student") for a, _ in pairs] + [
        (b, num_teacher, "teacher") for _, b in pairs
    ]:
        if not -count <= layer < count:
            raise ValueError(f"layer_map names layer {layer} of the {who}, which has layers 0 to {count - 1}")
    return [(ours % num_student, theirs % num_teacher) for ours, theirs in pairs]


def token_ids(student: Any, teacher: Any, names: str) -> Tensor:
    """Return the teacher's id of each of the student's tokens; of those that are not in use, 0.

    Raises:
        ValueError: the two do not read tokens of one vocabulary.
    """
    ours, theirs = ({} if not hasattr(each, "get_vocab") else each.get_vocab() for each in (student, teacher))
    if not ours or not {*ours} <= {*theirs}:
        raise ValueError(
            f"{names} compares tokens or places of the same inputs, and the teacher has inputs of its own: take "
            "feature_weight, or leave teacher_processing_class out"
        )
    ids = torch.zeros(max(ours.values()) + 1, dtype=torch.long)
    for token, place in ours.items():
        ids[place] = theirs[token]
    return ids


class Matching:
    """The terms that compare the inside of a student with its teacher's.

    Attributes:
        projections: learned with the student, in its optimizer and checkpoints, and in no saved student.
        token_ids: the teacher's id of each of the student's tokens, where both have their own; None: the same.

    Raises:
        ValueError: the two models, or the settings, do not allow a term.
    """

    def __init__(self, args: DistillationConfig, student: nn.Module, teacher: Any, device: Any = "cpu") -> None:
        self.args = args
        self.student = student
        self.token_ids: Tensor | None = None
        self._view = 0  # of the teacher, where both have their own tokens
        names = ", ".join(f"{name}_weight" for name in args.matching_weights)
        if names and not isinstance(teacher, nn.Module):
            raise ValueError(
                f"{names} compares the inside of two models, and this teacher is not one model (but several, a "
                "function, a column, or cached soft targets): leave it out, or pass a model"
            )
        self.projections = nn.ModuleDict()
        self._ours: dict[str, Point] = {}
        self._theirs: dict[str, Point] = {}
        with torch.random.fork_rng(devices=[]):  # the student's dropout is that of a training without projections
            torch.manual_seed(args.seed)
            if args.relation_weight:
                self._find_relations(student, teacher)
            if args.hidden_weight or args.attention_weight:
                self._find_layers(student, teacher)
            if args.feature_weight:
                self._find_features(student, teacher)
        self.projections.to(device)
        self._recorders: list[Recorder] = []
        self._needs_gradient = any(parameter.requires_grad for parameter in student.parameters())

    @classmethod
    def of(cls, trainer: Any) -> "Matching":
        """Return the matching of a trainer, ready to record.

        Raises:
            ValueError: the teacher is no single model that reads what the student reads.
        """
        args, source = trainer.args, trainer.soft_targets
        if not args.matching_weights:
            return cls(args, trainer.student, None)
        names = ", ".join(f"{name}_weight" for name in args.matching_weights)
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or args.n_gpu > 1:
            raise ValueError(
                f"{names} goes with one GPU or DDP (torchrun, accelerate launch), and not with DeepSpeed, FSDP or "
                "several GPUs in one process: leave it out, or launch a process for each GPU"
            )
        matching = cls(args, trainer.student, source.model if isinstance(source, TeacherModel) else None, args.device)
        if isinstance(source, TeacherModel) and source.view is not None and set(args.matching_weights) != {"feature"}:
            processor = trainer._built.views.processors[source.view]
            matching.token_ids = token_ids(trainer.processing_class, processor, names).to(args.device)
            matching._view = source.view
        if matching.is_learned and trainer.optimizer is not None:
            raise ValueError(
                f"{names} learns projections, which an optimizer of your own does not hold: pass optimizer_cls_and_"
                "kwargs, or leave optimizers out"
            )
        matching.attach()
        return matching

    @property
    def is_learned(self) -> bool:
        """Tell whether there are projections to learn."""
        return bool(len(self.projections))

    # ---- What is compared ----

    def _find_relations(self, student: nn.Module, teacher: nn.Module) -> None:
        ours, theirs = layers_of(student), layers_of(teacher)
        wanted = self.args.relation_layer
        if not -len(theirs) <= wanted < len(theirs):
            raise ValueError(f"relation_layer is {wanted}, and the teacher has layers 0 to {len(theirs) - 1}")
        self._ours |= _named("relation", attention_points(student, len(ours) - 1))
        self._theirs |= _named("relation", attention_points(teacher, wanted % len(theirs)))
        config: Any = teacher.config
        self._num_heads = self.args.relation_heads or config.num_attention_heads
        widths = [width_of(model, -1) for model in (student, teacher)]
        if any(width % self._num_heads for width in widths):
            raise ValueError(
                f"relation_heads {self._num_heads} must divide the widths of student and teacher, {widths[0]} and "
                f"{widths[1]}: set relation_heads to a divisor of both"
            )

    def _find_layers(self, student: nn.Module, teacher: nn.Module) -> None:
        if is_of_stages(student) != is_of_stages(teacher):
            raise ValueError(
                f"hidden_weight compares layers with layers or stages with stages, not {family(student)} with "
                f"{family(teacher)}: take feature_weight"
            )
        if self.args.attention_weight and not all(_has_maps(model) for model in (student, teacher)):
            raise ValueError(
                f"attention_weight compares maps of convolutions, and {family(student)} and {family(teacher)} do not "
                "both have these: take relation_weight for transformers"
            )
        ours, theirs = layers_of(student), layers_of(teacher)
        self._pairs = layer_pairs(self.args.layer_map, len(ours), len(theirs))
        for i, (place, other) in enumerate(self._pairs):
            self._ours[f"layer {i}"], self._theirs[f"layer {i}"] = Point(ours[place]), Point(theirs[other])
            width, wanted = width_of(student, place), width_of(teacher, other)
            if self.args.hidden_weight and width != wanted:
                self.projections[f"hidden_{i}"] = nn.Linear(width, wanted)

    def _find_features(self, student: nn.Module, teacher: nn.Module) -> None:
        if is_token_level(student):
            raise ValueError("feature_weight compares one feature vector per row, and each token has one here")
        (self._ours["feature"], width), (self._theirs["feature"], wanted) = pooled_point(student), pooled_point(teacher)
        if self.args.feature_loss == "vkd":
            self.projections["feature"] = parametrizations.orthogonal(nn.Linear(width, wanted, bias=False))

    # ---- A step ----

    def attach(self) -> None:
        """Put the hooks into both models."""
        self._recorders = [Recorder(self._ours), Recorder(self._theirs)]

    def detach(self) -> None:
        """Take them out again."""
        for recorder in self._recorders:
            recorder.close()
        self._recorders = []

    @contextmanager
    def recording(self, *, is_training: bool) -> Iterator[Callable[..., dict[str, Tensor]]]:
        """Keep what the two models give in training at the points that are compared; yields `values`, or its like."""
        if not (is_training and self._recorders):
            yield lambda *_: {}
            return
        with ExitStack() as stack:
            for recorder in self._recorders:
                stack.enter_context(recorder.recording())
            yield self.values

    def values(self, batch: Mapping[str, Any], rows: Tensor | None) -> dict[str, Tensor]:
        """Return the value of each term for each row, `(batch,)`.

        Args:
            batch: of the student.
            rows: `(batch,)`, true for those that count; None: all.

        Raises:
            ValueError: the models do not give what can be compared.
        """
        for recorder in self._recorders:
            recorder.pause()
        kept, known = (recorder.kept for recorder in self._recorders)
        device = next(iter(kept.values())).device
        known = {name: tensor.to(device) for name, tensor in known.items()}
        self._check(batch, kept, known)
        given = batch.get("attention_mask")
        mask = given.bool() if isinstance(given, Tensor) and given.dim() == 2 else None
        found, args = {}, self.args
        with torch.autocast(device.type, enabled=False):
            if args.relation_weight:
                ours = attention_parts([kept[name] for name in self._ours if name.startswith("relation ")])
                theirs = attention_parts([known[name] for name in self._theirs if name.startswith("relation ")])
                found["relation"] = relation_loss(ours, theirs, mask, self._num_heads)
            if args.hidden_weight:
                found["hidden"] = torch.stack(
                    [hidden_loss(a, b, mask, args.hidden_loss) for a, b in self._hidden(kept, known)]
                ).mean(0)
            if args.attention_weight:
                pairs = [(kept[name], known[name]) for name in kept if name.startswith("layer")]
                found["attention"] = torch.stack([attention_transfer_loss(a, b) for a, b in pairs]).mean(0)
            if args.feature_weight:
                found["feature"] = self._features(kept["feature"], known["feature"], rows)
        return found

    def _hidden(self, kept: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(len(self._pairs)):
            ours, theirs = kept[f"layer {i}"].float(), known[f"layer {i}"]
            if f"hidden_{i}" in self.projections:
                projection, is_map = self.projections[f"hidden_{i}"], ours.dim() == 4
                ours = projection(ours.movedim(1, -1)).movedim(-1, 1) if is_map else projection(ours)
            yield ours, theirs

    def _features(self, ours: Tensor, theirs: Tensor, rows: Tensor | None) -> Tensor:
        ours, theirs = ours.flatten(1).float(), theirs.flatten(1)
        if self.args.feature_loss == "vkd":
            return feature_loss(self.projections["feature"](ours), theirs)
        if rows is None:
            return rkd_loss(ours, theirs)
        values = ours.new_zeros(len(ours))
        return values.masked_scatter(rows, rkd_loss(ours[rows], theirs[rows])) if bool(rows.any()) else values

    def _check(self, batch: Mapping[str, Any], kept: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> None:
        for name in self._ours:
            if name not in kept or (self._needs_gradient and torch.is_grad_enabled() and not kept[name].requires_grad):
                raise ValueError(
                    "a matching term would train nothing, because no gradient reaches what it compares: set "
                    "activation_checkpointing_kwargs={'use_reentrant': False}, or train the layers that it compares"
                )
        pairs = [(kept[name].shape, known[name].shape) for name in {*kept} & {*known} - {"feature"}]
        shapes = {(a, b) for a, b in pairs if len(a) != len(b) or (len(a) == 3 and a[1] != b[1])}
        if shapes or (self.token_ids is not None and not self._are_same_tokens(batch)):
            raise ValueError(
                "hidden_weight and relation_weight compare token with token, and student and teacher cut these rows "
                f"into others ({', '.join(f'{tuple(a)} and {tuple(b)}' for a, b in shapes) or 'as many'}): take "
                "feature_weight, or tokens that both have"
            )

    def _are_same_tokens(self, batch: Mapping[str, Any]) -> bool:
        theirs, mask = batch[TEACHER_INPUTS][self._view]["input_ids"], batch["attention_mask"].bool()
        assert self.token_ids is not None
        return bool((self.token_ids[batch["input_ids"]] == theirs)[mask].all())

    # ---- The projections ----

    def join(self, optimizer: Any) -> None:
        """Add the projections to an optimizer, once."""
        wanted = list(self.projections.parameters())
        there = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if wanted and id(wanted[0]) not in there:
            optimizer.add_param_group({"params": wanted, "weight_decay": self.args.weight_decay})

    def average_gradients(self, accelerator: Any) -> None:
        """Do for the projections what DDP does for the student, at the end of an accumulated batch."""
        if accelerator.num_processes > 1 and accelerator.sync_gradients:
            for parameter in self.projections.parameters():
                if parameter.grad is not None:
                    parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")

    def save(self, folder: str | Path) -> None:
        """Write the projections, if there are any, beside a checkpoint's weights."""
        if not self.is_learned or not self.args.should_save:
            return
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.projections.state_dict().items()}
        save_file(weights, Path(folder) / PROJECTIONS_FILE)

    def load(self, folder: str | Path) -> None:
        """Read the projections, if there are any, of a checkpoint.

        Raises:
            ValueError: it has none, or of other models.
        """
        if not self.is_learned:
            return
        file = Path(folder) / PROJECTIONS_FILE
        try:
            self.projections.load_state_dict(load_file(file, device="cpu"))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint {folder} has no projections for these matching terms ({PROJECTIONS_FILE}): resume "
                "with the settings that it was made with, or start anew"
            ) from error


def _named(term: str, points: Mapping[str, Point]) -> dict[str, Point]:
    return {f"{term} {name}": point for name, point in points.items()}


def _has_maps(model: nn.Module) -> bool:
    return is_of_stages(model) and "swin" not in family(model)
