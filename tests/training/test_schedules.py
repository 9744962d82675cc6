import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill import DistillationConfig
from hf_distill.training.schedules import scheduled


def config(**settings):
    return DistillationConfig("out", use_cpu=True, **settings)


def test_first_and_last_step_have_the_values_that_were_asked_for():
    """A schedule that stops one step before its end value."""
    for schedule in ("linear", "cosine"):
        values = [scheduled(8.0, 2.0, step, 5, schedule) for step in range(5)]
        assert (values[0], values[-1]) == (8.0, 2.0)
        assert values == sorted(values, reverse=True)
    assert [scheduled(8.0, 2.0, step, 5, "linear") for step in range(5)] == [8.0, 6.5, 5.0, 3.5, 2.0]


def test_the_cosine_is_half_a_wave():
    """Another curve under the same name."""
    values = [scheduled(1.0, 0.0, step, 101, "cosine") for step in (0, 25, 50, 75, 100)]
    assert values == pytest.approx([(1 + math.cos(math.pi * x)) / 2 for x in (0, 0.25, 0.5, 0.75, 1)])


@given(
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    step=st.integers(0, 200),
    num_steps=st.integers(0, 100),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_a_value_never_leaves_the_range_of_its_ends(start, end, step, num_steps, schedule):
    """An alpha below 0 or above 1, by rounding or after the last step."""
    assert min(start, end) <= scheduled(start, end, step, num_steps, schedule) <= max(start, end)


def test_nothing_moves_without_an_end_or_before_the_number_of_steps_is_known():
    """A division by zero when the loss is computed outside of a training."""
    assert scheduled(0.3, None, 7, 10, "linear") == 0.3
    assert scheduled(0.3, 0.9, 7, 10, "constant") == 0.3
    assert scheduled(0.3, 0.9, 0, 0, "linear") == 0.3
    assert scheduled(0.3, 0.9, 0, 1, "cosine") == 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, "schedule linear has no end value to move to: set alpha_end or temperature_end"),
        ({"alpha_end": 0.5}, "alpha_end has no effect with schedule constant: set schedule"),
        ({"temperature_end": 1.0}, "temperature_end has no effect with schedule constant"),
        ({"schedule": "quadratic"}, "schedule must be one of constant, linear, cosine, got 'quadratic'"),
        ({"alpha_end": 1.5, "schedule": "linear"}, r"alpha_end must be in \[0, 1\], got 1.5"),
        ({"temperature_end": 0.0, "schedule": "linear"}, "temperature_end must be > 0, got 0"),
    ],
)
def test_half_a_schedule_is_refused(settings, message):
    """A setting that another setting silently switches off."""
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_teacher_and_labels_are_needed_if_any_step_uses_them():
    """An alpha that starts at 1 and falls: the teacher was never loaded."""
    moving = config(alpha=1.0, alpha_end=0.0, schedule="linear")
    assert moving.uses_teacher
    assert moving.uses_labels
    assert not config(alpha=1.0).uses_teacher
    assert not config(alpha=0.0).uses_labels
    assert config(alpha=0.0, alpha_end=0.1, schedule="cosine").uses_labels
    assert (moving.last_alpha, moving.last_temperature) == (0.0, 4.0)
