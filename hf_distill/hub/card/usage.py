"""The part of a card that says how the student is used: snippets that run as they stand."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

_AUTO_MODEL = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
}
_PROCESSOR = {"image-classification": "AutoImageProcessor"}  # of the others AutoTokenizer
_OWN_ARCHITECTURE = "hf_distill_mlp"


class Known(Protocol):
    """What the snippets depend on; the results of a run have it.

    Attributes:
        task: one of the keys of `_AUTO_MODEL`.
        data: of those that `Results.data` has `label_names`, `inputs`, `num_channels` and `unusual_images`, and beside
            them `problem_type` (None: a single label) and `has_processor` (True).
        lineage: of those that `Results.lineage` has `student`.
    """

    @property
    def task(self) -> str: ...  # noqa: D102 - see above

    @property
    def data(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def lineage(self) -> Mapping[str, Any]: ...  # noqa: D102


def usage(recipe: Mapping[str, Any], results: Known, name: str) -> str:
    """Return the snippets for a pipeline and for the model itself, as Markdown."""
    student = _Student(recipe, results, name)
    parts = [student.reading] if student.reads_itself and student.has_processor else []
    if student.adapter_base is not None:
        return "\n\n".join([*parts, *_of_adapter(student)])
    if student.is_own_architecture:
        processor = " For the images take `ViTImageProcessorPil` then, and grey ones." if student.is_grey else ""
        parts.append(
            f"The architecture `{_OWN_ARCHITECTURE}` is not one of Transformers: `import hf_distill.models` registers "
            "it. Without hf_distill, leave that line out and pass `trust_remote_code=True` to `from_pretrained`: the "
            f"code lies beside the weights.{processor}"
        )
    if not student.has_processor:
        parts.append(student.without_processor)
    elif student.is_grey and not student.is_own_architecture:
        parts.append(
            "It takes grey images, and Transformers' pipeline makes every image a colour one: use the model itself."
        )
    else:
        parts.append(_python(*student.registering, *_pipeline(student)))
    return "\n\n".join([*parts, _python(*student.registering, *_by_itself(student))])


class _Student:
    """What the snippets depend on."""

    def __init__(self, recipe: Mapping[str, Any], results: Known, name: str) -> None:
        section, origin = recipe["student"], results.lineage.get("student") or {}
        config = section.get("config") or {}
        self.task = results.task
        self.name = name
        self.auto_model = _AUTO_MODEL[results.task]
        self.processor = _PROCESSOR.get(results.task, "AutoTokenizer")
        self.is_image = results.task == "image-classification"
        self.is_grey = self.is_image and results.data.get("num_channels", config.get("num_channels", 3)) == 1
        self.is_own_architecture = origin.get("model_type", config.get("model_type")) == _OWN_ARCHITECTURE
        self.registering = ("import hf_distill.models  # registers hf_distill_mlp",) if self.is_own_architecture else ()
        self.is_pair = recipe["data"].get("text_pair_column") is not None or len(results.data.get("inputs", [])) == 2
        self.max_length = recipe["data"].get("max_length")
        self.remote_code = ", trust_remote_code=True" if _has_code(recipe) else ""
        self.label_names = results.data.get("label_names", [])
        self.adapter_base = origin.get("model") or "the-base-model" if origin.get("adapter") else None
        self.base_revision = origin.get("revision")
        self.problem_type = results.data.get("problem_type")
        self.has_processor = results.data.get("has_processor", True)
        self.unusual_images = results.data.get("unusual_images") or {}
        self.background = recipe["data"].get("background", "white")

    @property
    def without_processor(self) -> str:
        """Return what is said of a student beside which no processor lies."""
        what = "image processor" if self.is_image else "tokenizer"
        return f"No {what} was saved with it: make its inputs by the one that its training rows were made by."

    @property
    def reads_itself(self) -> bool:
        """Tell whether the snippets read an image as the training did, which PIL and the pipeline alone do not."""
        return self.is_image and bool(self.unusual_images)

    @property
    def reading(self) -> str:
        """Return what is said of images that the training read otherwise than PIL and the pipeline do."""
        ways = {
            "16-bit": "of 16 bits (scaled to 8)",
            "float": "of floats from 0 to 1 (scaled to 8 bits)",
            "transparent": f"with transparent pixels (composed on {self.background})",
            "rotated": "turned by their Exif data",
        }
        told = ", ".join(
            f"{self.unusual_images[kind]:,} {way}" for kind, way in ways.items() if kind in self.unusual_images
        )
        return f"Among the images of its data were {told}. Read yours in the same way, as here."

    @property
    def imports(self) -> list[str]:
        """Return the imports that reading an image takes, without torch's."""
        if not self.reads_itself:
            return ["from PIL import Image"] if self.is_image else []
        numpy = ["import numpy as np"] if self.unusual_images.keys() & {"16-bit", "float"} else []
        return [*numpy, "from PIL import Image" + (", ImageOps" if "rotated" in self.unusual_images else "")]

    @property
    def image(self) -> list[str]:
        """Return the lines that read an image as the training did; see `hf_distill.models.pixels.plain_image`."""
        lines = ['image = Image.open("image.png")']
        if "rotated" in self.unusual_images:
            lines = ['image = ImageOps.exif_transpose(Image.open("image.png"))']
        for kind, is_so, scaled in (
            ("16-bit", 'image.mode.startswith("I")', "/ 257"),
            ("float", 'image.mode == "F"', "* 255"),
        ):
            if kind in self.unusual_images:
                lines += [
                    f"if {is_so}:",
                    f'    image = Image.fromarray((np.asarray(image) {scaled}).round().astype("uint8"))',
                ]
        if "transparent" in self.unusual_images:
            lines += [
                "if image.has_transparency_data:",
                f'    ground = Image.new("RGBA", image.size, "{self.background}")',
                '    image = Image.alpha_composite(ground, image.convert("RGBA"))',
            ]
        return [*lines, f'image = image.convert("{self.image_mode}")']

    @property
    def image_mode(self) -> str:
        """Return PIL's mode of the images that the model takes."""
        return "L" if self.is_grey else "RGB"

    @property
    def example(self) -> str:
        """Return what the pipeline is called with."""
        if self.is_image:
            return "image" if self.reads_itself else '"image.png"'
        if self.is_pair:
            return '{"text": "The first text.", "text_pair": "The second one."}'
        return '"A text to classify."'

    @property
    def inputs(self) -> list[str]:
        """Return the lines that make the model's inputs."""
        if self.reads_itself:
            return [*self.image, 'inputs = processor(images=image, return_tensors="pt")']
        if self.is_image:
            image = f'Image.open("image.png").convert("{self.image_mode}")'
            return [f'inputs = processor(images={image}, return_tensors="pt")']
        texts = '"The first text.", "The second one."' if self.is_pair else '"A text to classify."'
        cut = f", truncation=True, max_length={self.max_length}" if self.max_length else ""
        return [f'inputs = tokenizer({texts}{cut}, return_tensors="pt")']

    @property
    def prediction(self) -> list[str]:
        """Return the lines that run the model and print its prediction."""
        asked = ["with torch.no_grad():", "    logits = model(**inputs).logits"]
        if self.task == "token-classification":
            return [
                *asked,
                "print([model.config.id2label[label] for label in logits[0].argmax(-1).tolist()])  # by token",
            ]
        if self.problem_type == "multi_label_classification":
            return [
                *asked,
                "print([model.config.id2label[label] for label in (logits[0] > 0).nonzero()[:, 0].tolist()])",
            ]
        if self.problem_type == "regression":
            return [*asked, "print(logits[0].tolist())"]
        return [*asked, "print(model.config.id2label[logits.argmax(-1).item()])"]


def _has_code(recipe: Mapping[str, Any]) -> bool:
    """Tell whether code of others lies beside a student's weights: that of its model, or of its processor."""
    teacher, student = recipe["teacher"], recipe["student"]
    line = [*(teacher if isinstance(teacher, list) else [teacher])[:1], *recipe.get("stages", []), student]
    while line[-1].get("from_teacher"):
        line.pop()
    named = student if student.get("processor") else recipe["data"]
    return bool(line[-1].get("trust_remote_code") or named.get("processor_trust_remote_code"))


def _pipeline(student: _Student) -> list[str]:
    whole_words = ', aggregation_strategy="first"' if student.task == "token-classification" else ""
    return [
        *(student.imports if student.reads_itself else []),
        "from transformers import pipeline",
        "",
        *(student.image if student.reads_itself else []),
        f'classify = pipeline("{student.task}", model="{student.name}"{student.remote_code}{whole_words})',
        f"print(classify({student.example}))",
    ]


def _by_itself(student: _Student) -> list[str]:
    if not student.has_processor:
        return [
            f"from transformers import {student.auto_model}",
            "",
            f'model = {student.auto_model}.from_pretrained("{student.name}"{student.remote_code})',
        ]
    processor = "processor" if student.is_image else "tokenizer"
    return [
        *student.imports[:-1],
        "import torch",
        *student.imports[-1:],
        f"from transformers import {', '.join(sorted((student.auto_model, student.processor)))}",
        "",
        f'{processor} = {student.processor}.from_pretrained("{student.name}"{student.remote_code})',
        f'model = {student.auto_model}.from_pretrained("{student.name}"{student.remote_code})',
        *student.inputs,
        *student.prediction,
    ]


def _of_adapter(student: _Student) -> list[str]:
    """Return the snippets of a student that is an adapter: the base model is made with its labels, then adapted."""
    processor = "processor" if student.is_image else "tokenizer"
    pinned = [f'    revision="{student.base_revision}",'] if student.base_revision else []
    kind_of_problem = [f'    problem_type="{student.problem_type}",'] if student.problem_type else []
    models = [
        f"labels = {_quoted(student.label_names)}",
        f"base = {student.auto_model}.from_pretrained(",
        f'    "{student.adapter_base}",',
        *pinned,
        *kind_of_problem,
        "    id2label=dict(enumerate(labels)),",
        "    label2id={label: index for index, label in enumerate(labels)},",
        "    ignore_mismatched_sizes=True,  # the head comes with the adapter",
        ")",
        f'model = PeftModel.from_pretrained(base, "{student.name}").eval()',
    ]
    words = f"This is an adapter (PEFT) of `{student.adapter_base}`: both are loaded."
    if not student.has_processor:
        imports = ["from peft import PeftModel", f"from transformers import {student.auto_model}", ""]
        return [words, student.without_processor, _python(*imports, *models)]
    loading = [
        *student.imports[:-1],
        "import torch",
        "from peft import PeftModel",
        *student.imports[-1:],
        f"from transformers import {', '.join(sorted((student.auto_model, student.processor)))}, pipeline",
        "",
        *models,
        f'{processor} = {student.processor}.from_pretrained("{student.name}")',
        *student.inputs,
        *student.prediction,
    ]
    if student.is_grey:
        return [words, _python(*(line.removesuffix(", pipeline") for line in loading))]
    kind = "image_processor" if student.is_image else "tokenizer"
    whole_words = ', aggregation_strategy="first"' if student.task == "token-classification" else ""
    pipe = [
        "",
        f'classify = pipeline("{student.task}", model=model, {kind}={processor}{whole_words})',
        f"print(classify({student.example}))",
    ]
    return [words, _python(*loading, *pipe)]


def _quoted(names: list[str]) -> str:
    return json.dumps(names, ensure_ascii=False)


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
