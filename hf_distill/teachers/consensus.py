"""The full distribution that comes closest to what a generalist and specialists say: equation 5 of arXiv 1503.02531."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_WEIGHT = 1e-15
_TOLERANCE = 1e-12
_JITTER = 1e-14
_MAX_STEPS = 60


def closest_distribution(own: Tensor, others: Sequence[Tensor], classes: Sequence[Sequence[int]]) -> Tensor:
    """Minimise equation 5 for rows that have the same active specialists.

    With `c_i` the sum of what the models say of class `i`, dustbins aside, and `d_m` the dustbins, `q` maximises
    `sum_i c_i log q_i + sum_m d_m log sum_{i outside m} q_i`: the likelihood of counts, some of which are only known to
    lie in a set. Classes that are outside of the same specialists share their mass in the ratio of their `c`, so the
    unknowns are one mass for each such group, however many classes there are.

    Args:
        own: `(rows, num_labels)` log-probabilities.
        others: for each specialist `(rows, its classes + 1)` log-probabilities.
        classes: the specialists' classes.

    Returns:
        `(rows, num_labels)`: `log q`.
    """
    outside = torch.ones(len(others), own.shape[-1], dtype=torch.bool, device=own.device)
    possible = ~own.isneginf()
    for m, subset in enumerate(classes):
        outside[m, subset] = False
        possible[:, subset] |= ~others[m][:, :-1].isneginf()
    has_room = possible.to(own.dtype) @ outside.T.to(own.dtype) > 0
    log_c, log_d = own.clone(), own.new_empty(len(own), len(others))
    for m, subset in enumerate(classes):
        log_p = others[m].clone()
        log_p[~has_room[:, m], -1] = -math.inf
        # Of a specialist that says nothing but its dustbin, which has no room, nothing is left: NaN becomes zero.
        log_p = F.log_softmax(log_p, dim=-1).nan_to_num(nan=-math.inf, neginf=-math.inf)
        log_c[:, subset] = torch.logaddexp(log_c[:, subset], log_p[:, :-1])
        log_d[:, m] = log_p[:, -1]
    groups, group_of = torch.unique(outside, dim=1, return_inverse=True)
    log_totals = torch.stack([log_c[:, group_of == g].logsumexp(dim=-1) for g in range(groups.shape[1])], dim=-1)
    if len(others) == 1:  # a dustbin of one group, which gets it
        log_masses = torch.logaddexp(log_totals, log_d.masked_fill(~groups[0], -math.inf))
    else:
        log_masses = _log_group_masses(log_totals, log_d, groups.to(own.dtype))
    shift = torch.where(log_totals.isneginf(), 0.0, log_masses - log_totals)
    return F.log_softmax(log_c + shift[:, group_of], dim=-1)


def _log_group_masses(log_totals: Tensor, log_dustbins: Tensor, outside: Tensor) -> Tensor:
    """Maximise `sum_g c_g log q_g + sum_m d_m log Q_m`, where `Q_m` sums the `q_g` outside of specialist `m`.

    The maximum has `q_g * s_g = c_g` and `u_m * Q_m = d_m` for multipliers `u > 0` and `s = N - outside^T u > 0`, `N`
    the sum of all `c` and `d`. Newton's method for these products, on the way from weights that are 1 too large to the
    true ones (a primal-dual interior-point method), needs about 20 steps. The plain fixed point
    `q = (c + q * outside^T (d / Q)) / N`, expectation maximisation, comes to the same place but not in useful time
    where confident models disagree: after thousands of steps its `q` can still be wrong in the first digit.

    It ends with weights `_SMALLEST_WEIGHT` too large, about what rounding does to sums of probabilities; the value of
    equation 5 is then within 1e-9 of its minimum, mostly within 1e-14. Its place is less certain where all models rule
    out what another is sure of: where nothing but probabilities below `_SMALLEST_WEIGHT` decides between groups, they
    share evenly.

    Returns:
        `(rows, groups)`: the logarithms of the masses, up to a constant for each row.
    """
    c, d = log_totals.exp(), log_dustbins.exp()
    num_specialists, num_groups = outside.shape
    has_c, has_d = ~log_totals.isneginf(), d > 0
    pairs = (outside[:, None] * outside).reshape(-1, num_groups)
    identity = torch.eye(num_specialists, dtype=c.dtype, device=c.device)
    q = (c + 1).masked_fill(~has_c, 0.0)
    u = ((c.sum(-1) + d.sum(-1)) / (2 * num_specialists))[:, None].expand_as(d).masked_fill(~has_d, 0.0)
    s = (c.sum(-1) + d.sum(-1))[:, None] - u @ outside
    excess = 1.0
    for _ in range(_MAX_STEPS):
        c_now, d_now = (c + excess).masked_fill(~has_c, 0.0), (d + excess).masked_fill(~has_d, 0.0)
        divisor = u.masked_fill(~has_d, 1.0)
        diagonal = ((q @ outside.T) / divisor).masked_fill(~has_d, 1.0)
        matrix = ((q / s) @ pairs.T).view(-1, num_specialists, num_specialists) * (has_d[:, None] & has_d[:, :, None])
        matrix = matrix + torch.diag_embed(diagonal)
        right = (d_now / divisor - (c_now / s) @ outside.T).masked_fill(~has_d, 0.0)
        # Dustbins that come to hold the same make it singular, so it is scaled to a diagonal of 1 and that is raised.
        scale = matrix.diagonal(dim1=1, dim2=2).rsqrt()
        factor = torch.linalg.cholesky(
            matrix * scale[:, None] * scale[:, :, None] + _JITTER * num_specialists * identity
        )
        du = scale * torch.cholesky_solve((scale * right)[..., None], factor)[..., 0]
        ds = -du @ outside
        dq = (c_now - q * (s + ds)) / s
        q_shrinks = (-dq / q).masked_fill(~has_c, 0.0)
        shrinks = torch.cat([q_shrinks, (-ds / s).masked_fill(~has_c, 0.0), -du / divisor], dim=-1)
        step = (0.99 / shrinks.amax(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)
        q, s, u = q + step * dq, (s + step * ds).masked_fill(~has_c, 1.0), u + step * du
        if excess == _SMALLEST_WEIGHT and bool((step * dq).abs().max() < _TOLERANCE):
            break
        excess = max(excess / 10, _SMALLEST_WEIGHT)
    # Away from zero the multiplier is exact, and with it the logarithm of the smallest mass.
    return torch.where(s > 1e-6, log_totals - s.clamp(min=1e-6).log(), q.log())
