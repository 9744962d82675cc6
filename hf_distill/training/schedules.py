"""How alpha and temperature move over the training."""

import math
from typing import Literal, get_args

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def scheduled(start: float, end: float | None, step: int, num_steps: int, schedule: Schedule) -> float:
    """Return a setting's value at one step of the training.

    The first step has the start value, the last one the end value; what comes after it, as an evaluation at the end
    does, too. The value depends on the step alone, so that a resumed run goes on with the right one.

    References:
        Annealed temperatures are in Jafari et al., "Annealing Knowledge Distillation", arXiv 2104.07163; the cosine
        form is that of Loshchilov, Hutter, arXiv 1608.03983, equation 5.
    """
    if end is None or schedule == "constant" or num_steps <= 1:
        return start
    progress = min(step / (num_steps - 1), 1.0)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * progress if progress < 1 else end
