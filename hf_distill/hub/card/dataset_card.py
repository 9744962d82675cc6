"""The card of soft targets that are shared as a data set: what they are of, who gave them, how to learn from them."""

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from hf_distill.hub.card.parts import split_words, table, yaml_of

_HUB = "https://huggingface.co"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MOST_LABELS = 50
_TEXT = """\
# {title}

Soft targets of {rows} rows of {data}: the logits of {teachers}, kept with hf_distill so that students can be distilled
from that teacher without running it. There are no rows in this repository, only digests by which they are found.

{info}

## Learn from them

In a recipe for `hf-distill train`, which needs no teacher then (`revision`, in `teacher`, pins a commit):

```yaml
{recipe}
```

In Python, with rows that were made as those were that these are cached for:

```python
{python}
```

Nothing but JSON and safetensors is read. Every file of soft targets is named by its SHA-256 and is checked; `key.json`
says how they were made, and a student whose labels or inputs are others is refused.

## Limits

- They are of the rows named above, prepared in the same way, and of no others; others are refused, with their number.
- They hold the teacher's mistakes. Its license ({license}) may bind what is made with them.
- Whoever has a row can tell by its digest whether its soft targets are here."""


def target_card(
    key: Mapping[str, Any], info: Mapping[str, Any], *, num_rows: int, num_bytes: int, repo_id: str
) -> DatasetCard:
    """Make the card of soft targets."""
    teachers, data = info["teachers"], info["data"]
    names = [_linked(teacher) for teacher in teachers]
    metadata = DatasetCardData(
        pretty_name=f"Soft targets: {repo_id.split('/')[-1]}",
        tags=["hf-distill", "knowledge-distillation", "soft-targets"],
        task_categories=[info["task"]] if info["task"] else None,
        size_categories=[next((name for limit, name in _SIZES if num_rows < limit), "n>1M")],
        viewer=False,  # key.json and teacher.json are no rows
    )
    licenses = dict.fromkeys(str(each["license_name"] or each["license"] or "not known") for each in teachers)
    text = _TEXT.format(
        title=repo_id.split("/")[-1],
        rows=f"{num_rows:,}",
        data=_data_words(data),
        teachers=names[0] if len(names) == 1 else f"{len(names)} teachers ({'; '.join(names)})",
        info=table(_table_rows(key, info, num_rows, num_bytes)),
        recipe=_recipe(info, repo_id),
        python=_python(key, info, repo_id),
        license=", ".join(licenses),
    )
    return DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")


def _table_rows(
    key: Mapping[str, Any], info: Mapping[str, Any], num_rows: int, num_bytes: int
) -> Iterator[tuple[str, str]]:
    data, about = info["data"], key.get("about", {})
    for place, teacher in enumerate(info["teachers"], start=1):
        name = "teacher" if len(info["teachers"]) == 1 else f"teacher {place}"
        commit = f", commit {teacher['revision'][:12]}" if teacher["revision"] else ""
        count = f", {teacher['num_parameters']:,} parameters" if teacher["num_parameters"] else ""
        yield name, f"{_linked(teacher)}{commit}{count}, license {teacher['license'] or 'not known'}"
    names = ("train_split", "eval_split", "test_split")
    splits = [split_words(data[name], data.get("train_split") or "train") for name in names if data.get(name)]
    commit = f", commit {data['revision'][:12]}" if data.get("revision") else ""
    yield "data", f"{_data_words(data)}{commit}" + (f": {', '.join(splits)}" if splits else "")
    if data.get("max_length"):
        yield "tokens kept of a text", str(data["max_length"])
    if info["views"]:
        changes = ", ".join(f"{name} {value}" for name, value in (data.get("augment") or {}).items() if value)
        yield "views of a training row", f"{info['views']} ({changes}; seed {info['seed']})"
    labels = key["labels"] or []
    more = f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
    yield "labels, in the order of the logits", ", ".join(f"`{name}`" for name in labels[:_MOST_LABELS]) + more
    yield "rows", f"{num_rows:,}, alike ones counted once" + (", each token has logits" * (key["level"] == "tokens"))
    yield "size", f"{num_bytes / 2**20:.2f} MiB, {num_bytes / max(num_rows, 1):.0f} bytes a row"
    top_k = key["logits"].get("top_k")
    kept = "all logits" if top_k is None else f"the {top_k} largest logits, and the mass of the others"
    yield "what is kept", f"{kept}, {key['logits']['dtype']}"
    yield "mixed precision of the teacher", key["autocast"] or "none"
    versions = [f"{name} {about[name]}" for name in ("hf_distill", "torch", "transformers") if about.get(name)]
    if versions:
        yield "made with", ", ".join(versions)


def _linked(teacher: Mapping[str, Any]) -> str:
    words, model = str(teacher["words"]), teacher["model"]
    return words if model is None else words.replace(f"`{model}`", f"[{model}]({_HUB}/{model})")


def _data_words(data: Mapping[str, Any]) -> str:
    name = data.get("id")
    if not name:
        return "data that are not on the Hub"
    configuration = f" ({data['name']})" if data.get("name") else ""
    return (f"`{name}`" if ":" in name else f"[{name}]({_HUB}/datasets/{name})") + configuration


def _recipe(info: Mapping[str, Any], repo_id: str) -> str:
    """Write a recipe whose rows are those that have soft targets; who learns is left to the reader."""
    names = (
        "name",
        "revision",
        "train_split",
        "eval_split",
        "test_split",
        "max_train_rows",
        "max_length",
        "background",
    )
    stated = info["data"]
    data = {"dataset": stated.get("id") or "your-name/the-same-data"}
    data |= {name: stated[name] for name in names if stated.get(name) is not None}
    augment = {name: value for name, value in (stated.get("augment") or {}).items() if value}
    recipe: dict[str, Any] = {
        "task": info["task"] or "text-classification",
        "data": {**data, "augment": augment} if augment else data,
        "teacher": {"logits": repo_id},
        "student": {"model": "your-name/small"},
        "training": {"seed": 42 if info["seed"] is None else info["seed"]},  # by which splits and views are drawn
        "output_dir": "runs/student",
    }
    return yaml_of(recipe).rstrip()


def _python(key: Mapping[str, Any], info: Mapping[str, Any], repo_id: str) -> str:
    views = f"    teacher_logits_views={info['views']},\n" if info["views"] else ""
    return f"""\
from huggingface_hub import snapshot_download

from hf_distill import DistillationConfig, DistillationTrainer

patterns = ["key.json", "teacher.json", "*.safetensors"]
folder = snapshot_download("{repo_id}", repo_type="dataset", allow_patterns=patterns)
args = DistillationConfig(
    "student",
    precompute_teacher_logits=True,
    teacher_logits_dir=folder,
{views})
trainer = DistillationTrainer(student, None, args, train_dataset=data, eval_dataset=dev, processing_class=tokenizer)
trainer.train()"""
