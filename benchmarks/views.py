"""How many kept views of each row make a student of augmented images as good as the teacher beside it does?

Images have CIFAR's shape: digits of MNIST in bright colours on dark backgrounds, 32 x 32 pixels, with random crops
(4 pixels of padding) and flips. A ResNet-20 teaches a ResNet-8, online and with N kept views of each row, of which
epoch e replays view e modulo N. Prints the accuracy on test images after the last epoch (mean and standard deviation
over the seeds of the student), the seconds that all of it took, and what was kept.

    python benchmarks/views.py --data MNIST     # a folder with train.parquet and test.parquet; unset: from the Hub
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)
from transformers.utils import logging

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.data.images import ImageRows

SIZE, NUM_CLASSES = 32, 10


def coloured(rows: datasets.Dataset, seed: int) -> datasets.Dataset:
    """Paint grey digits in bright colours on dark backgrounds, 32 x 32 pixels."""
    random = np.random.default_rng(seed)
    images = []
    for row in rows:
        digit = np.pad(np.asarray(row["image"].convert("L"), np.float32) / 255, 2)[..., None]
        coarse = Image.fromarray(random.integers(0, 128, (4, 4, 3), dtype=np.uint8))
        background = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
        colour = random.integers(64, 256, 3).astype(np.float32)
        noise = random.normal(0, 16, (SIZE, SIZE, 3))
        mixed = digit * colour + (1 - digit) * background + noise
        images.append(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)))
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": images, "labels": list(rows["label"])}, features=features)


def resnet(blocks: int, width: int) -> PreTrainedModel:
    """Build one of CIFAR's ResNets, with 6 * blocks + 2 layers."""
    config = ResNetConfig(
        num_channels=3,
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[blocks] * 3,
        layer_type="basic",
        num_labels=NUM_CLASSES,
    )
    return ResNetForImageClassification(config)


class Bench:
    """Training on augmented images.

    Args:
        arguments: those of the command line.
        folder: for what the trainers write.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        named: Any = arguments.data
        files = {split: str(Path(named) / f"{split}.parquet") for split in ("train", "test")}
        source: Any = {"path": "parquet", "data_files": files} if Path(named).is_dir() else {"path": named}
        self.train_rows = coloured(self._some(source, "train", arguments.rows), seed=0)
        self.test_rows = coloured(self._some(source, "test", arguments.test_rows), seed=1)
        self.processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
        self.test_images = ImageRows(self.test_rows, "image", self.processor)

    def _some(self, source: dict[str, Any], split: str, count: int) -> datasets.Dataset:
        rows = datasets.load_dataset(**source, split=split).shuffle(seed=0)
        return rows.select(range(min(count, len(rows))))

    def train(
        self, model: PreTrainedModel, teacher: PreTrainedModel | None, seed: int, epochs: int, **more: Any
    ) -> tuple[float, float]:
        """Train a model; return its accuracy on the test images and the seconds of all of it."""
        args = DistillationConfig(
            str(self.folder / "out"),
            alpha=1.0 if teacher is None else 0.1,
            temperature=2.0,
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=500,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            seed=seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **more,
        )
        images = ImageRows(self.train_rows, "image", self.processor, crop_padding=4, horizontal_flip=True, seed=seed)
        trainer = DistillationTrainer(model, teacher, args, train_dataset=images, processing_class=self.processor)
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        found = trainer.predict(self.test_images)
        return float((found.predictions.argmax(-1) == found.label_ids).mean()), seconds

    def student(self, teacher: PreTrainedModel | None, seed: int, views: int | None) -> tuple[float, float, float]:
        """Train a student; return its accuracy, the seconds of all of it and the KiB that were kept."""
        set_seed(seed)
        kept = self.folder / f"kept-{views}-{seed}"
        more: dict[str, Any] = {}
        if views is not None:
            more = {
                "precompute_teacher_logits": True,
                "teacher_logits_views": views,
                "teacher_logits_dir": str(kept),
            }
        accuracy, seconds = self.train(resnet(1, 16), teacher, seed, self.arguments.epochs, **more)
        return accuracy, seconds, sum(file.stat().st_size for file in kept.glob("*.safetensors")) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ylecun/mnist", help="of the Hub, or a folder with parquet files")
    parser.add_argument("--rows", type=int, default=4000, help="training images")
    parser.add_argument("--test-rows", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=16, help="of the student")
    parser.add_argument("--teacher-epochs", type=int, default=40)
    parser.add_argument("--views", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--threads", type=int, help="of torch; unset: as many as it takes")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", UserWarning)  # that test images are judged by their labels alone
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        set_seed(100)
        teacher = resnet(3, 16)
        accuracy, seconds = bench.train(teacher, None, 100, arguments.teacher_epochs)
        print(f"teacher: accuracy {accuracy:.4f} in {seconds:.0f} s", flush=True)
        print(f"{'':12} {'accuracy':>20} {'seconds':>9} {'KiB':>8}")
        cases: list[tuple[str, PreTrainedModel | None, int | None]] = [
            ("labels alone", None, None),
            ("online", teacher, None),
            *((f"{views} views" if views > 1 else "1 view", teacher, views) for views in arguments.views),
        ]
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name, _, _ in cases}
        for seed in range(arguments.seeds):
            for name, given, views in cases:
                found[name].append(bench.student(given, seed, views))
        for name, runs in found.items():
            accuracies, times, sizes = zip(*runs, strict=True)
            deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            print(
                f"{name:12} {statistics.mean(accuracies):9.4f} +- {deviation:.4f} {statistics.median(times):9.1f} "
                f"{sizes[0]:8.0f}"
            )


if __name__ == "__main__":
    main()
