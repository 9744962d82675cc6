"""What teachers' licenses say to a student's."""

import pytest

from hf_distill.hub.card.licenses import license_conflict, license_conflicts, student_license


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("apache-2.0", "mit"),
        ("mit", None),
        ("bsd-3-clause", "gpl-3.0"),
        ("cc0-1.0", "apache-2.0"),
        ("cc-by-4.0", "apache-2.0"),
        ("Apache-2.0", "MIT"),
        ("gpl-3.0", "gpl-3.0"),
        ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
    ],
)
def test_a_license_that_allows_it_says_nothing(teacher, student):
    """Warnings on every card, which nobody reads any more."""
    assert license_conflict(teacher, student) is None


@pytest.mark.parametrize(
    ("teacher", "student", "words"),
    [
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "cc-by-nd-4.0 does not allow adapted material to be shared"),
        ("cc-by-nc-nd-3.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-3.0 does not allow adapted material to be shared"),
        ("cc-by-nc-4.0", "apache-2.0", "does not allow commercial use, and the student's license (apache-2.0)"),
        ("cc-by-nc-4.0", None, "does not allow commercial use, and the student's license (no license yet)"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", "is shared under the same license, and the student has cc-by-nc-4.0"),
        (
            "gpl-3.0",
            "mit",
            "gpl-3.0 asks that what is derived is shared under the same license, and the student has mit",
        ),
        ("agpl-3.0", "gpl-3.0", "shared under the same license"),
        ("lgpl-2.1", None, "the student has no license yet"),
        ("cc-by-sa-4.0", "cc-by-4.0", "shared under the same license"),
        ("llama3.1", "llama3.1", "(llama3.1) has terms of its own"),
        ("llama2", "mit", "(llama2) has terms of its own"),
        ("gemma", "mit", "(gemma) has terms of its own"),
        ("bigscience-openrail-m", "mit", "terms of its own"),
        ("openrail++", "mit", "(openrail++) has terms of its own"),
        ("creativeml-openrail-m", "mit", "terms of its own"),
        ("other", "mit", "(other) has terms of its own"),
        ("unknown", "mit", "its license is not known"),
        (None, "mit", "its license is not known"),
        ("a-license-of-tomorrow", "mit", "terms of its own"),
    ],
)
def test_a_license_that_forbids_or_binds_is_told(teacher, student, words):
    """A model published against its teacher's terms, without a word."""
    line = license_conflict(teacher, student)
    assert line is not None
    assert words in line
    assert "\n" not in line


def origin(model=None, license=None, **more) -> dict:
    return {"model": model, "revision": None, "license": license, **more}


NEW, READY = {"config": {"model_type": "bert"}}, {"model": "a/b"}


@pytest.mark.parametrize(
    ("student", "own", "teachers", "expected"),
    [
        (READY, origin("a/b", "mit"), [origin("a/t", "apache-2.0")], "mit"),
        (NEW, origin(), [origin("a/t", "apache-2.0"), origin("a/u", "mit")], "apache-2.0"),
        ({"from_teacher": {"layers": [0]}}, origin("a/t", "gpl-3.0"), [origin("a/t", "gpl-3.0")], "gpl-3.0"),
        (READY, origin("a/b"), [origin("a/t", "apache-2.0")], None),
        (READY, origin("a/b", "unknown"), [origin("a/t", "apache-2.0")], None),
        (NEW, origin(), [origin()], None),
    ],
)
def test_the_students_license_is_that_of_its_weights_else_of_its_teacher(student, own, teachers, expected):
    """Weights under an unknown license published under the teacher's."""
    recipe = {"student": student, "teacher": READY}
    lineage = {"student": own, "teachers": teachers}
    assert student_license(recipe, lineage).get("license") == expected
    assert student_license(recipe, lineage, "bsd") == {"license": "bsd"}


def test_a_license_of_its_own_keeps_its_name():
    """`license: other`, and nobody knows which."""
    own = origin("a/b", "other", license_name="terms", license_link="https://x.example")
    assert student_license({"student": READY, "teacher": READY}, {"student": own, "teachers": []}) == {
        "license": "other",
        "license_name": "terms",
        "license_link": "https://x.example",
    }


def test_each_model_is_objected_to_once_and_new_ones_never():
    """The same line for a teacher and the student made of it; a warning about a model that was made here."""
    recipe = {
        "teacher": [{"model": "a/t"}, {"config": {"model_type": "bert"}}, {"model": "/home/x/local"}],
        "stages": [{"model": "a/t"}],
        "student": {"model": "a/t"},
    }
    lineage = {
        "teachers": [origin("a/t", "cc-by-nc-4.0"), origin(), origin()],
        "stages": [origin("a/t", "cc-by-nc-4.0")],
        "student": origin("a/t", "cc-by-nc-4.0"),
    }
    first, second = license_conflicts(recipe, lineage, "mit")
    assert first.startswith("teacher `a/t`: cc-by-nc-4.0")
    assert second.startswith("teacher `local`: its license is not known")
    assert license_conflicts(recipe, {}, "mit") == []
