"""What a recipe may say: its sections, their keys and what each key takes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model, field_validator, model_validator

from hf_distill.runs.recipe.validation import NAME, ONE, SETTINGS, SEVERAL

SOFT_TARGETS = "_teacher_logits"
"""The folder of soft targets in a run's output folder, unless the recipe names another."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


Share = Annotated[float, Field(ge=0, le=1, strict=False)]
OF_IMAGES, OF_TEXTS = ("crop_padding", "horizontal_flip"), ("copies", "mask", "swap", "drop")  # fields of Augment


class Augment(_Section):
    """Random changes to training images, or changed copies of training texts, which the teacher alone labels."""

    crop_padding: Annotated[int, Field(ge=0)] = Field(
        0, description="Pixels of padding on each side before a random crop to the former size."
    )
    horizontal_flip: bool = Field(False, description="Mirror half of the images.")
    copies: Annotated[int, Field(ge=0)] = Field(0, description="Changed copies of each text, as rows without labels.")
    mask: Share = Field(0.0, description="Probability that a word of a copy becomes the mask token.")
    swap: Share = Field(0.0, description="Probability that a word of a copy changes places with the next one.")
    drop: Share = Field(0.0, description="Probability that a word of a copy is left out.")


class Unlabelled(_Section):
    """Rows that are added to the training rows without labels; any label column there is ignored."""

    dataset: str | None = Field(None, description="Hub id of a data set.")
    name: str | None = Field(None, description="Configuration of a Hub data set.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    path: str | None = Field(None, description="A local file or folder, as for data.path.")
    split: str = Field("train", description="Split, or a part of one: train[10%:].")
    max_rows: Annotated[int, Field(gt=0)] | None = Field(None, description="Use so many rows, drawn at random.")

    @model_validator(mode="after")
    def _possible(self) -> "Unlabelled":
        return _exactly_one(self, "dataset", "path")


class Data(_Section):
    """Where the rows come from."""

    dataset: str | None = Field(None, description="Hub id of a data set, or sklearn:digits.")
    name: str | None = Field(None, description="Configuration of a Hub data set.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    path: str | None = Field(None, description="A local file or folder: parquet, csv, json, images, save_to_disk.")
    separator: str | None = Field(
        None, min_length=1, max_length=1, description="Between the values of a CSV file; found by looking if not given."
    )
    encoding: str | None = Field(
        None, description="Of a CSV file, such as utf-8 or cp1252; found by looking if not given."
    )
    skip_unreadable: bool = Field(False, description="Leave out images that cannot be read, and say how many.")
    text_column: str | None = Field(None, description="Column of texts (of lists of words, for tokens).")
    text_pair_column: str | None = Field(None, description="Column of the second text of a pair.")
    image_column: str | None = Field(None, description="Column of images.")
    label_column: str | None = Field(None, description="Column of labels.")
    label_names: list[str] | None = Field(None, min_length=2, description="Names of the classes, in their order.")
    train_split: str = Field("train", description="Training split, or a part of one: train[:90%].")
    eval_split: str | float | None = Field(
        None,
        description="Split that the models are evaluated on; or a fraction of the training split (0.1), drawn by "
        "split_seed from each class, with equal inputs on one side.",
    )
    test_split: str | float | None = Field(None, description="Split of the final results, if another; likewise.")
    split_seed: int = Field(
        42,
        description="Decides which rows a fraction draws; not training.seed, so that runs with several seeds, or with "
        "one teacher, hold out the same rows.",
    )
    max_train_rows: Annotated[int, Field(gt=0)] | None = Field(None, description="Use so many training rows.")
    unlabelled: Unlabelled | None = Field(
        None, description="Further training rows without labels, with the same input columns."
    )
    max_length: Annotated[int, Field(gt=0)] | None = Field(None, description="Tokens kept of a text.")
    background: str = Field(
        "white", description="Colour on which transparent images are composed: a name, or '#rrggbb' in quotes."
    )
    augment: Augment | None = Field(None, description="Random changes to training images.")
    processor: str | dict[str, Any] | None = Field(
        None,
        description="Tokenizer or image processor: a Hub id or folder, or fields of a ViTImageProcessor. By default "
        "the teacher's, or the student's, or one made from the model's config.",
    )
    processor_trust_remote_code: bool = Field(False, description="Run the Python code that comes with the processor.")

    @field_validator("background", mode="before")
    @classmethod
    def _is_opaque_colour(cls, value: Any) -> Any:
        from PIL import ImageColor

        try:
            if len(ImageColor.getrgb(value)) == 3:
                return value
        except (AttributeError, TypeError, ValueError):
            pass
        raise ValueError(f"expected an opaque colour, a name such as white or '#rrggbb' in quotes, got {value!r}")

    @field_validator("eval_split", "test_split", mode="before")
    @classmethod
    def _split_or_fraction(cls, value: Any) -> Any:
        if value is None or isinstance(value, str) or (isinstance(value, float) and 0 < value < 1):
            return value
        raise ValueError(f"expected a split, a part of one (train[90%:]), or a number between 0 and 1, got {value!r}")

    @model_validator(mode="after")
    def _possible(self) -> "Data":
        fractions = [split for split in (self.eval_split, self.test_split) if isinstance(split, float)]
        if sum(fractions) >= 1:
            raise ValueError(f"eval_split {fractions[0]} and test_split {fractions[1]} leave no training rows")
        return _exactly_one(self, "dataset", "path")


class SpecialistSettings(_Section):
    """What makes a teacher a specialist: it knows some of the classes, and a dustbin for the rest."""

    oversampling: Annotated[float, Field(gt=0, strict=False)] = Field(
        1.0, description="How many times more often than in the data its own classes were shown in its training."
    )
    dustbin: str = Field("dustbin", description="The label of all other classes.")


class Teacher(_Section):
    """A teacher: ready, to be trained first, a column of the data, or soft targets that others have shared."""

    model: str | None = Field(None, description="Hub id or folder.")
    config: dict[str, Any] | None = Field(None, description="A new model: model_type and fields of its config.")
    column: Literal["teacher_logits", "teacher_probs"] | None = Field(
        None, description="Column of soft targets that come with the data."
    )
    logits: str | None = Field(
        None, description="Data set on the Hub, or folder, of soft targets that `hf-distill cache` has made."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(
        False, description="Run the Python code that comes with the model, its own processor's among it."
    )
    new_head: bool = Field(False, description="Replace a head for another number of labels.")
    processor: str | None = Field(None, description="Instead of data.processor, for this model.")
    processor_trust_remote_code: bool = Field(False, description="Run the Python code that comes with that processor.")
    training: dict[str, Any] | None = Field(None, description="Fields of TrainingArguments; absent: a ready teacher.")
    augment: Augment | None = Field(None, description="Instead of data.augment, for the teacher's training.")
    specialist: SpecialistSettings | None = Field(None, description="This teacher knows only some of the classes.")

    @model_validator(mode="after")
    def _one_source(self) -> "Teacher":
        if self.config is not None and self.training is None:
            raise ValueError("a teacher made from a config knows nothing yet: give it training: {...}")
        if self.specialist is not None and (self.model is None or self.training is not None):
            raise ValueError("a specialist must be a ready model: give it model, and no training")
        others = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.column is not None and others != {"column"}:
            raise ValueError("a column of the data is no model: leave out all but column")
        if self.logits is not None and others - {"logits", "revision", "model", "config", "column"}:
            raise ValueError("soft targets are no model, theirs is not loaded: leave out all but logits and revision")
        return _exactly_one(self, "model", "config", "column", "logits")


# `from` is no name that a class body can have.
Vocabulary = create_model(
    "Vocabulary",
    __base__=_Section,
    __doc__="Which word pieces a student keeps, besides single characters and special tokens.",
    **{  # type: ignore[call-overload]
        "from": (Literal["train"], Field("train", description="The texts that decide: those of the training rows.")),
        "min_count": (
            Annotated[int, Field(gt=0)],
            Field(1, description="Keep pieces that occur so often in them."),
        ),
    },
)


class FromTeacher(_Section):
    """A student made of a teacher's layers; of several teachers, the first one's."""

    layers: list[int] | None = Field(
        None, min_length=1, description="The teacher's encoder layers that are copied, from 0."
    )
    num_layers: Annotated[int, Field(gt=0)] | None = Field(None, description="Or how many, chosen by strategy.")
    strategy: Literal["uniform", "first", "last"] | None = Field(
        None,
        description="Which num_layers: uniform (by default: evenly spaced, with both ends), first, last.",
    )
    vocabulary: Vocabulary | None = Field(  # type: ignore[valid-type]
        None, description="Keep the embeddings of the word pieces that the training texts use; less to store."
    )

    @model_validator(mode="after")
    def _one_choice(self) -> "FromTeacher":
        if self.strategy is not None and self.num_layers is None:
            raise ValueError("strategy chooses among num_layers: give num_layers, or leave it out")
        return _exactly_one(self, "layers", "num_layers")


class Student(_Section):
    """The student."""

    model: str | None = Field(None, description="Hub id or folder.")
    config: dict[str, Any] | None = Field(None, description="A new model: model_type and fields of its config.")
    from_teacher: FromTeacher | None = Field(None, description="Layers of the teacher.")
    peft: dict[str, Any] | None = Field(
        None,
        description="Train a LoRA adapter and the head alone: fields of peft's LoraConfig, {r: 8, lora_alpha: 16}. The "
        "saved student has it in its weights.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(
        False, description="Run the Python code that comes with the model, its own processor's among it."
    )
    new_head: bool = Field(False, description="Replace a head for another number of labels.")
    processor: str | None = Field(None, description="Instead of data.processor, for this model.")
    processor_trust_remote_code: bool = Field(False, description="Run the Python code that comes with that processor.")

    @model_validator(mode="after")
    def _one_source(self) -> "Student":
        if self.from_teacher is not None and self.from_teacher.vocabulary is not None and self.processor is not None:
            raise ValueError("vocabulary makes the student's tokenizer of the teacher's: leave out processor")
        return _exactly_one(self, "model", "config", "from_teacher")


class Stage(Student):
    """A student on the way, which teaches the next one: an assistant, or an earlier generation."""

    training: dict[str, Any] = Field(
        default_factory=dict, description="Fields of DistillationConfig, in place of those in the recipe's training."
    )


class Hub(_Section):
    """Where `train` publishes the student at its end."""

    repo_id: str = Field(description="name (in your own namespace) or namespace/name.")
    private: bool | None = Field(None, description="Whether a new repository is seen by its owner alone.")
    revision: str | None = Field(None, description="Branch, made if there is none; main by default.")
    create_pr: bool = Field(False, description="Propose the student by a pull request.")

    @model_validator(mode="after")
    def _possible(self) -> "Hub":
        from hf_distill.hub.destination import check_destination_words

        check_destination_words(self.repo_id, self.revision, create_pr=self.create_pr)
        return self


class Metric(_Section):
    """A metric that is Python code of others."""

    name: str = Field(description="Hub id of a Space, such as seqeval or you/metric; or a folder, written ./metric.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(False, description="Run that code; without it the metric is refused.")


def _how_many(value: Any) -> str:
    return SEVERAL if isinstance(value, list) else ONE


def _how_named(value: Any) -> str:
    return SETTINGS if isinstance(value, dict | Metric) else NAME


Metrics = list[Annotated[Annotated[str, Tag(NAME)] | Annotated[Metric, Tag(SETTINGS)], Discriminator(_how_named)]]
Teachers = Annotated[
    Annotated[Teacher, Tag(ONE)] | Annotated[list[Teacher], Field(min_length=1), Tag(SEVERAL)],
    Discriminator(_how_many),
]


class Recipe(_Section):
    """A whole run."""

    task: Literal["text-classification", "token-classification", "image-classification"]
    data: Data
    teacher: Teachers = Field(description="The teacher, or a list of teachers whose probabilities are averaged.")
    stages: list[Stage] = Field([], description="Students on the way, each the next one's teacher.")
    student: Student
    baseline: bool = Field(True, description="Train the student a second time without a teacher, to compare.")
    training: dict[str, Any] = Field(default_factory=dict, description="Fields of DistillationConfig.")
    metrics: Metrics = Field(
        ["accuracy", "f1"], min_length=1, description="accuracy, f1, or metrics that are code of others."
    )
    output_dir: str = Field(description="Folder of the run.")
    hub: Hub | None = Field(None, description="Where to publish the student at the end.")

    @model_validator(mode="after")
    def _has_words(self) -> "Recipe":
        if not self.is_text and any(each.from_teacher and each.from_teacher.vocabulary for each in self.students):
            raise ValueError("from_teacher.vocabulary is for texts: leave it out")
        return self

    @property
    def is_text(self) -> bool:
        """Tell whether the inputs are texts."""
        return self.task != "image-classification"

    @property
    def teachers(self) -> list[Teacher]:
        """Return the teachers, one or several."""
        return [self.teacher] if isinstance(self.teacher, Teacher) else self.teacher

    @property
    def students(self) -> list[Student]:
        """Return the students in the order of their training, the last of which is the run's."""
        return [*self.stages, self.student]

    @property
    def metric_names(self) -> list[str]:
        """Return the names of the metrics."""
        return [metric if isinstance(metric, str) else metric.name for metric in self.metrics]

    def teacher_of(self, student: Student) -> Teacher | Student:
        """Return whose layers a student may be made of: the student before it, or the first teacher."""
        place = next(i for i, each in enumerate(self.students) if each is student)
        return self.students[place - 1] if place else self.teachers[0]

    def trusts_code_of(self, section: Teacher | Student) -> bool:
        """Tell whether the code that comes with a model may run; one that is made of layers has its teacher's."""
        while isinstance(section, Student) and section.from_teacher is not None:
            section = self.teacher_of(section)
        return section.trust_remote_code

    def teacher_stages(self) -> dict[str, Teacher]:
        """Return the teachers that are trained here, by the name of their stage."""
        names = (
            ["teacher"] if isinstance(self.teacher, Teacher) else [f"teacher-{i + 1}" for i in range(len(self.teacher))]
        )
        return {
            name: section for name, section in zip(names, self.teachers, strict=True) if section.training is not None
        }

    def student_stages(self) -> dict[str, Student]:
        """Return the students, by the name of their stage."""
        return {**{f"stage-{i + 1}": stage for i, stage in enumerate(self.stages)}, "student": self.student}

    def stage_names(self) -> list[str]:
        """Name all that is trained, in the order of its training."""
        return [*self.teacher_stages(), *self.student_stages(), *(["baseline"] if self.baseline else [])]


def _exactly_one(section: Any, *names: str) -> Any:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}; got {' and '.join(given) or 'none'}")
    return section
