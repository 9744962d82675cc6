"""A fully connected image classifier, as in the paper that distillation comes from.

This file imports nothing but torch and transformers, because `save_pretrained` copies it beside the weights: a
stranger loads the folder with `AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)`, and
whoever has hf_distill installed imports it and needs no remote code.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class MLPConfig(PreTrainedConfig):
    """Shape of a fully connected image classifier.

    Args:
        image_size: height and width of the images, in pixels.
        num_channels: channels of the images.
        hidden_sizes: units of each hidden layer.
        input_dropout: probability in [0, 1) that a pixel is dropped in training.
        hidden_dropout: the same for a hidden unit.
        initializer_range: standard deviation of the weights at the start; None is torch's own start.
    """

    model_type = "hf_distill_mlp"

    def __init__(
        self,
        image_size: int = 28,
        num_channels: int = 1,
        hidden_sizes: list[int] | tuple[int, ...] = (800, 800),
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        initializer_range: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.num_channels = num_channels
        self.hidden_sizes = list(hidden_sizes)
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


class MLPForImageClassification(PreTrainedModel):
    """ReLU layers with dropout, and a linear head.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 3.
    """

    config_class = MLPConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(config.input_dropout)]
        size = config.num_channels * config.image_size**2
        for hidden_size in config.hidden_sizes:
            layers += [nn.Linear(size, hidden_size), nn.ReLU(), nn.Dropout(config.hidden_dropout)]
            size = hidden_size
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and self.config.initializer_range is None:
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """Classify `pixel_values` of shape `(batch, num_channels, image_size, image_size)`."""
        logits = self.classifier(self.layers(pixel_values))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(MLPConfig.model_type, MLPConfig)
AutoModelForImageClassification.register(MLPConfig, MLPForImageClassification)
MLPConfig.register_for_auto_class()
MLPForImageClassification.register_for_auto_class("AutoModelForImageClassification")
