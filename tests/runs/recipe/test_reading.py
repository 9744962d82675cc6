"""A recipe is read as it is written, or refused with all its problems at once."""

import shlex
from pathlib import Path

import pytest
import yaml

from hf_distill.runs.recipe.reading import (
    RecipeError,
    bundled_recipes,
    command_for,
    find_recipe,
    load_recipe,
    read_resolved,
    recipe_name,
    to_yaml,
    with_all,
)
from hf_distill.runs.recipe.schema import Recipe

DATA = (
    "{dataset: stanfordnlp/sst2, text_column: sentence, label_column: label, "
    "train_split: train, eval_split: validation}"
)
TEACHER = "{model: sentence-transformers/all-MiniLM-L6-v2, training: {num_train_epochs: 2, learning_rate: 5.0e-5}}"
TRAINING = "{alpha: 0.1, temperature: 4.0, num_train_epochs: 3}"
FORM = f"""\
task: text-classification
data: {DATA}
teacher: {TEACHER}
student: {{from_teacher: {{layers: [0, 5]}}}}
baseline: true
training: {TRAINING}
metrics: [accuracy, f1]
output_dir: runs/x
"""


def write(*changes: tuple[str, str]) -> str:
    text = FORM
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path("x.yaml").write_text(text)
    return "x.yaml"


def load(*changes: tuple[str, str], overrides: tuple[str, ...] = ()) -> Recipe:
    return load_recipe(write(*changes), overrides)


def problems(*changes: tuple[str, str], overrides: tuple[str, ...] = ()) -> list[str]:
    """Return the lines of the error, without the name of the file that each begins with."""
    with pytest.raises(RecipeError) as caught:
        load(*changes, overrides=overrides)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("x.yaml: ") for line in lines)
    return [line.removeprefix("x.yaml: ") for line in lines]


class TestReading:
    def test_the_form_of_the_documentation_loads(self):
        """A value that lands in another field, or a default in place of a value."""
        recipe = load()
        assert recipe.task == "text-classification"
        assert recipe.is_text
        assert (recipe.data.dataset, recipe.data.text_column) == ("stanfordnlp/sst2", "sentence")
        assert recipe.teacher.training == {"num_train_epochs": 2, "learning_rate": 5e-5}
        assert recipe.student.from_teacher.layers == [0, 5]
        assert recipe.training == {"alpha": 0.1, "temperature": 4.0, "num_train_epochs": 3}
        assert (recipe.baseline, recipe.metrics, recipe.output_dir) == (True, ["accuracy", "f1"], "runs/x")

    def test_what_is_left_out_has_its_default(self):
        """A recipe without `training` must run with the defaults, and with a baseline."""
        recipe = load(("baseline: true\n", ""), (f"training: {TRAINING}\n", ""), ("metrics: [accuracy, f1]\n", ""))
        assert recipe.baseline is True
        assert recipe.training == {}
        assert recipe.metrics == ["accuracy", "f1"]

    def test_written_out_and_read_back_it_is_the_same(self):
        """Numbers that come back as text, or words that come back as true and false."""
        recipe = load(
            ("label_column: label", 'label_column: label, label_names: ["no", "on", "3e-4", "1"]'),
            ("5.0e-5", "1.0e-5"),
        )
        Path("out.yaml").write_text(to_yaml(recipe))
        assert read_resolved(Path("out.yaml")) == with_all(recipe)
        assert load_recipe("out.yaml") == with_all(recipe)
        assert recipe.data.label_names == ["no", "on", "3e-4", "1"]

    @pytest.mark.parametrize("text", ["{{{", "task: text-classification\n", "[]"])
    def test_a_recipe_of_a_run_that_cannot_be_read_is_a_value_error(self, text):
        """A damaged file in an output folder must not end in a traceback."""
        Path("out.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"out\.yaml is not valid YAML|for Recipe"):
            read_resolved(Path("out.yaml"))


class TestProblems:
    def test_all_are_reported_at_once_in_one_line_each(self):
        """One problem for each start of the program."""
        found = problems(
            ("text_column", "text_colum"),
            ("baseline: true", "baseline: maybe\ntraning: {}"),
            ("[0, 5]", "[]"),
            ("learning_rate: 5.0e-5", "learning_rate: 3e-4, output_dir: z"),
            (TRAINING, "{alpha: 2, temperature: -1, num_train_epoch: 3, seed: x}"),
            ("[accuracy, f1]", "accuracy"),
            ("output_dir: runs/x\n", ""),
        )
        assert found == [
            "data.text_colum: unknown key; did you mean text_column?",
            "student.from_teacher.layers: expected a list of 1 or more, got []",
            "baseline: expected a valid boolean, got 'maybe'",
            "metrics: expected a valid list, got 'accuracy'",
            "output_dir: is missing",
            "traning: unknown key; did you mean training?",
            "training.num_train_epoch: unknown key; did you mean num_train_epochs?",
            "training.seed: expected a valid integer, got 'x'",
            "training.alpha: must be in [0, 1], got 2. It is the weight of the label loss; 0.1 is usual.",
            "training.temperature: must be > 0, got -1. 1 to 20 is usual.",
            "teacher.training.learning_rate: expected a valid number, got '3e-4' as text: YAML reads a number only "
            "with a point before the e, write 3.0e-4",
            "teacher.training.output_dir: is the run's own: set output_dir at the top of the recipe",
        ]

    def test_a_key_unlike_any_other_is_shown_those_that_there_are(self):
        """A key that is ignored changes nothing, and nobody knows."""
        assert problems(("baseline: true", "qqq: 1")) == [
            "qqq: unknown key; known are task, data, teacher, stages, student, baseline, training, metrics, "
            "output_dir, hub"
        ]
        assert problems(("alpha: 0.1", "qqq: 1")) == [
            "training.qqq: unknown key; known are the fields of transformers' TrainingArguments"
        ]

    @pytest.mark.parametrize(
        ("written", "remedy"), [("3e-4", "3.0e-4"), ("1e5", "1.0e+5"), ("1.5e3", "1.5e+3"), ("'0.1'", "0.1")]
    )
    def test_a_number_that_yaml_reads_as_text_says_how_to_write_it(self, written, remedy):
        """YAML reads 3e-4 as text."""
        (found,) = problems(("alpha: 0.1", f"learning_rate: {written}"))
        assert found.startswith("training.learning_rate: expected a valid number, got ")
        assert found.endswith(f"write {remedy}")
        assert isinstance(yaml.safe_load(remedy), float)

    def test_a_number_as_text_is_found_in_the_fields_of_a_model(self):
        """`layer_norm_eps: 1e-12` would reach the model as text."""
        (found,) = problems(
            ("{from_teacher: {layers: [0, 5]}}", "{config: {model_type: bert, layer_norm_eps: 1e-12, name: e5}}")
        )
        assert found.startswith("student.config.layer_norm_eps: expected a number, got '1e-12' as text")
        assert found.endswith("write 1.0e-12")

    def test_a_bare_no_says_that_yaml_reads_it_as_false(self):
        """A class named no would be called False."""
        found = problems(("label_column: label", "label_column: label, label_names: [no, yes]"))
        assert len(found) == 2
        assert found[0].startswith("data.label_names.0: expected a valid string, got False")
        assert found[0].endswith('write "no" for the word')

    @pytest.mark.parametrize(
        "change", [("baseline: true", "baseline: true\nbaseline: false"), ("alpha", "seed: 1, seed")]
    )
    def test_a_key_given_twice(self, change):
        """YAML keeps the last one and says nothing."""
        (found,) = problems(change)
        assert "is given twice" in found

    @pytest.mark.parametrize(
        ("text", "message"),
        [("", "expected a mapping with task.*got None"), ("- a", "expected a mapping"), ("a: {b", "not valid YAML: ")],
    )
    def test_a_file_that_is_no_recipe(self, text, message):
        """A traceback of the YAML reader."""
        Path("x.yaml").write_text(text)
        with pytest.raises(RecipeError, match=f"^x.yaml: {message}") as caught:
            load_recipe("x.yaml")
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_no_text(self):
        """A model given in place of a recipe."""
        Path("x.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(RecipeError, match="not valid YAML"):
            load_recipe("x.yaml")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ((DATA, ""), "data: expected a mapping (key: value), got None"),
            ((TEACHER, "some/model"), "teacher: expected a mapping (key: value), got 'some/model'"),
            ((TRAINING, "[1]"), "training: expected a mapping (key: value), got [1]"),
            (("text-classification", "classify"), "task: expected 'text-classification', 'token-classification' or"),
            (("eval_split: validation", "max_train_rows: 0"), "data.max_train_rows: expected greater than 0, got 0"),
            *(
                (
                    ("eval_split: validation", f"{key}: {value}"),
                    f"data.{key}: expected a split, a part of one (train[90%:]), or a number between 0 and 1, got ",
                )
                for key in ("eval_split", "test_split")
                for value in ("0", "1", "1.0", "-0.1", "10", "true", "[0.1]", ".nan")
            ),
            (
                ("eval_split: validation", "eval_split: 0.5, test_split: 0.5"),
                "data: eval_split 0.5 and test_split 0.5 leave no training rows",
            ),
            (
                ("eval_split: validation", "label_names: [a]"),
                "data.label_names: expected a list of 2 or more, got ['a']",
            ),
            (("[0, 5]", "[a]"), "student.from_teacher.layers.0: expected a valid integer, got 'a'"),
            (("runs/x", "3"), "output_dir: expected a valid string, got 3"),
        ],
    )
    def test_a_value_of_the_wrong_kind(self, change, message):
        """A value that is converted to something else."""
        (found,) = problems(change)
        assert found.startswith(message)


class TestTrainingFields:
    @pytest.mark.parametrize(
        ("field", "message"),
        [
            ("num_train_epochs: [3]", "num_train_epochs: expected a valid number, got [3]"),
            ("per_device_train_batch_size: 3.5", "per_device_train_batch_size: expected a valid integer, got 3.5"),
            ("seed: true", "seed: expected a valid integer, got True"),
            ("use_cpu: 1", "use_cpu: expected a valid boolean, got 1"),
            ("learning_rate: -1", "learning_rate: must be > 0, got -1"),
            ("gradient_accumulation_steps: 0", "gradient_accumulation_steps: must be > 0, got 0"),
            ("num_train_epochs: 0", "num_train_epochs: must be > 0, got 0"),
            ("alpha: -0.1", "alpha: must be in [0, 1], got -0.1. It is the weight of the label loss; 0.1 is usual."),
            ("alpha: .nan", "alpha: must be in [0, 1], got nan. It is the weight of the label loss; 0.1 is usual."),
            ("temperature: 0", "temperature: must be > 0, got 0. 1 to 20 is usual."),
            ("temperature: .inf", "temperature: must be > 0, got inf. 1 to 20 is usual."),
            ("teacher_dtype: int8", "teacher_dtype: must be one of auto, float32, bfloat16, float16, got 'int8'."),
        ],
    )
    def test_a_wrong_value_is_refused_before_anything_is_loaded(self, field, message):
        """An error after the teacher has been trained, or a loss of another sign."""
        assert problems((TRAINING, f"{{{field}}}")) == [f"training.{message}"]

    @pytest.mark.parametrize("field", ["lr_scheduler_type: bogus", "eval_strategy: sometimes", "optim: nothing"])
    def test_a_choice_that_transformers_does_not_have(self, field):
        """TrainingArguments takes any text for these until training begins."""
        (found,) = problems((TRAINING, f"{{{field}}}"))
        assert field.split(": ")[1] in found

    def test_settings_that_contradict_each_other_are_one_line(self):
        """Transformers says it in several lines, each of which would look like a problem of its own."""
        settings = "{load_best_model_at_end: true, eval_strategy: epoch, save_strategy: steps}"
        (found,) = problems((TRAINING, settings))
        assert "requires the save and eval strategy to match" in found

    def test_whole_numbers_are_numbers(self):
        """`learning_rate: 1` must not need a point."""
        assert load((TRAINING, "{learning_rate: 1, temperature: 2, alpha: 0}")).training["temperature"] == 2

    @pytest.mark.parametrize("section", ["training", "teacher.training"])
    @pytest.mark.parametrize("field", ["output_dir: z", "push_to_hub: true", "resume_from_checkpoint: true"])
    def test_what_belongs_to_the_run_is_refused(self, section, field):
        """A checkpoint folder that the run does not know, and does not go on from."""
        old = TRAINING if section == "training" else "{num_train_epochs: 2, learning_rate: 5.0e-5}"
        (found,) = problems((old, f"{{{field}}}"))
        assert found.startswith(f"{section}.{field.split(':')[0]}: is ")

    @pytest.mark.parametrize("field", ["alpha: 0.5", "temperature: 2.0", "teacher_dtype: float16"])
    def test_what_belongs_to_the_student_is_refused_in_the_training_of_the_teacher(self, field):
        """It would change nothing."""
        (found,) = problems(("num_train_epochs: 2", field))
        assert found.startswith(f"teacher.training.{field.split(':')[0]}: belongs to the student's training")


class TestConflicts:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ([("dataset: stanfordnlp/sst2, ", "")], "data: give exactly one of dataset, path; got none"),
            ([("dataset:", "path: x, dataset:")], "data: give exactly one of dataset, path; got dataset and path"),
            ([("{from_teacher: {layers: [0, 5]}}", "{}")], "student: give exactly one of model, config, from_teacher"),
            ([("eval_split: v", "image_column: x, eval_split: v")], "data.image_column: has no effect in text-classif"),
            ([("eval_split: v", "background: black, eval_split: v")], "data.background: has no effect in text-classif"),
            (
                [("eval_split: v", "augment: {crop_padding: 1}, eval_split: v")],
                "data.augment.crop_padding: has no effect",
            ),
            ([("eval_split: v", "augment: {mask: 0.1}, eval_split: v")], "data.augment: needs copies, and one or more"),
            ([("eval_split: v", "augment: {copies: 1}, eval_split: v")], "data.augment: needs copies, and one or more"),
            ([("eval_split: v", "processor: {}, eval_split: v")], "data.processor: expected the Hub id or folder of a"),
            ([(TEACHER, "{config: {model_type: bert}}")], "teacher: a teacher made from a config knows nothing yet"),
            ([(TEACHER, "{config: {model_type: bert}, training: {}}")], "data.processor: is missing; name a tokenizer"),
            ([("alpha: 0.1", "alpha: 1")], "training.alpha: 1 leaves the teacher out"),
            ([("alpha: 0.1", "teacher_label_map: {a: b}")], "training.teacher_label_map: has no effect"),
        ],
    )
    def test_settings_without_effect_or_that_exclude_each_other(self, changes, message):
        """A setting that another one silently switches off."""
        (found,) = problems(*changes)
        assert found.startswith(message)

    def test_text_settings_in_a_recipe_for_images(self):
        """`max_length` on images."""
        found = problems(
            ("text-classification", "image-classification"), ("label_column", "max_length: 3, label_column")
        )
        assert found == [
            "data.text_column: has no effect in image-classification",
            "data.max_length: has no effect in image-classification",
        ]

    @pytest.mark.parametrize("written", ["#808080", "whitish", "'#ffffff80'", "0", "[255, 255, 255]"])
    def test_a_ground_that_is_no_opaque_colour(self, written):
        """Without quotes #808080 is a comment of YAML, and the ground is white; half of one mixes with black."""
        images = ("text-classification", "image-classification"), ("text_column: sentence, ", "")
        data = DATA.replace("text_column: sentence, ", "").replace("}", f", background: {written}\n }}")
        (found,) = problems(*images, (DATA.replace("text_column: sentence, ", ""), data))
        assert found.startswith("data.background: expected an opaque colour, a name such as white or '#rrggbb' in quot")

    @pytest.mark.parametrize("written", ["black", "'#808080'", "'rgb(0, 10, 20)'"])
    def test_a_ground_is_any_opaque_colour(self, written):
        """A name that PIL knows and the recipe refuses."""
        recipe = load(
            ("text-classification", "image-classification"), ("text_column: sentence", f"background: {written}")
        )
        assert recipe.data.background == yaml.safe_load(written)

    def test_an_augmentation_of_a_teacher_that_is_not_trained(self):
        """It changes nothing."""
        recipe = ("text-classification", "image-classification"), ("text_column: sentence, ", "")
        found = problems(*recipe, (TEACHER, "{model: a/b, augment: {crop_padding: 1}}"))
        assert found == ["teacher.augment: has no effect on a teacher that is not trained"]


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("learning_rate=1e-3", 1e-3),
            ("learning_rate=1E-3", 1e-3),
            ("learning_rate=.5", 0.5),
            ("num_train_epochs=3", 3),
            ("max_steps=-3", -3),
            ("optim=adafactor", "adafactor"),
            ("lr_scheduler_kwargs={num_cycles: 2}", {"num_cycles": 2}),
            ("report_to=[none]", ["none"]),
            ("use_cpu=true", True),
            ("run_name=a=b", "a=b"),
            ("run_name=null", None),
            ("run_name=#808080", "#808080"),
        ],
    )
    def test_a_value_is_read_as_yaml_with_numbers_as_people_write_them(self, override, value):
        """1e-3 on the command line is a number, and 3 is not 3.0: batch sizes are whole."""
        key = override.split("=")[0]
        found = load(overrides=(f"training.{override}",)).training[key]
        assert found == value
        assert type(found) is type(value)

    def test_the_last_one_wins_and_the_others_stay(self):
        """A section replaced by its one overridden key."""
        recipe = load(overrides=("training.alpha=0.2", "training.alpha=0.3", "baseline=false"))
        assert recipe.training == {"alpha": 0.3, "temperature": 4.0, "num_train_epochs": 3}
        assert recipe.baseline is False

    @pytest.mark.parametrize(
        ("overrides", "section", "given"),
        [
            (("data.path=x.csv",), "data", {"path": "x.csv", "dataset": None}),
            (("data.path=x.csv", "data.dataset=a/b"), "data", {"path": None, "dataset": "a/b"}),
            (("student.model=a/b",), "student", {"model": "a/b", "from_teacher": None}),
            (("student.config.model_type=bert",), "student", {"config": {"model_type": "bert"}, "from_teacher": None}),
            (("teacher.config.model_type=bert", "data.processor=a/b"), "teacher", {"model": None}),
        ],
    )
    def test_one_of_several_sources_takes_the_place_of_the_others(self, overrides, section, given):
        """Two sources, of which one is ignored."""
        found = getattr(load(overrides=overrides), section)
        assert {name: getattr(found, name) for name in given} == given

    def test_a_model_takes_the_place_of_a_config(self):
        """The other way round."""
        config = (TEACHER, "{config: {model_type: bert}, training: {}}")
        recipe = load(config, ("eval_split", "processor: a/b, eval_split"), overrides=("teacher.model=c/d",))
        assert (recipe.teacher.model, recipe.teacher.config) == ("c/d", None)

    def test_taking_a_source_away_leaves_the_other_alone(self):
        """`data.path=null` must not remove data.dataset."""
        assert load(overrides=("data.path=null",)).data.dataset == "stanfordnlp/sst2"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("training.alpha", "override 'training.alpha': expected key=value, such as"),
            ("=3", "override '=3': expected key=value"),
            ("data.path=[x", "override 'data.path=[x': the value is not valid YAML"),
            ("output_dir.x=3", "override 'output_dir.x=3': output_dir is 'runs/x' and has no keys below it"),
            (
                "metrics.7=f1",
                "override 'metrics.7=f1': metrics is a list of 2: name one by its number, metrics.0",
            ),
            ("trainin.alpha=0.3", "trainin: unknown key; did you mean training?"),
            ("training.alpha=2", "training.alpha: must be in [0, 1], got 2."),
            (
                "training.report_to=tensorbord",
                "training.report_to: 'tensorbord' is not known; did you mean tensorb",
            ),
            ("training.report_to=[wandb]", "training.report_to: wandb is not installed (pip install wandb); installed"),
            ("training={alpha: 3e-4}", "training.alpha: expected a valid number, got '3e-4' as text"),
        ],
    )
    def test_a_wrong_override_is_named(self, override, message):
        """An override that is ignored."""
        (found,) = problems(overrides=(override,))
        assert found.startswith(message)


class TestBundled:
    def test_every_one_loads_and_its_first_line_says_what_it_shows(self):
        """A recipe that has not kept up with the schema; `recipes list` shows the first line."""
        bundled = bundled_recipes()
        assert {"text/sst2_minilm", "vision/digits"} <= set(bundled)
        for name, path in bundled.items():
            assert load_recipe(name) == load_recipe(path) == load_recipe(f"recipes/{name}.yaml")
            first = path.read_text().splitlines()[0]
            assert first.startswith("# "), name
            assert len(first.split()) > 4, name

    def test_each_has_an_output_folder_of_its_own(self):
        """Two recipes in one folder refuse each other."""
        folders = [load_recipe(name).output_dir for name in bundled_recipes()]
        assert len(set(folders)) == len(folders)

    def test_a_file_is_taken_before_the_recipe_of_that_name(self):
        """A changed copy must not be passed over."""
        Path("vision").mkdir()
        write()
        Path("x.yaml").rename("vision/digits")
        assert load_recipe("vision/digits").task == "text-classification"

    def test_a_name_that_is_neither_is_answered_with_those_that_there_are(self):
        """The remedy for a typing error."""
        with pytest.raises(RecipeError, match=r"^vision/digit: there is no such file; .*: .*vision/digits"):
            find_recipe("vision/digit")

    def test_names_in_results_are_short(self):
        """A path of this machine in a published card."""
        assert recipe_name("vision/digits") == "vision/digits"
        assert recipe_name(bundled_recipes()["vision/digits"]) == "vision/digits"
        assert recipe_name(write()) == "x"


def change(**sections) -> Recipe:
    """Load the form of the documentation with other sections, given as values."""
    values = {**yaml.safe_load(FORM), **sections}
    Path("x.yaml").write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
    return load_recipe("x.yaml")


def lines_of(**sections) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        change(**sections)
    return [line.removeprefix("x.yaml: ") for line in str(caught.value).splitlines()]


class TestSeveralTeachersAndStages:
    READY, TRAINED = {"model": "a/b"}, {"model": "c/d", "training": {"seed": 1}}

    def test_one_teacher_or_a_list(self):
        """A list of one that is another run than the same teacher alone, or the stages in another order."""
        recipe = change(teacher=[self.READY, self.TRAINED, self.TRAINED], stages=[{"from_teacher": {"layers": [0]}}])
        assert [teacher.model for teacher in recipe.teachers] == ["a/b", "c/d", "c/d"]
        assert list(recipe.teacher_stages()) == ["teacher-2", "teacher-3"]
        assert recipe.stage_names() == ["teacher-2", "teacher-3", "stage-1", "student", "baseline"]
        assert list(change(teacher=self.TRAINED).teacher_stages()) == ["teacher"]
        assert list(change(teacher=[self.TRAINED]).teacher_stages()) == ["teacher-1"]

    @pytest.mark.parametrize(
        "sections",
        [
            {"teacher": [{"model": "a/b"}, {"model": "c/d", "specialist": {"oversampling": 9}}]},
            {"teacher": {"column": "teacher_probs"}, "student": {"model": "a/b"}},
            {"stages": [{"model": "a/b", "training": {"alpha": 0.5}}]},
        ],
    )
    def test_written_out_and_read_back_it_is_the_same(self, sections):
        """A run whose own recipe.yaml is refused cannot be resumed."""
        recipe = change(**sections)
        Path("out.yaml").write_text(to_yaml(recipe))
        assert read_resolved(Path("out.yaml")) == load_recipe("out.yaml") == with_all(recipe)

    def test_overrides_reach_into_lists(self):
        """A member replaced by its one overridden key, or the other member changed."""
        Path("x.yaml").write_text(yaml.safe_dump({**yaml.safe_load(FORM), "teacher": [self.READY, self.TRAINED]}))
        recipe = load_recipe("x.yaml", ["teacher.0.model=e/f", "teacher.1.training.seed=7"])
        assert [teacher.model for teacher in recipe.teachers] == ["e/f", "c/d"]
        assert recipe.teachers[1].training == {"seed": 7}
        recipe = load_recipe("x.yaml", ["teacher.1.config.model_type=bert"])
        assert (recipe.teachers[1].model, recipe.teachers[1].config) == (None, {"model_type": "bert"})
        with pytest.raises(RecipeError, match=r"teacher is a list of 2: name one by its number, teacher\.0"):
            load_recipe("x.yaml", ["teacher.model=e/f"])

    def test_a_command_takes_away_what_the_run_has_not(self):
        """The teacher of the recipe trained again, in the place of the one that taught."""
        overrides = ["teacher.model=a/b", "teacher.training=null", "teacher.augment=null"]
        recipe = load_recipe("vision/digits", overrides)
        command = command_for(recipe, "vision/digits")
        assert "teacher.config" not in command
        assert load_recipe("vision/digits", shlex.split(command)[3:]) == recipe

    def test_a_command_names_the_member_and_no_path_of_this_machine(self, tmp_path, monkeypatch):
        """A published card with the author's folders, in a command that no shell takes."""
        (tmp_path / "vision").mkdir()
        ensemble = Path(__file__).parents[3] / "benchmarks" / "mnist_ensemble.yaml"
        (tmp_path / "vision" / "mnist_ensemble.yaml").write_text(ensemble.read_text())
        monkeypatch.setattr("hf_distill.runs.recipe.reading._BUNDLED", tmp_path)
        recipe = load_recipe(
            "vision/mnist_ensemble",
            ["teacher.1.training.seed=5", "teacher.0.model=/home/me/ready", "teacher.0.training=null"],
        )
        command = command_for(recipe, "vision/mnist_ensemble")
        changed = ["teacher.0.training=null", "teacher.0.model=ready", "teacher.1.training.seed=5"]
        assert command == " ".join(["hf-distill train vision/mnist_ensemble", *changed])

    def test_one_named_on_the_command_line_takes_the_place_of_the_other(self):
        """A local copy of the rows without labels beside a Hub id; layers beside their number."""
        given = ["data.unlabelled.path=rows", "student.from_teacher.layers=[0, 5]"]
        recipe = load_recipe("text/sst2_few_labels", given)
        assert (recipe.data.unlabelled.dataset, recipe.data.unlabelled.path) == (None, "rows")
        assert (recipe.student.from_teacher.layers, recipe.student.from_teacher.num_layers) == ([0, 5], None)
        recipe = load_recipe("text/sst2_minilm", ["student.from_teacher.num_layers=2"])
        assert recipe.student.from_teacher.num_layers == 2

    def test_a_command_can_be_given_to_a_shell(self):
        """A list of layers that the shell takes apart, in a published card."""
        recipe = load_recipe("text/sst2_minilm", ["student.from_teacher.layers=[1, 3]"])
        command = command_for(recipe, "text/sst2_minilm")
        assert shlex.split(command)[2:] == ["text/sst2_minilm", "student.from_teacher.layers=[1, 3]"]
        recipe = load_recipe("vision/digits", ["data.background=#808080"])
        assert load_recipe("vision/digits", shlex.split(command_for(recipe, "vision/digits"))[3:]) == recipe

    @pytest.mark.parametrize(
        ("sections", "message"),
        [
            ({"teacher": []}, "teacher: expected a list of 1 or more, got []"),
            ({"teacher": [{"modl": "a/b"}]}, "teacher.0.modl: unknown key; did you mean model?"),
            (
                {"teacher": [{"model": "a/b", "training": {"alpha": 1}}]},
                "teacher.0.training.alpha: belongs to the student",
            ),
            ({"stages": [{"model": "a/b", "trainin": {}}]}, "stages.0.trainin: unknown key; did you mean training?"),
            (
                {"stages": [{"model": "a/b", "training": {"alpha": 2}}]},
                "stages.0.training.alpha: must be in [0, 1], got 2",
            ),
            ({"stages": [{"training": {}}]}, "stages.0: give exactly one of model, config, from_teacher; got none"),
            (
                {"teacher": {"column": "soft"}},
                "teacher.column: expected 'teacher_logits' or 'teacher_probs', got 'soft'",
            ),
            ({"teacher": {"column": "teacher_probs", "training": {}}}, "teacher: a column of the data is no model"),
            (
                {"teacher": [{"model": "a/b", "specialist": {"oversampling": 0}}]},
                "teacher.0.specialist.oversampling: exp",
            ),
            (
                {"teacher": {"model": "a/b", "specialist": {}}, "student": {"model": "a/b"}},
                "teacher: specialists teach beside a teacher that knows",
            ),
            (
                {"teacher": {"config": {"model_type": "bert"}}},
                "teacher: a teacher made from a config knows nothing yet",
            ),
            ({"training": {"teacher_weights": [1, 2]}}, "training.teacher_weights: has no effect with one teacher"),
            (
                {"training": {"teacher_combination": "geometric"}},
                "training.teacher_combination: has no effect with one",
            ),
            (
                {"teacher": [READY, TRAINED], "stages": [{"model": "a/b", "training": {"teacher_weights": [1]}}]},
                "stages.0.training.teacher_weights: expected a number for each of the 2 teachers",
            ),
            (
                {
                    "teacher": [READY, TRAINED],
                    "stages": [{"model": "a/b"}, {"model": "a/b", "training": {"teacher_weights": [1, 2]}}],
                },
                "stages.1.training.teacher_weights: has no effect, this one is taught by the stage before it",
            ),
            (
                {
                    "teacher": {"column": "teacher_probs"},
                    "stages": [{"from_teacher": {"layers": [0]}, "processor": "a/b"}],
                },
                "stages.0.from_teacher: the first teacher is no model of all labels",
            ),
        ],
    )
    def test_what_is_wrong_is_said_with_its_place_in_the_list(self, sections, message):
        """Of five teachers, nobody knows which one."""
        (found,) = lines_of(**sections)
        assert found.startswith(message)

    def test_a_pruned_vocabulary_is_the_teachers_and_of_texts(self):
        """A tokenizer that is named and not used; pictures without words."""
        pruned = {"from_teacher": {"layers": [0], "vocabulary": {"from": "train"}}}
        (found,) = lines_of(teacher=self.READY, student={**pruned, "processor": "a/b"})
        assert "vocabulary makes the student's tokenizer of the teacher's: leave out processor" in found
        of_images = {"task": "image-classification", "data": {"path": "x"}}
        (found,) = lines_of(teacher=self.READY, student=pruned, **of_images)
        assert "from_teacher.vocabulary is for texts: leave it out" in found

    def test_schedules_without_an_end_or_an_end_without_a_schedule(self):
        """Settings that do nothing."""
        assert lines_of(training={"schedule": "cosine"}) == [
            "training.schedule: cosine has no end value to move to: set alpha_end or temperature_end."
        ]
        assert lines_of(training={"temperature_end": 1.0}) == [
            "training.temperature_end: has no effect with schedule constant: set schedule to linear or cosine."
        ]
        # A stage's fields take the place of single ones of the run's, so they are judged together with these.
        stage = {"model": "a/b", "training": {"alpha_end": 0.5}}
        assert change(stages=[stage], training={"schedule": "linear", "temperature_end": 1.0}).stages[0].training
        assert lines_of(stages=[stage])[0].startswith(
            "stages.0.training.alpha_end: has no effect with schedule constant"
        )
