"""What results depend on beside the recipe: versions and hardware."""

import os
import platform

import accelerate
import datasets
import torch
import transformers

import hf_distill


def environment() -> dict[str, str]:
    """Return the versions and the hardware that results depend on."""
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "hf_distill": hf_distill.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "datasets": datasets.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
        "hardware": hardware,
    }
