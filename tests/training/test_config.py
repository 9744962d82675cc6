"""The settings beside those of a script of the user's own."""

from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from hf_distill import DistillationConfig

# The fields of ModelArguments and of DataTrainingArguments in Transformers' own scripts for PyTorch, with those of
# their earlier versions, which are still copied from. Required fields come first.
MODEL: dict[str, dict[str, tuple]] = {
    "run_classification": {
        "model_name_or_path": (str,),
        **{name: (str | None, None) for name in ("config_name", "tokenizer_name", "cache_dir")},
        "use_fast_tokenizer": (bool, True),
        "model_revision": (str, "main"),
        "token": (str, None),
        "use_auth_token": (bool, None),
        "trust_remote_code": (bool, False),
        "ignore_mismatched_sizes": (bool, False),
    },
    "run_xnli": {"language": (str, None), "train_language": (str | None, None), "do_lower_case": (bool | None, False)},
    "run_image_classification": {
        "model_type": (str | None, None),
        "image_processor_name": (str, None),
        "feature_extractor_name": (str, None),
    },
}
MODEL |= {
    "run_glue": MODEL["run_classification"],
    "run_ner": MODEL["run_classification"],
    "run_xnli": {**MODEL["run_classification"], **MODEL["run_xnli"]},
    "run_image_classification": {
        **{name: each for name, each in MODEL["run_classification"].items() if "tokenizer" not in name},
        **MODEL["run_image_classification"],
    },
}
FILES = ("dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file")
COUNTS = ("max_train_samples", "max_eval_samples", "max_predict_samples", "preprocessing_num_workers")
OF_TEXTS: dict[str, tuple] = {
    **{name: (str | None, None) for name in FILES},
    **{name: (int | None, None) for name in COUNTS},
    "max_seq_length": (int, 128),
    "overwrite_cache": (bool, False),
    "pad_to_max_length": (bool, True),
}
SPLITS = ("train_split_name", "validation_split_name", "test_split_name", "remove_splits", "remove_columns")
DATA: dict[str, dict[str, tuple]] = {
    "run_classification": {
        **OF_TEXTS,
        "do_regression": (bool, None),
        **{name: (str | None, None) for name in ("text_column_names", *SPLITS, "label_column_name", "metric_name")},
        "text_column_delimiter": (str | None, " "),
        "shuffle_train_dataset": (bool, False),
        "shuffle_seed": (int, 42),
    },
    "run_glue": {**OF_TEXTS, "task_name": (str | None, None)},
    "run_xnli": {**OF_TEXTS, "server_ip": (str | None, None), "server_port": (str | None, None)},
    "run_image_classification": {
        **{name: (str | None, None) for name in (*FILES[:2], "train_dir", "validation_dir")},
        **{name: (int | None, None) for name in COUNTS[:2]},
        "train_val_split": (float | None, 0.15),
        "image_column_name": (str, "image"),
        "label_column_name": (str, "label"),
    },
    "run_ner": {
        **OF_TEXTS,
        "task_name": (str | None, "ner"),
        **{name: (str | None, None) for name in ("text_column_name", "label_column_name")},
        "label_all_tokens": (bool, False),
        "return_entity_level_metrics": (bool, False),
    },
}


def arguments_class(name: str, of_script: dict[str, tuple]) -> type:
    return make_dataclass(
        name, [(each, kind[0], *(field(default=value) for value in kind[1:])) for each, kind in of_script.items()]
    )


@pytest.mark.parametrize("script", DATA)
def test_it_is_parsed_beside_the_arguments_of_an_example_script(script):
    """A field of the same name as one of the script's: argparse refuses both, and the script does not start."""
    model = arguments_class("ModelArguments", MODEL[script])
    data = arguments_class("DataTrainingArguments", DATA[script])
    given = "--model_name_or_path a/student --trust_remote_code --output_dir out --alpha 0.5 --teacher_dtype bfloat16"
    parsed = HfArgumentParser((model, data, DistillationConfig)).parse_args_into_dataclasses(given.split())
    model_args, _, args = parsed
    assert (model_args.model_name_or_path, model_args.trust_remote_code) == ("a/student", True)
    assert (args.alpha, args.teacher_dtype) == (0.5, "bfloat16")
    assert args.teacher_trust_remote_code is False  # the script's student is not the teacher


def test_its_fields_are_none_of_the_example_scripts():
    """A clash that only one order of the classes, or only one version of the parser, would show."""
    theirs = {name for scripts in (MODEL, DATA) for of_script in scripts.values() for name in of_script}
    assert len(theirs) > 40
    assert not theirs & {each.name for each in fields(DistillationConfig)}


def test_consent_to_run_a_teachers_code_is_parsed_by_its_own_name():
    """The name of the student's consent, which would be the teacher's, too."""

    @dataclass
    class Nothing:
        pass

    parser = HfArgumentParser((Nothing, DistillationConfig))
    args = parser.parse_args_into_dataclasses(["--output_dir", "out", "--teacher_trust_remote_code"])[1]
    assert args.teacher_trust_remote_code is True
    with pytest.raises(TypeError, match="trust_remote_code"):
        DistillationConfig("out", trust_remote_code=True)


def test_pairs_of_layers_can_be_given_on_a_command_line(tmp_path: Path) -> None:
    """A list within a list, which a parser of arguments knows only as a text."""
    command = ["--output_dir", str(tmp_path), "--hidden_weight", "1", "--layer_map", "[[0, 1], [1, -1]]"]
    (parsed,) = HfArgumentParser(DistillationConfig).parse_args_into_dataclasses(command)
    assert parsed.layer_map == [[0, 1], [1, -1]]
    with pytest.raises(ValueError, match=r"layer_map must be .*; got '\[\[0, 1\]'"):
        HfArgumentParser(DistillationConfig).parse_args_into_dataclasses([*command[:-1], "[[0, 1]"])


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, []),
        ({"soft_loss": "dist"}, ["soft"]),
        ({"soft_loss": "dist", "alpha": 1.0}, []),
        ({"feature_weight": 1.0}, []),
        ({"feature_weight": 1.0, "feature_loss": "rkd", "soft_loss": "dist"}, ["soft", "feature"]),
    ],
)
def test_terms_that_depend_on_the_micro_batch_are_named(chosen: dict, expected: list[str], tmp_path: Path) -> None:
    """Results that another batch size would not give, without a word."""
    assert DistillationConfig(str(tmp_path), **chosen).terms_of_micro_batches == expected
