"""An image processor for models of grey images, which makes any image grey itself.

Transformers' image pipeline hands on every image in colour, which a model of one channel cannot take.

Its code is not saved beside the weights, as the model's is: the pipeline would then ask whether it may run it, also
where hf_distill is installed. Whoever has not can use ViT's own processor for images that are grey.
"""

from typing import Any

from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_distill.models.pixels import WHITE, plain_image


class GreyImageProcessor(ViTImageProcessorPil):
    """ViT's image processor, for images of one channel; `image_mean` and `image_std` have one number each.

    Transparent images are composed on `background`, as in training.
    """

    image_mean = [0.5]
    image_std = [0.5]
    background = WHITE

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        """Make a PIL image grey, and leave to the parent what is an array already."""
        grey = plain_image(image, self.background).convert("L") if isinstance(image, Image.Image) else image
        return super().process_image(grey, *args, **kwargs)
