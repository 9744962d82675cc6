"""One card for every student: `CardInfo`, filled from a run's results or by a trainer, goes into one template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_distill.hub.card.origins import Origins
from hf_distill.hub.card.parts import TEMPLATE, base_model_fields, license_fields, license_words, table


@dataclass(frozen=True)
class CardInfo:
    """What a card tells; what is None, or empty, is left out.

    Attributes:
        title: of the page.
        model_name: in the metadata.
        origins: where teacher, student and data come from.
        license: the student's; see `licenses.student_license`.
        license_conflicts: what the teachers' licenses forbid, a line each.
        tasks: the Hub's names; the first is the card's.
        datasets: Hub ids.
        metrics: their names.
        tags: the Hub's.
        eval_results: for the model-index.
        language: codes such as `en`.
        results: a table in Markdown.
        summary: of the results, in sentences.
        lineage: a table in Markdown.
        making: how it was made, by rows of a table.
        usage: snippets.
        limits: a line each.
        plot: the name of a picture, and `plot_words` what it shows.
        is_distilled: it has a teacher.
        of_run: what only a run knows: `per_class`, `meant_for`, `num_eval_rows`, `eval_split`, `moment`, `seed`,
            `has_baseline`, `command`, `shortened` and `code_of_others`.
    """

    title: str
    model_name: str
    origins: Origins
    license: Mapping[str, str]
    license_conflicts: Sequence[str]
    tasks: Sequence[str]
    datasets: Sequence[str]
    metrics: Sequence[str]
    tags: Sequence[str]
    eval_results: list[EvalResult]
    results: str | None
    summary: str
    lineage: str
    making: Sequence[tuple[str, str]]
    usage: str | None
    limits: Sequence[str]
    language: Sequence[str] = ()
    plot: str | None = None
    plot_words: str = "Losses of teacher, student and baseline by epoch"
    is_distilled: bool = True
    of_run: Mapping[str, Any] = field(default_factory=dict)


def card(info: CardInfo) -> ModelCard:
    """Make the card of a student."""
    metadata = ModelCardData(
        **license_fields(info.license),
        language=[*info.language] or None,
        library_name="peft" if info.origins.is_adapter else "transformers",
        pipeline_tag=next(iter(info.tasks), None),
        datasets=[*info.datasets] or None,
        metrics=[*info.metrics] or None,
        tags=list(dict.fromkeys(info.tags)),
        model_name=info.model_name,
        eval_results=info.eval_results or None,
        **base_model_fields(info.origins),
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        title=info.title,
        task_words=next(iter(info.tasks), "classification").replace("-", " ").capitalize(),
        teacher_words=info.origins.teacher_words if info.is_distilled else None,
        student_words=info.origins.student_words,
        table=info.results,
        summary=info.summary,
        plot=info.plot,
        plot_words=info.plot_words,
        usage=info.usage,
        lineage=info.lineage,
        making=table(info.making),
        license=license_words(info.license, list(info.license_conflicts)),
        limits="\n".join(f"- {line}" for line in info.limits),
        **info.of_run,
    )
