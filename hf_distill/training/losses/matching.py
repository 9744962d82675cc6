"""How the inside of a student is compared with its teacher's: one value per row, in single precision."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def relation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None, num_heads: int) -> Tensor:
    """Compare how tokens attend to each other: the relations among queries, among keys and among values.

    Each is split into `num_heads` relation heads of width d; a head's relation of a token is
    `softmax(x x' / sqrt(d))`. The value is the KL divergence of the student's from the teacher's, a mean over heads
    and real tokens, and over the three. The models may have other widths and numbers of attention heads.

    Args:
        student: queries, keys and values `(batch, tokens, width)`.
        teacher: likewise, of another width perhaps; not differentiated.
        mask: `(batch, tokens)`, true for real tokens; None: all are.
        num_heads: divides both widths.

    Returns:
        `(batch,)`.

    References:
        Wang et al., "MiniLMv2", arXiv 2012.15828, equations 5 to 8.
    """
    of_each = []
    for ours, theirs in zip(student, teacher, strict=True):
        log_q, log_p = _log_relations(ours, mask, num_heads), _log_relations(theirs.detach(), mask, num_heads)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean(1)  # (batch, tokens)
        of_each.append(_mean_of_tokens(divergence, mask))
    return torch.stack(of_each).mean(0)


def _log_relations(x: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    heads = _single(x).reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    if mask is not None:  # not -inf: both sides have the same there, and the difference of infinities is none
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)


def _mean_of_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(-1)
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None, kind: str) -> Tensor:
    """Compare hidden states of equal width: the mean squared difference, or one minus the cosine.

    Args:
        student: `(batch, tokens, width)`, or maps `(batch, width, height, width of the map)`, the larger of which are
            averaged over windows.
        teacher: likewise; not differentiated.
        mask: `(batch, tokens)`, true for real tokens; None: all are.
        kind: `mse` or `cosine`.

    Returns:
        `(batch,)`, a mean over real tokens or places.

    References:
        Romero et al., "FitNets", arXiv 1412.6550, equation 3; Sanh et al., arXiv 1910.01108, section 3 (cosine).
    """
    ours, theirs = _single(student), _single(teacher.detach())
    if ours.dim() == 4:
        ours, theirs = (each.flatten(2).transpose(1, 2) for each in _of_one_size(ours, theirs))
    if kind == "cosine":
        return _mean_of_tokens(1 - F.cosine_similarity(ours, theirs, dim=-1), mask)
    return _mean_of_tokens((ours - theirs).square().mean(-1), mask)


def _of_one_size(*maps: Tensor) -> tuple[Tensor, ...]:
    height, width = min(tuple(each.shape[-2:]) for each in maps)
    return tuple(F.adaptive_avg_pool2d(each, (height, width)) for each in maps)


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare where convolutional maps have their energy: the mean square over channels, as a vector of length 1.

    Args:
        student: maps `(batch, channels, height, width)`.
        teacher: likewise; the larger maps are averaged over windows. Not differentiated.

    Returns:
        `(batch,)`: the mean squared difference of the vectors.

    References:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, equation 2, with p = 2.
    """
    energies = (each.square().mean(1, keepdim=True) for each in (_single(student), _single(teacher.detach())))
    ours, theirs = (F.normalize(each.flatten(1), dim=-1) for each in _of_one_size(*energies))
    return (ours - theirs).square().mean(-1)


def feature_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Compare a projection of the student's pooled features with the teacher's, which are normalized.

    Args:
        projected: `(batch, teacher's width)`, by a matrix with orthonormal columns.
        teacher: `(batch, teacher's width)`; not differentiated.

    Returns:
        `(batch,)`: the mean of the smooth L1 distance.

    References:
        Miles, Elezi, Deng, "V_kD: Improving Knowledge Distillation using Orthogonal Projections", arXiv 2403.06213,
        sections 3.1 and 3.2.
    """
    theirs = _single(teacher.detach())
    normalized = F.layer_norm(theirs, theirs.shape[-1:])
    return F.smooth_l1_loss(_single(projected), normalized, reduction="none").mean(-1)


DISTANCE, ANGLE = 25.0, 50.0


def rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the distances and angles among the pooled features of a micro-batch's rows.

    Args:
        student: `(batch, width)`.
        teacher: `(batch, another width)`; not differentiated.

    Returns:
        `(batch,)`, the same for all rows: 25 times the smooth L1 difference of distances, each divided by their mean,
        and 50 times that of the cosines of angles. 0 for a single row.

    References:
        Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, equations 5 to 9; weights 25 and 50 from
        section 4.2.
    """
    ours, theirs = _relations_of_rows(_single(student)), _relations_of_rows(_single(teacher.detach()))
    distance, angle = (F.smooth_l1_loss(a, b) for a, b in zip(ours, theirs, strict=True))
    return (DISTANCE * distance + ANGLE * angle).expand(len(student))


def _relations_of_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    differences = x[:, None] - x[None]
    is_same = torch.eye(len(x), dtype=torch.bool, device=x.device)
    # Where two rows are the same the root has no slope: its gradient is cut off there.
    distances = differences.square().sum(-1).clamp(min=1e-12).sqrt().masked_fill(is_same, 0.0)
    scale = distances.sum() / max(len(x) * (len(x) - 1), 1)
    directions = F.normalize(differences, dim=-1)
    return distances / scale.clamp(min=1e-12), directions @ directions.transpose(-1, -2)
