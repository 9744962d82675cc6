"""Architectures that Transformers lacks, registered with its Auto classes when this package is imported."""

from hf_distill.models.mlp import MLPConfig, MLPForImageClassification

__all__ = ["MLPConfig", "MLPForImageClassification"]
