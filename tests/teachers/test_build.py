"""From what a user names as teacher to a teacher at work."""

import json
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Tokenizer
from torch import nn

from hf_distill import DistillationConfig
from hf_distill.teachers.build import (
    TeacherContext,
    Views,
    build_source,
    load_members,
    parse_teachers,
    views_of,
)
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.external import TeacherColumn, TeacherFunction
from hf_distill.teachers.labels import stated_problem_type
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.specialists import Specialist

CPU = torch.device("cpu")


def config(**settings: Any) -> DistillationConfig:
    return DistillationConfig("out", **{"use_cpu": True, **settings})


def context(student: nn.Module | None = None, processing_class: Any = None, **changes: Any) -> TeacherContext:
    settings = {"num_processes": 1, "autocast_dtype": None, "accelerator": None, "device": CPU, **changes}
    return TeacherContext(student=student or tiny.bert(0), processing_class=processing_class, **settings)


def named(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def for_trainer(members: Any, student: nn.Module | None = None, views: Views | None = None, **settings: Any) -> Any:
    student = student or tiny.bert(0)
    count = len(members) if isinstance(members, list) else 0
    views = views or Views([], [None] * count, [], [True] * count)
    return build_source(members, config(**settings), context(student), "single_label_classification", views)


def turned(places: int = 1) -> Any:
    """Return a tokenizer whose ids of the words are moved on by some places."""
    tokenizer = tiny.tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    numbers = [vocabulary[word] for word in tiny.WORDS]
    vocabulary.update(zip(tiny.WORDS, numbers[places:] + numbers[:places], strict=True))
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    return tokenizer


class TestMembers:
    def test_a_model_a_name_or_a_list_becomes_a_list(self):
        """A tuple, or a single name, taken for something else."""
        model, special = tiny.bert(1), Specialist("special")
        assert parse_teachers(model, ["input_ids"]) == [model]
        assert parse_teachers("some/model", []) == ["some/model"]
        assert parse_teachers((model, "some/model", special), []) == [model, "some/model", special]

    def test_a_function_stays_a_function_and_a_column_is_found(self):
        """A model is callable as well."""
        function = lambda batch: batch  # noqa: E731
        assert parse_teachers(function, []) is function
        for column in ("teacher_logits", "teacher_probs"):
            assert parse_teachers(None, ["text", column]) == column

    @pytest.mark.parametrize(
        ("teacher", "columns", "message"),
        [
            (None, ["text"], "there is no teacher: pass teacher="),
            (None, ["teacher_logits", "teacher_probs"], "both columns teacher_logits and teacher_probs"),
            (
                "some/model",
                ["teacher_probs"],
                "have a column teacher_probs of soft targets, and a teacher was given too",
            ),
            (Specialist("x"), [], "pass a list of both"),
            ([], [], "got an empty list"),
            (["some/model", 3, None], [], "got int, NoneType"),
            (3, [], "or a function from a batch to logits, got int"),
        ],
    )
    def test_what_is_no_teacher_or_two_of_them_is_refused(self, teacher, columns, message):
        """One of two teachers ignored, or a traceback in the first batch."""
        with pytest.raises(ValueError, match=message):
            parse_teachers(teacher, columns)

    def test_named_members_are_loaded_and_specialists_keep_their_settings(self):
        """A specialist loaded without its oversampling, or the members in another order."""
        tiny.bert(1, initializer_range=0.3).save_pretrained("one")
        tiny.bert(2, **named("red", "dustbin")).save_pretrained("special")
        model = tiny.bert(3)
        found = load_members(["one", model, Specialist("special", 3.0, "other")], config(), context())
        assert torch.equal(found[0].classifier.weight, tiny.bert(1, initializer_range=0.3).classifier.weight)
        assert found[1] is model
        assert (found[2].oversampling, found[2].dustbin) == (3.0, "other")
        assert found[2].model.config.num_labels == 2

    def test_a_model_that_is_two_members_or_the_student_is_refused(self):
        """The student frozen with its teacher; or one model that is run twice for nothing."""
        model, student = tiny.bert(1), tiny.bert(0)
        with pytest.raises(ValueError, match=r"one model is several of the teachers: .* teacher_weights"):
            load_members([model, model], config(), context(student))
        with pytest.raises(ValueError, match="the teacher is the student"):
            load_members([model, student], config(), context(student))

    @pytest.mark.parametrize(
        ("settings", "changes", "message"),
        [
            ({"teacher_placement": "auto"}, {"num_processes": 2}, "auto spreads .* this run has 2"),
            ({"teacher_placement": "cuda:31"}, {}, "teacher_placement is 'cuda:31', and this machine has only"),
            ({"teacher_quantization": "8bit"}, {}, "quantises on loading, and the teacher is a model already"),
        ],
    )
    def test_a_placement_that_cannot_be_is_refused_before_anything_is_loaded(self, settings, changes, message):
        """The first of several teachers is loaded for minutes before the second is refused."""
        with pytest.raises(ValueError, match=message):
            load_members([tiny.bert(1), "nowhere"], config(**settings), context(**changes))


class TestProblemType:
    def test_what_one_config_states_goes_for_all(self):
        """A multi-label student taught by softmax."""
        student, stated = tiny.bert(0), tiny.bert(1, problem_type="multi_label_classification")
        assert stated_problem_type(student, [tiny.bert(2), stated], False) == "multi_label_classification"
        assert stated_problem_type(student, [Specialist(stated)], False) == "multi_label_classification"
        assert stated_problem_type(student, [tiny.bert(2)], False) is None
        assert stated_problem_type(tiny.bert(0, num_labels=1, id2label=None, label2id=None), [], False) == "regression"
        assert stated_problem_type(student, [], True) == "single_label_classification"

    def test_a_member_of_another_problem_is_named(self):
        """Of five teachers, nobody knows which one."""
        members = [tiny.bert(1, problem_type="single_label_classification"), tiny.bert(2, problem_type="regression")]
        with pytest.raises(ValueError, match="the teacher 1's single_label_classification, the teacher 2's regression"):
            stated_problem_type(tiny.bert(0), members, False)


class TestViews:
    def test_a_processor_that_reads_alike_needs_no_view(self):
        """Each row tokenized twice to the same ids."""
        members = [tiny.bert(1), tiny.bert(2)]
        found = views_of(members, tiny.tokenizer(), tiny.tokenizer())
        assert (found.processors, found.of_members, found.are_stated) == ([], [None, None], [True, True])
        assert views_of(members, None, tiny.tokenizer()).are_stated == [False, False]

    def test_members_that_share_a_processor_share_a_view(self):
        """A teacher that is given another one's view."""
        one, other = turned(1), turned(2)
        members = [tiny.bert(seed) for seed in range(1, 5)]
        found = views_of(members, [one, None, other, one], tiny.tokenizer())
        assert found.processors == [one, other]
        assert found.of_members == [0, None, 1, 0]
        assert found.are_stated == [True, False, True, True]

    def test_a_view_is_as_long_as_the_shortest_of_its_teachers_takes(self):
        """An index error in the embeddings of the smaller one."""
        tokenizer = turned()
        tokenizer.model_max_length = 10**30
        members = [tiny.bert(1), tiny.bert(2, max_position_embeddings=16)]
        assert views_of(members, tokenizer, tiny.tokenizer()).max_lengths == [16]

    def test_a_processor_may_be_a_name(self):
        """A folder name passed on as if it were a tokenizer."""
        turned().save_pretrained("other")
        (found,) = views_of([tiny.bert(1)], "other", tiny.tokenizer()).processors
        assert found("the plot")["input_ids"] == turned()("the plot")["input_ids"]

    @pytest.mark.parametrize(
        ("members", "given", "message"),
        [
            ([None, None], [None], "has 1 entries for 2 teachers"),
            ("teacher_probs", "x", "makes the inputs of a model, and the teacher is none"),
            (len, "x", "makes the inputs of a model, and the teacher is none"),
            ([None], "nowhere", "there is no tokenizer or image processor in 'nowhere'"),
        ],
    )
    def test_processors_that_do_not_fit_are_refused(self, members, given, message):
        """A processor that is given and never used."""
        with pytest.raises(ValueError, match=message):
            views_of(members, given, tiny.tokenizer())


class TestAtWork:
    def test_each_kind_of_teacher_becomes_one_at_work(self):
        """A list of one that is taken for an ensemble costs two copies of the logits."""
        model = tiny.bert(1)
        assert isinstance(for_trainer("teacher_probs"), TeacherColumn)
        assert isinstance(for_trainer(lambda batch: batch), TeacherFunction)
        assert isinstance(for_trainer([model]), TeacherModel)
        special = Specialist(tiny.bert(3, **named("red", "dustbin")), 2.0)
        made = for_trainer([special, tiny.bert(2), model], teacher_weights=[1.0, 3.0], teacher_combination="geometric")
        assert isinstance(made, TeacherEnsemble)
        assert [teacher.model for teacher in made.generalists][1] is model
        assert made.combination.weights == (0.25, 0.75)
        assert made.combination.combination == "geometric"
        assert made.combination.specialists == (([0], 2.0),)

    def test_members_are_aligned_by_the_names_of_their_labels(self):
        """Two teachers that number their classes differently, averaged class by class."""
        batch = {"input_ids": torch.randint(5, 20, (2, 4)), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
        plain, reversed_order = tiny.bert(1), tiny.bert(2, **named("blue", "green", "red"))
        made = for_trainer([plain, reversed_order])
        one, other = made(batch).logits
        with torch.no_grad():
            assert torch.equal(one, plain(**batch).logits)
            assert torch.equal(other, reversed_order(**batch).logits.flip(-1))

    def test_a_map_of_labels_is_for_those_that_need_it(self):
        """The member with the student's names is refused for lacking the others'."""
        foreign = tiny.bert(2, **named("bleu", "rouge", "vert"))
        label_map = {"red": "rouge", "green": "vert", "blue": "bleu"}
        made = for_trainer([tiny.bert(1), foreign], teacher_label_map=label_map)
        batch = {"input_ids": torch.randint(5, 20, (2, 4))}
        with torch.no_grad():
            assert torch.equal(made(batch).logits[1], foreign(**batch).logits[:, [1, 2, 0]])

    def test_specialists_end_with_their_dustbin(self):
        """The dustbin read as a class."""
        model = tiny.bert(3, **named("dustbin", "blue", "red"))
        made = for_trainer([tiny.bert(1), Specialist(model)])
        batch = {"input_ids": torch.randint(5, 20, (2, 4))}
        with torch.no_grad():
            assert torch.equal(made(batch).logits[1], model(**batch).logits[:, [1, 2, 0]])
        assert made.combination.specialists[0][0] == [2, 0]

    @pytest.mark.parametrize(
        ("members", "settings", "message"),
        [
            ([named("red", "green", "blue"), named("red", "green")], {}, "^teacher 2 of 2: the teacher has 2 labels"),
            ([named("red", "green", "grey"), named("red", "green", "blue")], {}, "^teacher 1 of 2: "),
            ([named("red", "green")], {}, "^the teacher has 2 labels"),
            ([named("red", "green", "blue")] * 2, {"teacher_weights": [1.0]}, "^got 1 weights for 2 teachers"),
            ([named("red", "green", "blue")], {"teacher_weights": [1.0, 1.0]}, "^teacher_weights is for several"),
        ],
    )
    def test_the_member_that_does_not_fit_is_named(self, members, settings, message):
        """Of five teachers, nobody knows which one."""
        made = [tiny.bert(seed, **names) for seed, names in enumerate(members, start=1)]
        with pytest.raises(ValueError, match=message):
            for_trainer(made, **settings)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (named("red", "grey", "dustbin"), "^teacher 2 of 2: the specialist's 'grey' is no label of the generalist"),
            (named("red", "green"), "^teacher 2 of 2: the specialist has no label named 'dustbin'"),
        ],
    )
    def test_the_specialist_that_does_not_fit_is_named(self, names, message):
        """Specialists count as teachers in the list that the user has written."""
        with pytest.raises(ValueError, match=message):
            for_trainer([tiny.bert(1), Specialist(tiny.bert(2, **names))])

    def test_a_specialist_and_a_student_without_names_are_refused(self):
        """Its classes cannot be found, and would be guessed."""
        student = nn.Linear(4, 3)
        with pytest.raises(ValueError, match="a specialist's classes are found by name"):
            for_trainer([nn.Linear(4, 3), Specialist(nn.Linear(4, 2))], student)

    def test_a_teacher_without_a_stated_processor_is_compared_with_the_students(self):
        """Another vocabulary's ids, read without a word."""
        tiny.bert(1).save_pretrained("one")
        turned().save_pretrained("one")
        members = load_members(["one"], config(), context())
        views = views_of(members, None, tiny.tokenizer())
        where = context(processing_class=tiny.tokenizer())
        with pytest.raises(ValueError, match="does not read the student's inputs as it was trained to"):
            build_source(members, config(), where, None, views)
        stated = views_of(members, turned(), tiny.tokenizer())
        assert isinstance(build_source(members, config(), where, None, stated), TeacherModel)


def test_a_teacher_that_must_tell_two_texts_apart_gets_a_view_where_the_student_does_not():
    """A BERT teacher of a DistilBERT student reads both texts of a pair as the first."""
    without = tiny.tokenizer()
    without.model_input_names = ["input_ids", "attention_mask"]
    members = [tiny.bert(1)]
    assert views_of(members, tiny.tokenizer(), without).of_members == [0]
    assert views_of(members, tiny.tokenizer(), without, ["input_ids", "token_type_ids"]).of_members == [None]
    assert views_of(members, tiny.tokenizer(), tiny.tokenizer()).of_members == [None]
    assert views_of(members, without, tiny.tokenizer()).of_members == [None]
