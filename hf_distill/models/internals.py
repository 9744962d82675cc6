"""The inside of a classifier: its layers or stages, the projections of its attention, and what its last layer reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

ATTENTION_FAMILIES = (
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "deberta-v2", "modernbert"),
    *("vit", "deit", "dinov2", "beit"),
)
"""Model types whose attention has been tested to be read by its projections."""

_PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("Wqkv",),  # queries, keys and values behind one another
)


class Point(NamedTuple):
    """A place in a model whose activations are read.

    Attributes:
        module: the module.
        reads_input: what it gets, and not what it gives.
        is_first: of several calls in one forward pass the first counts, and not the last.
    """

    module: nn.Module
    reads_input: bool = False
    is_first: bool = True


class Recorder:
    """Keeps activations of a model's forward passes, by name, while it is told to."""

    def __init__(self, points: Mapping[str, Point]) -> None:
        self.kept: dict[str, Tensor] = {}
        self._is_on = False
        self._handles = []
        for name, point in points.items():
            register: Any = point.module.register_forward_pre_hook if point.reads_input else None
            register = register or point.module.register_forward_hook
            self._handles.append(register(self._hook(name, point)))

    def _hook(self, name: str, point: Point) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, outputs: Any = None) -> None:
            if self._is_on and not (point.is_first and name in self.kept):
                value = inputs if point.reads_input else outputs
                self.kept[name] = value[0] if isinstance(value, tuple) else value

        return keep

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what forward passes give from here on; it is forgotten at the end."""
        self.kept, self._is_on = {}, True
        try:
            yield
        finally:
            self.kept, self._is_on = {}, False

    def pause(self) -> None:
        """Keep no more, as in a backward pass that runs parts of the model again."""
        self._is_on = False

    def close(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()


def family(model: nn.Module) -> str:
    """Return the model's type, or the name of its class."""
    return str(getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__)


def is_of_stages(model: nn.Module) -> bool:
    """Tell whether a model is a backbone of stages, each with its own width."""
    return hasattr(getattr(model, "config", None), "depths")


def stacks_of(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists, by name, that have as many modules as the model has layers or stages; the outermost first."""
    config: Any = getattr(model, "config", None)
    count = len(config.depths) if is_of_stages(model) else int(getattr(config, "num_hidden_layers", None) or 0)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count > 0
    }


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Return the encoder's layers, or the stages of a backbone, from the first on.

    Raises:
        ValueError: the model has no such list, or several.
    """
    found = list(stacks_of(model).values())
    # A stage may have as many layers as the backbone has stages: the outermost list comes first.
    if not found or (len(found) > 1 and not is_of_stages(model)):
        raise ValueError(
            f"{family(model)} ({type(model).__name__}) has {len(found)} stacks of layers and not one: match its pooled "
            "features (feature_weight), or its logits alone"
        )
    return found[0]


def width_of(model: nn.Module, layer: int) -> int:
    """Return the width of what a layer, or the channels of what a stage, gives."""
    config: Any = model.config
    if not is_of_stages(model):
        return int(config.hidden_size)
    if isinstance(getattr(config, "hidden_sizes", None), list):
        return int(config.hidden_sizes[layer])
    return int(config.embed_dim * 2 ** min(layer + 1, len(config.depths) - 1))  # Swin merges patches at a stage's end


def attention_points(model: nn.Module, layer: int) -> dict[str, Point]:
    """Return where queries, keys and values of a layer's attention are given: three points, or one for all.

    Raises:
        ValueError: the model's family is not one of `ATTENTION_FAMILIES`.
    """
    if family(model) not in ATTENTION_FAMILIES:
        raise ValueError(
            f"relation_weight knows the attention of {', '.join(ATTENTION_FAMILIES)}; {family(model)} is none of "
            "these: take hidden_weight or feature_weight"
        )
    for module in layers_of(model)[layer].modules():
        for names in _PROJECTIONS:
            if all(hasattr(module, name) for name in names):
                return {name: Point(getattr(module, name)) for name in names}
    raise ValueError(f"no attention projections are found in layer {layer} of {type(model).__name__}")


def attention_parts(kept: Sequence[Tensor]) -> list[Tensor]:
    """Return queries, keys and values, `(batch, tokens, width)` each, of what was kept at `attention_points`."""
    return list(kept[0].chunk(3, dim=-1) if len(kept) == 1 else kept)


def pooled_point(model: nn.Module) -> tuple[Point, int]:
    """Return where the features that the last layer reads are, before their dropout, and their width.

    Raises:
        ValueError: the model has no linear layer that gives its logits.
    """
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    parents = {name: module for name, module in model.named_modules()}
    heads = [
        (name, module)
        for name, module in parents.items()
        if isinstance(module, nn.Linear) and module.out_features == num_labels
    ]
    if not heads:
        raise ValueError(
            f"{type(model).__name__} has no linear layer with {num_labels} outputs, whose input the pooled features "
            "would be: leave feature_weight out"
        )
    name, head = heads[-1]
    dropouts = [child for child in parents[name.rpartition(".")[0]].children() if isinstance(child, nn.Dropout)]
    # A dropout that is run before several layers of the head is run before the last one at the end.
    return Point(dropouts[-1] if dropouts else head, reads_input=True, is_first=False), head.in_features
