"""Do specialists help a generalist, and a student that is distilled from both?

The experiment of section 5 of "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531) in small: a generalist
is trained, its confusable classes are clustered, a specialist for each cluster starts from its weights and is shown
half rows of its own classes and half others, and equation 5 combines them. The paper leaves open whether the
specialists can be distilled back into a single net of the generalist's size; the students here are of that size. Prints
the test error, mean and standard deviation over the seeds, after the last epoch. The generalist that is trained on for
as many steps as all specialists together says what they would have to beat.

Run it with `python benchmarks/specialists.py` for scikit-learn's digits, or `--data FOLDER` for a folder with
train.parquet and test.parquet of `image` and `label`, such as MNIST's.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from hf_distill import MLPConfig, MLPForImageClassification, label_loss, soft_target_loss
from hf_distill.data.loading import load_rows
from hf_distill.data.targets import ProblemType
from hf_distill.teachers.specialists import (
    combine_specialists,
    confusable_classes,
    corrected_dustbin,
    specialist_labels,
)

HIDDEN_SIZE = 32
BATCH_SIZE = 128
LEARNING_RATE = 2e-3
NUM_GROUPS = 3
TEMPERATURE, ALPHA = 4.0, 0.1
SINGLE: ProblemType = "single_label_classification"
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Data:
    """Images `(rows, 1, size, size)` and labels `(rows,)`."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def num_labels(self) -> int:
        """The number of classes."""
        return int(self.train_labels.max()) + 1


def load(folder: Path | None) -> Data:
    """Read both splits, pixels from 0 to 1."""
    rows = load_rows(dataset="sklearn:digits") if folder is None else load_rows(path=str(folder))
    parts = []
    for split in ("train", "test"):
        images = np.stack([np.asarray(image.convert("L")) for image in rows[split]["image"]])
        parts += [torch.from_numpy(images)[:, None] / 255, torch.tensor(list(rows[split]["label"]))]
    return Data(*parts)


def network(data: Data, num_labels: int) -> MLPForImageClassification:
    """Build the net that generalist, specialists and students are."""
    size = data.train_images.shape[-1]
    return MLPForImageClassification(MLPConfig(image_size=size, hidden_sizes=[HIDDEN_SIZE], num_labels=num_labels))


def train(model: MLPForImageClassification, images: Tensor, epochs: list[Tensor], loss: Loss) -> int:
    """Train on the rows listed for each epoch, by Adam with a linear decay; return the number of steps.

    `loss` gets the logits and the rows' numbers.
    """
    batches = [batch for rows in epochs for batch in rows.split(BATCH_SIZE)]
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        loss(model(images[batch]).logits, batch).backward()
        optimizer.step()
        schedule.step()
    return len(batches)


def on_labels(labels: Tensor) -> Loss:
    """Return the plain loss of training on labels."""
    return lambda logits, batch: label_loss(logits, labels[batch], SINGLE).mean()


def predict(model: MLPForImageClassification, images: Tensor) -> Tensor:
    """Return the logits."""
    with torch.no_grad():
        return torch.cat([model(part).logits for part in images.split(4096)])


def shuffled(count: int, num_epochs: int) -> list[Tensor]:
    """List all rows in a new order for each epoch."""
    return [torch.randperm(count) for _ in range(num_epochs)]


def half_own(own: Tensor, num_epochs: int) -> Iterator[Tensor]:
    """List for each epoch all rows of a specialist's classes and as many others, drawn at random."""
    inside, outside = own.nonzero().flatten(), (~own).nonzero().flatten()
    for _ in range(num_epochs):
        rows = torch.cat([inside, outside[torch.randint(len(outside), (len(inside),))]])
        yield rows[torch.randperm(len(rows))]


def specialist_from(generalist: MLPForImageClassification, data: Data, classes: list[int]) -> MLPForImageClassification:
    """Copy the generalist, with a head for some of its classes and, in the mean of the others, the dustbin."""
    model = network(data, len(classes) + 1)
    model.layers.load_state_dict(generalist.layers.state_dict())
    others = [index for index in range(data.num_labels) if index not in classes]
    with torch.no_grad():
        for name in ("weight", "bias"):
            old, new = getattr(generalist.classifier, name), getattr(model.classifier, name)
            new.copy_(torch.cat([old[classes], old[others].mean(0, keepdim=True)]))
    return model


def experiment(data: Data, seed: int, num_epochs: int, num_specialist_epochs: int) -> dict[str, float]:
    """Run all of it once; return the test error of each model in per cent."""
    torch.manual_seed(seed)
    num_rows, labels = len(data.train_labels), data.train_labels
    generalist = network(data, data.num_labels)
    train(generalist, data.train_images, shuffled(num_rows, num_epochs), on_labels(labels))
    own_train, own_test = (predict(generalist, images) for images in (data.train_images, data.test_images))
    groups = confusable_classes((own_train / TEMPERATURE).softmax(-1), NUM_GROUPS, seed=seed)
    print(f"seed {seed}: specialists for {', '.join(map(str, groups))}")
    num_steps = 0
    train_logits: list[Tensor] = []
    test_logits: list[Tensor] = []
    for classes in groups:
        model = specialist_from(generalist, data, classes)
        own_labels = torch.tensor(specialist_labels(labels.tolist(), classes))
        own = own_labels < len(classes)
        epochs = list(half_own(own, num_specialist_epochs))
        num_steps += train(model, data.train_images, epochs, on_labels(own_labels))
        oversampling = float((~own).sum() / own.sum())
        train_logits.append(corrected_dustbin(predict(model, data.train_images), oversampling))
        test_logits.append(corrected_dustbin(predict(model, data.test_images), oversampling))

    def error(logits: Tensor) -> float:
        return 100 * float((logits.argmax(-1) != data.test_labels).float().mean())

    both = combine_specialists(own_test, test_logits, groups, 1.0)
    errors = {"generalist": error(own_test), "generalist and specialists": error(both)}

    longer = network(data, data.num_labels)
    longer.load_state_dict(generalist.state_dict())
    rows = torch.cat(shuffled(num_rows, 1 + num_steps * BATCH_SIZE // num_rows))[: num_steps * BATCH_SIZE]
    train(longer, data.train_images, [rows], on_labels(labels))
    errors["generalist, trained on for the specialists' steps"] = error(predict(longer, data.test_images))

    teachers: dict[str, Tensor | None] = {
        "labels alone": None,
        "the generalist": own_train,
        "generalist and specialists": combine_specialists(own_train, train_logits, groups, TEMPERATURE),
    }
    for name, targets in teachers.items():
        torch.manual_seed(seed + 1000)
        student = network(data, data.num_labels)
        loss = on_labels(labels) if targets is None else distillation(labels, targets)
        train(student, data.train_images, shuffled(num_rows, num_epochs), loss)
        errors[f"student of {name}"] = error(predict(student, data.test_images))
    return errors


def distillation(labels: Tensor, targets: Tensor) -> Loss:
    """Return the loss of a student."""

    def loss(logits: Tensor, batch: Tensor) -> Tensor:
        hard = label_loss(logits, labels[batch], SINGLE).mean()
        return ALPHA * hard + (1 - ALPHA) * soft_target_loss(logits, targets[batch], TEMPERATURE, SINGLE).mean()

    return loss


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.parquet and test.parquet of image and label")
    parser.add_argument("--seeds", type=int, default=5, help="how many times it is run (5)")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    data = load(arguments.data)
    num_epochs, num_specialist_epochs = (60, 30) if arguments.data is None else (8, 4)
    print(
        f"{len(data.train_labels)} training and {len(data.test_labels)} test rows; {HIDDEN_SIZE} hidden units, "
        f"{num_epochs} epochs, specialists {num_specialist_epochs}; students with temperature {TEMPERATURE:g} and "
        f"alpha {ALPHA}"
    )
    runs = [experiment(data, seed, num_epochs, num_specialist_epochs) for seed in range(arguments.seeds)]
    print(f"\n| model | test error, %, mean of {len(runs)} seeds | standard deviation |\n| --- | ---: | ---: |")
    for name in runs[0]:
        values = [run[name] for run in runs]
        deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        print(f"| {name} | {statistics.mean(values):.2f} | {deviation} |")


if __name__ == "__main__":
    main()
