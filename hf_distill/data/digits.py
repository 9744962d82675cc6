"""scikit-learn's digits as a data set: 1,797 images of 8 x 8 pixels."""

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image


def sklearn_digits() -> DatasetDict:
    """Return 1,347 images to train on and 450 to test on, of each digit as many in both."""
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    train, test = train_test_split(np.arange(len(pixels)), test_size=450, random_state=0, stratify=digits.target)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [PILImage.fromarray(pixels[row]) for row in rows], "label": digits.target[rows].tolist()},
                features=features,
            )
            for split, rows in (("train", train), ("test", test))
        }
    )
