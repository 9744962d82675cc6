"""Architectures that Transformers lacks, registered with its Auto classes when this package is imported."""

from transformers import AutoImageProcessor

from hf_distill.models.grey import GreyImageProcessor
from hf_distill.models.mlp import MLPConfig, MLPForImageClassification

AutoImageProcessor.register(MLPConfig, image_processor_classes={"pil": GreyImageProcessor})

__all__ = ["GreyImageProcessor", "MLPConfig", "MLPForImageClassification"]
