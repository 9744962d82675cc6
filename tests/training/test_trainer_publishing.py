"""The cards and the pushes of `DistillationTrainer`, against a Hub of our own."""

import contextlib
import inspect
import io
import logging
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from huggingface_hub import CommitInfo, ModelCard, snapshot_download
from local_hub.server import LocalHub
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Trainer, TrainerCallback, pipeline
from transformers.utils import logging as transformers_logging

from hf_distill import DistillationConfig, DistillationTrainer, Specialist, student_from_teacher
from hf_distill.evaluation.curves import PLOT
from hf_distill.hub import client as asking
from hf_distill.hub.card.trainer_card import Stated, trainer_card
from hf_distill.hub.readme import BEGIN, END
from hf_distill.models import MLPConfig, MLPForImageClassification
from hf_distill.training.card_info import card_info_of
from hf_distill.training.provenance import Provenance
from hf_distill.training.trainer_hub import TrainerHub

pytest_plugins = ["local_hub.fixture"]

NAME = "ada/student"
SHA = "0123456789abcdef0123456789abcdef01234567"
STUDENT = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
OWN_TEXT = "# My student\n\nWritten by hand: do not touch.\n\n| a | b |\n| - | - |\n| 1 | 2 |\n"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch) -> None:
    monkeypatch.setattr(asking, "PAUSES", (0.0, 0.0))


@pytest.fixture
def warned(caplog, monkeypatch):
    """Return a function that gives the warnings so far."""
    library = transformers_logging.get_logger("hf_distill.training.trainer_hub")
    monkeypatch.setattr(library, "propagate", True)
    monkeypatch.setattr(library, "level", logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def made(student=None, teacher=None, *, rows=None, kind=DistillationTrainer, callbacks=None, **settings: Any) -> Any:
    """Return a trainer that takes four steps, and saves after the second and the fourth."""
    named = {
        name: settings.pop(name) for name in ("eval_dataset", "processing_class", "compute_metrics") if name in settings
    }
    rows = tiny.text_rows(8) if rows is None else rows
    args = {
        "output_dir": "out/student",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "allow_untrained_teacher": True,
        **settings,
    }
    trainer = kind(
        model=tiny.bert(0) if student is None else student,
        teacher=tiny.bert(1, initializer_range=0.3) if teacher is None and args.get("alpha") != 1 else teacher,
        args=DistillationConfig(**args),
        train_dataset=rows,
        callbacks=callbacks,
        **{"processing_class": tiny.tokenizer(), **named},
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def measured(**settings: Any) -> Any:
    """Return a trainer that evaluates whenever it saves."""
    return made(
        **{
            "eval_dataset": tiny.text_rows(6, seed=2),
            "compute_metrics": accuracy,
            "eval_strategy": "steps",
            "eval_steps": 2,
            **settings,
        }
    )


def local(name: str = "README.md") -> str:
    return (Path("out/student") / name).read_bytes().decode()


def write(text: str, name: str = "README.md") -> None:
    path = Path("out/student") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def remote(hub: LocalHub, name: str = "README.md", revision: str = "main") -> str:
    return hub.files(NAME, revision)[name].decode()


def titles(hub: LocalHub, revision: str = "main") -> list[str]:
    """Return the titles of the commits, the oldest first."""
    return [commit.title for commit in reversed(hub.commits(NAME, revision))][1:]


def own_part(readme: str) -> str:
    """Return what is not ours in a README's body."""
    body = readme.split("---\n", 2)[2] if readme.startswith("---\n") else readme
    before, _, rest = body.partition(BEGIN)
    return before + rest.partition(END)[2]


# ---- Pushes of a training ----


class TestStrategies:
    @pytest.mark.parametrize(
        ("strategy", "during", "folders"),
        [
            ("end", [], []),
            ("every_save", ["step 2", "step 4"], []),
            ("checkpoint", ["step 2", "step 4"], ["last-checkpoint"]),
            ("all_checkpoints", ["step 2", "step 4"], ["checkpoint-2", "checkpoint-4"]),
        ],
    )
    def test_what_is_on_the_hub_is_what_the_strategy_says(self, hub, strategy, during, folders):
        """Pushes that are missing, made twice or in halves; a card that only the last push brings."""
        trainer = measured(push_to_hub=True, hub_strategy=strategy, hub_always_push=True, hub_token=hub.token)
        trainer.train()
        expected = [f"Training in progress, {place}" for place in during]
        assert titles(hub) == expected
        readmes = [commit.files["README.md"].content.decode() for commit in hub.commits(NAME)[:-1]]
        assert all(BEGIN in readme for readme in readmes)
        if during:
            assert "after step 2 of 4" in readmes[-1]
        trainer.push_to_hub()  # the student of step 4 may be there already
        assert titles(hub) == (expected or ["End of training"])
        card = {"README.md", PLOT, ".gitattributes"}
        checkpoints = {f"{folder}/{name}" for folder in folders for name in STUDENT | STATE}
        assert set(hub.files(NAME)) == STUDENT | card | checkpoints
        assert local() == remote(hub)
        assert not list(Path("out/student").glob("_*"))  # nothing is left of what was pushed from

    def test_no_commit_holds_halves_of_two_steps(self, hub):
        """A reader who loads weights of one step with the optimizer of another."""
        trainer = made(push_to_hub=True, hub_strategy="checkpoint", hub_always_push=True)
        trainer.train()
        pushed = hub.commits(NAME)[:-1]
        assert len(pushed) == 2
        for commit in pushed:
            files = {path: file.content for path, file in commit.files.items()}
            step = commit.title.split()[-1]
            assert files["model.safetensors"] == files["last-checkpoint/model.safetensors"]
            checkpoint = Path(f"out/student/checkpoint-{step}")
            assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
            assert f'"global_step": {step},' in files["last-checkpoint/trainer_state.json"].decode()

    def test_a_checkpoint_may_be_deleted_before_its_push_has_ended(self, hub, warned):
        """A push that fails because `save_total_limit` has deleted what it reads."""
        released = threading.Event()
        hub.fault("preupload", lambda: released.wait(30))

        class Release(TrainerCallback):
            def on_train_end(self, *_: Any, **__: Any) -> None:
                assert not Path("out/student/checkpoint-2").exists()
                released.set()

        trainer = made(
            push_to_hub=True, hub_strategy="checkpoint", hub_always_push=True, save_total_limit=1, callbacks=[Release()]
        )
        trainer.train()
        assert titles(hub) == ["Training in progress, step 2", "Training in progress, step 4"]
        assert not warned()
        assert not list(Path("out/student").glob("_*"))

    def test_a_push_is_left_out_while_another_is_under_way(self, hub):
        """A queue of pushes that grows faster than the Hub takes them."""
        released = threading.Event()
        hub.fault("preupload", lambda: released.wait(30))

        class Release(TrainerCallback):
            def on_train_end(self, *_: Any, **__: Any) -> None:
                released.set()

        made(push_to_hub=True, callbacks=[Release()]).train()
        assert titles(hub) == ["Training in progress, step 2"]

    def test_a_push_that_fails_does_not_stop_the_training(self, hub, warned):
        """Hours of training lost to a Hub that is down, or a failure that nobody hears of."""
        trainer = made(push_to_hub=True, hub_always_push=True, hub_token=hub.token)
        hub.fault("commit", 403, times=None)
        trainer.train()
        assert trainer.state.global_step == 4
        assert titles(hub) == []
        assert len(warned()) == 2
        assert "the push 'Training in progress, step 2' failed" in warned()[0]
        assert hub.token not in str(warned())

    def test_it_goes_on_at_the_checkpoint_of_the_hub(self, hub):
        """A checkpoint on the Hub from which nothing can be resumed, for want of a file that was not pushed."""

        class Stop(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = state.global_step == 2

        whole = made(output_dir="whole", save_strategy="no")
        whole.train()
        made(push_to_hub=True, hub_strategy="checkpoint", callbacks=[Stop()]).train()
        shutil.rmtree("out")
        folder = snapshot_download(NAME)
        resumed = made(output_dir="elsewhere", save_strategy="no")
        resumed.train(resume_from_checkpoint=f"{folder}/last-checkpoint")
        assert resumed.state.global_step == 4
        for name, weights in whole.model.state_dict().items():
            assert torch.equal(weights, resumed.model.state_dict()[name]), name

    def test_a_pushed_checkpoint_does_not_name_folders_of_this_machine(self, hub, tmp_path):
        """The user's home folder in trainer_state.json, for all to read."""
        trainer = measured(
            output_dir=str(tmp_path / "out/student"),
            push_to_hub=True,
            hub_strategy="all_checkpoints",
            hub_always_push=True,
            load_best_model_at_end=True,
        )
        trainer.train()
        assert str(tmp_path) in str(trainer.state.best_model_checkpoint)
        trainer.push_to_hub()
        files = hub.files(NAME)
        assert '"best_model_checkpoint": "checkpoint-' in files["checkpoint-4/trainer_state.json"].decode()
        assert not [path for path, content in files.items() if str(tmp_path).encode() in content]

    def test_a_checkpoint_replaces_the_last_one_whole(self, hub):
        """A shard of other weights, or the random state of a process more, that stays beside the new checkpoint."""
        hub.write(NAME, {"last-checkpoint/rng_state_1.pth": b"old", "last-checkpoint/training_args.bin": b"old"})
        made(push_to_hub=True, hub_strategy="checkpoint").train()
        inside = {path.split("/")[1] for path in hub.files(NAME) if path.startswith("last-checkpoint/")}
        assert inside == STUDENT | STATE


# ---- A push at any time ----


class TestPush:
    def test_a_pushed_student_answers_as_the_local_one(self, hub):
        """A repository that lacks what `pipeline` needs, or holds other weights."""
        trainer = made()
        trainer.train()
        commit = trainer.push_to_hub()
        assert isinstance(commit, CommitInfo)
        assert commit.oid == hub.commits(NAME)[0].oid
        assert commit.commit_url == f"{hub.url}/{NAME}/commit/{commit.oid}"
        here = pipeline("text-classification", model="out/student", top_k=None)("the film was great")
        shutil.rmtree("out")
        assert pipeline("text-classification", model=NAME, top_k=None)("the film was great") == here

    def test_it_takes_what_the_parent_takes(self):
        """A keyword of `Trainer` that is an error here."""
        for name in ("create_model_card", "push_to_hub", "init_hf_repo", "save_model"):
            ours, parents = (inspect.signature(getattr(each, name)) for each in (DistillationTrainer, Trainer))
            assert list(ours.parameters) == list(parents.parameters), name
        passed_on = {"create_model_card": TrainerHub.write_card, "push_to_hub": TrainerHub.push}
        for name, method in passed_on.items():
            assert list(inspect.signature(method).parameters) == list(
                inspect.signature(getattr(Trainer, name)).parameters
            )
            defaults = [[each.default for each in signature.parameters.values()] for signature in (ours, parents)]
            assert defaults[0] == defaults[1], name

    def test_without_waiting_it_returns_a_future(self, hub):
        """A caller who asks `result()` of a string; a folder that is written anew while it is being read."""
        trainer = made()
        released = threading.Event()
        hub.fault("preupload", lambda: released.wait(30))
        future = trainer.push_to_hub(blocking=False, commit_message="Later")
        assert not future.done()
        threading.Timer(0.2, released.set).start()
        trainer.save_model()
        assert future.done()
        assert future.result().oid == hub.commits(NAME)[0].oid
        assert titles(hub) == ["Later"]

    def test_what_fails_without_waiting_is_raised_by_the_future_and_logged(self, hub, warned):
        """A failure that nobody hears of."""
        trainer = made()
        trainer.init_hf_repo()
        hub.fault("commit", 403, times=None)
        with pytest.raises(ValueError, match="403"):
            trainer.push_to_hub(blocking=False).result()
        assert "the push 'End of training' failed" in warned()[0]

    def test_a_private_repository_is_made_private(self, hub):
        """A student that the whole world sees."""
        made().push_to_hub(private=True)
        assert hub.repo(NAME).private
        made(hub_model_id="ada/other", hub_private_repo=True, push_to_hub=True)
        assert hub.repo("ada/other").private

    def test_a_public_repository_is_refused_where_a_private_one_was_asked_for(self, hub):
        """The same, because somebody had made the repository before."""
        made().push_to_hub()
        with pytest.raises(ValueError, match="already and public"):
            made(hub_private_repo=True).push_to_hub()
        assert len(titles(hub)) == 1

    def test_a_branch_is_made_and_main_stays_as_it_is(self, hub):
        """A push to a branch that fails because it is not there, or goes to main."""
        made().push_to_hub(revision="four-steps")
        assert set(hub.files(NAME, "four-steps")) > STUDENT
        assert titles(hub) == []
        made(hub_revision="of-the-training", push_to_hub=True, max_steps=2).train()
        assert titles(hub, "of-the-training") == ["Training in progress, step 2"]
        assert titles(hub) == []

    def test_the_name_may_be_in_full_or_in_part_or_that_of_the_folder(self, hub):
        """A name without namespace that ends up elsewhere in the card than on the Hub."""
        hub.add_user("bob", orgs=["lab"])
        token = hub.add_user("eve", orgs=["lab"])
        made(hub_model_id="lab/small").push_to_hub(token=token)
        assert 'model="lab/small"' in hub.files("lab/small")["README.md"].decode()
        made(hub_model_id="mine").push_to_hub()
        assert 'model="ada/mine"' in hub.files("ada/mine")["README.md"].decode()

    def test_a_second_push_of_the_same_makes_no_commit(self, hub):
        """A history full of commits in which nothing changes."""
        trainer = made()
        first = trainer.push_to_hub()
        assert trainer.push_to_hub().oid == first.oid
        assert len(titles(hub)) == 1

    def test_a_push_whose_answer_was_lost_is_not_made_twice(self, hub):
        """Two commits for one push."""
        hub.fault("commit", "lost")
        commit = made().push_to_hub()
        assert titles(hub) == ["End of training"]
        assert commit.oid == hub.commits(NAME)[0].oid

    def test_a_repository_that_cannot_be_made_is_an_error_with_a_remedy(self, hub):
        """A traceback of the client's in place of what the user can do."""
        with pytest.raises(ValueError, match="the token of eve may only read: make one that may write"):
            made(push_to_hub=True, hub_token=hub.add_user("eve", role="read"))
        with pytest.raises(ValueError, match="can be no repository's name"):
            made(output_dir="out/a -- b").push_to_hub()

    def test_shards_and_adapters_of_before_do_not_stay_beside_new_weights(self, hub):
        """Half of the old weights loaded in place of the new."""
        hub.write(
            NAME,
            {
                "model-00001-of-00002.safetensors": b"old",
                "model.safetensors.index.json": b"{}",
                "adapter_config.json": b"{}",
                "notes/model-00001-of-00002.safetensors": b"the user's",
            },
        )
        made().push_to_hub()
        kept = {".gitattributes", "README.md", "notes/model-00001-of-00002.safetensors"}
        assert set(hub.files(NAME)) == STUDENT | kept


# ---- Snippets ----


def run_snippets(readme: str) -> str:
    """Run what a card says that a reader may run; return what it prints."""
    snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert snippets
    printed = io.StringIO()
    for snippet in snippets:
        with contextlib.redirect_stdout(printed):
            exec(snippet, {})
    return printed.getvalue()


class TestSnippets:
    @pytest.mark.parametrize("kind", ["single", "multi", "regression"])
    def test_they_run_as_they_stand(self, hub, kind):
        """A card whose first line fails, or that picks one label where there are several or none."""
        problem = {"multi": "multi_label_classification", "regression": "regression"}.get(kind)
        models = [tiny.bert(seed, problem_type=problem) for seed in (0, 1)]
        made(*models, rows=tiny.text_rows(8, kind)).push_to_hub()
        printed = run_snippets(remote(hub))
        if kind == "single":
            assert printed.splitlines()[-1] in ("red", "green", "blue")
        else:
            assert printed.splitlines()[-1].startswith("[")

    def test_those_of_an_adapter_load_its_base(self, hub):
        """An adapter on the base of another name, or without its labels."""
        tiny.bert(0).push_to_hub("ada/base")
        trainer = made(adapted("ada/base"))
        trainer.push_to_hub()
        assert ModelCard(remote(hub)).data.base_model == "ada/base"
        assert f'revision="{hub.commits("ada/base")[0].oid}"' in remote(hub)
        assert run_snippets(remote(hub)).splitlines()[0] in ("red", "green", "blue")

    def test_of_a_student_whose_code_comes_with_it(self, hub):
        """An architecture that a reader's Transformers does not know."""
        images = [{"pixel_values": torch.randn(3, 8, 8), "labels": torch.tensor(place % 3)} for place in range(8)]
        config = MLPConfig(image_size=8, num_channels=3, hidden_sizes=[8], **tiny.labels())
        made(MLPForImageClassification(config), tiny.vit(1), rows=images, processing_class=None).push_to_hub()
        assert "import hf_distill.models" in remote(hub)
        assert "No image processor was saved with it" in remote(hub)
        assert "mlp.py" in hub.files(NAME)
        run_snippets(remote(hub))


# ---- What goes out ----


class TestSecrets:
    def test_the_token_is_in_no_file_here_or_on_the_hub(self, hub):
        """The user's token in training_args.bin, which `Trainer` pushes for all to read."""
        trainer = made(push_to_hub=True, hub_strategy="all_checkpoints", hub_always_push=True, hub_token=hub.token)
        trainer.train()
        trainer.save_model()
        trainer.save_model("elsewhere")
        assert trainer.args.hub_token == hub.token
        here = [path for folder in ("out", "elsewhere") for path in Path(folder).rglob("*") if path.is_file()]
        assert {"training_args.bin", "trainer_state.json", "README.md"} < {path.name for path in here}
        assert not [path for path in here if hub.token.encode() in path.read_bytes()]
        contents = [(path, file.content) for commit in hub.commits(NAME) for path, file in commit.files.items()]
        assert not [path for path, content in contents if hub.token.encode() in content]
        saved = torch.load("out/student/training_args.bin", weights_only=False)
        assert (saved.hub_token, saved.alpha) == (None, 0.1)

    def test_neither_pickles_nor_logs_nor_what_the_teacher_has_said_go_out(self, hub):
        """Code that runs where somebody loads it, names of this machine, gigabytes of logits."""
        out = ["training_args.bin", "weights.pt", "runs/events.out.tfevents.1.host", ".secret.json", "_draft.md"]
        out += ["checkpoint-2/config.json", "last-checkpoint/config.json", "logits/key.json", "logits/a.safetensors"]
        for name in out:
            write("{}", name)
        write("# Notes\n", "notes/more.md")
        write("not really a picture", "notes/figure.png")
        hub.write(NAME, {"training_args.bin": b"of plain Trainer"})
        made(precompute_teacher_logits=True, teacher_logits_dir="out/student/logits").push_to_hub()
        kept = {"notes/more.md", "notes/figure.png", ".gitattributes", "README.md"}
        assert set(hub.files(NAME)) == STUDENT | kept
        assert set(out) <= {str(path.relative_to("out/student")) for path in Path("out/student").rglob("*")}

    def test_a_key_or_a_path_in_a_file_stops_the_push(self, hub, tmp_path):
        """What a user would have to revoke, or be ashamed of, in a public repository."""
        trainer = made(hub_token=hub.token)
        write(f'{{"key": "{hub.token}"}}', "extra.json")
        with pytest.raises(
            ValueError, match=r"push stopped, secrets found: .*extra.json, line 1: the token in use"
        ) as raised:
            trainer.push_to_hub()
        assert hub.token not in str(raised.value)
        write(f'{{"data": "{tmp_path}/rows.csv"}}', "extra.json")
        with pytest.raises(ValueError, match="a folder of this machine"):
            trainer.push_to_hub()
        assert titles(hub) == []

    def test_users_may_write_paths_into_their_readme_but_no_keys(self, hub):
        """A push that is refused for `/home/user/data` in an instruction; one that publishes a token all the same."""
        write("Put your rows into /home/user/data.\n")
        trainer = made()
        trainer.push_to_hub()
        assert "/home/user/data" in remote(hub)
        write(local().replace("/home/user/data", hub.token))
        with pytest.raises(ValueError, match=r"README\.md, line \d+: the token in use"):
            trainer.push_to_hub()
        assert hub.token not in remote(hub)


# ---- Users' own words ----


class TestReadme:
    def test_ten_pushes_leave_the_users_text_as_it_was(self, hub):
        """What `Trainer` does: README.md is written anew at each push."""
        own = f"---\nlicense: mit\nlanguage: en\n---\n{OWN_TEXT}"
        write(own)
        trainer = made()
        for number in range(10):
            trainer.push_to_hub(tags=f"push-{number}")
            assert own_part(local()) == own_part(remote(hub))
            assert own_part(local()).strip() == OWN_TEXT.strip()
            assert "license: mit\nlanguage: en\n" in local()
            assert local().count(BEGIN) == 1
        assert len(titles(hub)) == 10
        assert "push-9" in local()
        assert "push-8" not in local()

    def test_text_that_is_only_on_the_hub_stays_there_and_comes_here(self, hub):
        """A model card that somebody has written on the website, gone at the next push."""
        hub.write(NAME, {"README.md": b"---\nlicense: apache-2.0\n---\n" + OWN_TEXT.encode()})
        made().push_to_hub(license="mit")
        assert own_part(remote(hub)).strip() == OWN_TEXT.strip()
        assert local() == remote(hub)
        assert ModelCard(remote(hub)).data.license == "apache-2.0"
        assert "`apache-2.0`." in remote(hub)  # what the card says of the license is about the user's

    def test_text_of_the_hub_stays_and_text_of_this_side_is_added(self, hub):
        """Two people's work, of which one is lost."""
        write(OWN_TEXT)
        trainer = made()
        trainer.push_to_hub()
        hub.write(NAME, {"README.md": remote(hub).replace("by hand", "by hand, there").encode()})
        write(local() + "\nAnd more.\n")
        for _ in range(2):
            trainer.push_to_hub()
            assert local() == remote(hub)
            for line in ("by hand, there", "Written by hand: do not touch.", "And more.", "| 1 | 2 |"):
                assert remote(hub).count(line) == 1

    def test_what_somebody_writes_during_a_push_is_kept(self, hub):
        """A commit on top of one that the push has not seen."""
        write(OWN_TEXT)
        edit = OWN_TEXT.replace("by hand", "by another hand").encode()
        hub.fault("commit", lambda: hub.write(NAME, {"README.md": edit, "data.txt": b"more"}, author="bob"))
        trainer = made()
        trainer.push_to_hub()
        assert "by another hand" in remote(hub)
        assert "data.txt" in hub.files(NAME)
        assert titles(hub) == ["A change", "End of training"]

    def test_a_readme_that_cannot_be_read_is_left_alone(self, hub):
        """A file with broken marks, or no text at all, overwritten."""
        write(f"{BEGIN}\n{BEGIN}\n")
        with pytest.raises(ValueError, match="one line <!-- hf_distill:begin -->"):
            made().push_to_hub()
        assert local() == f"{BEGIN}\n{BEGIN}\n"
        Path("out/student/README.md").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match="not UTF-8"):
            made().create_model_card()
        shutil.rmtree("out")
        hub.write(NAME, {"README.md": f"{END}\n".encode()})
        with pytest.raises(ValueError, match=f"or, on the Hub, {NAME}"):
            made().push_to_hub()
        assert remote(hub) == f"{END}\n"

    def test_a_subclass_may_write_another_card(self, hub):
        """A card of ours where the user has written a whole one."""

        class Mine(DistillationTrainer):
            def create_model_card(self, **_: Any) -> None:
                write(f"---\nlicense: mit\n---\n# {self.state.global_step} steps\n")

        trainer = made(kind=Mine)
        for _ in range(2):
            trainer.push_to_hub()
        assert remote(hub) == "---\nlicense: mit\n---\n# 0 steps\n"


# ---- Adapters ----


def adapted(name: str = "") -> Any:
    kind = transformers.AutoModelForSequenceClassification
    base = kind.from_pretrained(name) if name else tiny.bert(0)
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2))


class TestAdapters:
    def test_the_card_is_ours_and_says_that_it_is_an_adapter(self, hub):
        """PEFT's empty form in front of the card; an adapter that the Hub takes for a whole model."""
        trainer = made(adapted())
        trainer.save_model()
        assert "[More Information Needed]" in local()
        trainer.push_to_hub()
        card = ModelCard(remote(hub))
        assert card.data.library_name == "peft"
        assert "[More Information Needed]" not in remote(hub)
        assert "with an adapter" in remote(hub)
        assert "PeftModel.from_pretrained" in remote(hub)
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} < set(hub.files(NAME))
        assert "training_args.bin" not in hub.files(NAME)

    def test_peft_does_not_write_into_the_users_text(self, hub):
        """A heading and a version that PEFT adds at each save, and its list of tags in place of the user's."""
        own = f"---\ntags: [mine]\n---\n{OWN_TEXT}"
        write(own)
        trainer = made(adapted(), push_to_hub=True, hub_strategy="checkpoint", max_steps=2)
        trainer.train()
        trainer.save_model("elsewhere")
        trainer.push_to_hub()
        assert own_part(local()).strip() == OWN_TEXT.strip()
        assert "PEFT 0" not in local()
        assert ModelCard(local()).data.tags[0] == "mine"
        assert "last-checkpoint/README.md" not in hub.files(NAME)

    def test_a_base_that_is_a_folder_of_this_machine_is_refused(self, hub, tmp_path):
        """An adapter that nobody else can load, with the folder in it."""
        tiny.bert(0).save_pretrained("base")
        with pytest.raises(ValueError, match="base_model_name_or_path is 'base', which nobody else has"):
            made(adapted("base")).push_to_hub()
        assert titles(hub) == []


# ---- The card ----


def student_labels(names: list[str]) -> dict[str, Any]:
    """Name the classes of a model."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}


def card_of(trainer: Any, **stated: Any) -> ModelCard:
    """Return the card that a trainer writes."""
    trainer.create_model_card(**stated)
    return ModelCard(local())


def from_hub(model: Any, name: str) -> Any:
    """Let a model look as if it came from the Hub."""
    model.config._name_or_path, model.config._commit_hash = name, SHA
    return model


class TestCard:
    def test_it_says_what_the_trainer_knows(self):
        """A card that leaves out who taught, how, or how well the student does."""
        trainer = measured(
            student=from_hub(tiny.bert(0), "a/small"),
            teacher=from_hub(tiny.bert(1, initializer_range=0.3), "a/large"),
            alpha=0.3,
            temperature=2.0,
            temperature_end=1.0,
            schedule="linear",
            learning_rate=1e-3,
            seed=7,
        )
        trainer.train()
        card = card_of(trainer)
        found = trainer.evaluate()
        assert card.data.base_model == ["a/large", "a/small"]
        assert card.data.pipeline_tag == "text-classification"
        assert {"knowledge-distillation", "distillation"} < set(card.data.tags)
        text = card.text
        assert "distilled with hf_distill from `a/large` into `a/small`" in text
        assert f"[{SHA[:12]}](https://huggingface.co/a/large/tree/{SHA})" in text
        assert "0.3 x label loss + 0.7 x T^2 KL(teacher / T, student / T), T = 2.0 to 1.0, linear schedule" in text
        assert "learning_rate 0.001" in text
        assert "Measured after step 4 of one run (seed 7)." in text
        assert f"| 6 | {found['eval_accuracy']:.4f} |" in text
        assert "The teacher on the evaluation rows: accuracy" in text
        assert "| training rows | 8 |" in text
        assert f"]({PLOT})" in text
        assert (Path("out/student") / PLOT).read_bytes().startswith(b"\x89PNG")
        assert "No baseline was trained" in text
        for word in ("| None", "baseline |", "recipe.yaml", "hf-distill train", "hub_", "output_dir"):
            assert word not in text

    def test_every_keyword_reaches_the_card(self):
        """A keyword that is taken and forgotten."""
        trainer = measured()
        trainer.train()
        card = card_of(
            trainer,
            language=["en", "fr"],
            license="mit",
            tags=["mine", "distillation"],
            model_name="Little one",
            finetuned_from="a/start",
            tasks="text-classification",
            dataset_tags="a/reviews",
            dataset="Reviews",
            dataset_args="short",
        )
        data = card.data
        assert (data.language, data.license, data.base_model) == (["en", "fr"], "mit", "a/start")
        assert data.tags.count("distillation") == 1
        assert "mine" in data.tags
        assert data.datasets == ["a/reviews"]
        assert data.model_name == "Little one"
        assert "# Little one" in card.text
        (result,) = data.eval_results
        assert (result.dataset_type, result.dataset_name, result.dataset_args) == ("a/reviews", "Reviews", "short")
        assert (result.metric_type, result.task_type) == ("accuracy", "text-classification")
        assert "into [a/start]" not in card.text.split("## Lineage")[0]
        assert "[a/start](https://huggingface.co/a/start)" in card.text

    def test_what_was_said_once_holds(self, hub):
        """A license that is lost because the next push does not say it again."""
        trainer = made(push_to_hub=True, max_steps=2)
        trainer.create_model_card(license="mit", language="en", model_name="Little one")
        trainer.train()
        trainer.push_to_hub(language="de")
        card = ModelCard(remote(hub))
        assert (card.data.license, card.data.language) == ("mit", ["de"])
        assert "# Little one" in card.text

    def test_numbers_of_other_weights_are_no_results(self):
        """An accuracy in the model-index that the published weights do not have."""

        class Evaluate(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_evaluate = state.global_step == 3

        trainer = measured(eval_strategy="no", save_strategy="no", callbacks=[Evaluate()])
        trainer.train()
        card = card_of(trainer, dataset="Reviews")
        assert "Measured after step 3 of one run (seed 42); the weights are those after step 4." in card.text
        assert card.data.eval_results is None
        assert card.data.metrics is None
        trainer.evaluate()
        assert len(card_of(trainer, dataset="Reviews").data.eval_results) == 1

    def test_the_best_weights_have_the_numbers_of_their_own_step(self):
        """The last evaluation, though the weights are those of an earlier one."""
        scores = iter([2.0, 1.0])
        trainer = measured(
            load_best_model_at_end=True,
            metric_for_best_model="score",
            compute_metrics=lambda _: {"score": next(scores)},
        )
        trainer.train()
        assert trainer.state.best_global_step == 2
        expected = next(e for e in trainer.state.log_history if e["step"] == 2 and "eval_loss" in e)
        text = card_of(trainer).text
        assert "Measured after step 2 of one run" in text
        assert f"{expected['eval_loss']:.4f}" in text
        assert "The checkpoint was chosen on the very rows" in text

    def test_without_an_evaluation_it_says_so(self):
        """A table with nothing in it, or a model-index without results, which the Hub refuses."""
        trainer = made()
        text = card_of(trainer, dataset="Reviews", dataset_tags="a/reviews")
        assert "The student has not been evaluated." in text.text
        assert text.data.eval_results is None
        assert "Measured" not in text.text

    def test_several_evaluation_sets_have_a_row_each(self):
        """Numbers of one set under the name of another."""
        rows = {"easy": tiny.text_rows(3, seed=2), "hard": tiny.text_rows(3, seed=3)}
        trainer = measured(eval_dataset=rows)
        trainer.evaluate()
        card = card_of(trainer, dataset="Reviews")
        history = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
        for name in rows:
            assert f"| {name} | {history[f'eval_{name}_accuracy']:.4f} |" in card.text
        assert card.data.eval_results is None  # of which of the two would it be?

    @pytest.mark.parametrize(
        ("teacher", "words"),
        [
            (lambda: None, "text-classification"),
            (lambda: [from_hub(tiny.bert(1), "a/one"), tiny.distilbert(2)], "2 teachers (`a/one`; a `distilbert`"),
            (lambda: lambda batch: torch.zeros(len(batch["input_ids"]), 3), "from a function into"),
        ],
    )
    def test_it_says_who_teaches(self, teacher, words):
        """A teacher that is left out, or made up."""
        trainer = made(teacher=teacher(), alpha=1.0 if teacher() is None else 0.1)
        text = card_of(trainer).text
        if teacher() is None:
            assert "trained with hf_distill on labels alone" in text
            assert "knowledge-distillation" not in local()
            assert "teacher" not in text.split("## License")[0].replace("teacher_", "")
        else:
            assert words in text

    def test_soft_targets_of_the_data_are_named_as_such(self):
        """A column of soft targets that the card takes for a model."""
        rows = [{**row, "teacher_logits": torch.zeros(3)} for row in tiny.text_rows(8)]
        trainer = DistillationTrainer(
            model=tiny.bert(0), args=made().args, train_dataset=rows, processing_class=tiny.tokenizer()
        )
        text = card_of(trainer).text
        assert "from the column `teacher_logits` of the data" in text
        assert "Who made the soft targets that came with the data" in text

    def test_a_specialist_is_one(self):
        """A teacher of two labels that the card takes for one of all."""
        labels = {"id2label": {0: "red", 1: "dustbin"}, "label2id": {"red": 0, "dustbin": 1}}
        trainer = made(teacher=[tiny.bert(1), Specialist(tiny.bert(2, **labels))])
        assert "(a specialist)" in card_of(trainer).text

    def test_a_teacher_that_was_let_go_is_still_named(self):
        """A card without a teacher, because its soft targets were precomputed."""
        rows = tiny.text_rows(8)
        trainer = made(teacher=from_hub(tiny.bert(1), "a/large"), rows=rows, precompute_teacher_logits=True)
        trainer.precompute_teacher_logits()
        assert trainer.teacher is None
        assert card_of(trainer).data.base_model == "a/large"
        alone = DistillationTrainer(
            model=tiny.bert(0), args=trainer.args, train_dataset=rows, processing_class=tiny.tokenizer()
        )
        assert "`large`" in card_of(alone).text or card_of(alone).data.base_model == "a/large"

    @pytest.mark.parametrize(("kind", "words"), [("multi", "sum over the labels"), ("regression", "squared error")])
    def test_the_objective_is_that_of_the_problem(self, kind, words):
        """A softmax in the formula of a problem that has none, and snippets that pick one label."""
        problem = {"multi": "multi_label_classification", "regression": "regression"}[kind]
        trainer = made(
            tiny.bert(0, problem_type=problem), tiny.bert(1, problem_type=problem), rows=tiny.text_rows(8, kind)
        )
        text = card_of(trainer).text
        assert words in text
        assert "argmax" not in text
        assert "gives one of them to every input" not in text

    def test_no_local_path_is_in_it(self, tmp_path):
        """The user's folders, for all to read."""
        for seed, name in ((0, "small"), (1, "large")):
            tiny.bert(seed).save_pretrained(tmp_path / "secret" / name)
        kind = transformers.AutoModelForSequenceClassification
        student, teacher = (kind.from_pretrained(tmp_path / "secret" / name) for name in ("small", "large"))
        trainer = measured(student=student, teacher=teacher, output_dir=str(tmp_path / "secret/out/student"))
        trainer.create_model_card(
            finetuned_from=str(tmp_path / "secret/base"), dataset=str(tmp_path / "secret/rows"), dataset_tags="a/rows"
        )
        readme = (tmp_path / "secret/out/student/README.md").read_text()
        assert "from `large` into `base`" in readme
        assert "secret" not in readme
        assert str(tmp_path) not in readme

    def test_a_license_that_forbids_is_told_of(self, warned):
        """A student of a teacher whose license does not allow it, published without a word."""
        tiny.bert(1).save_pretrained("teacher")
        Path("teacher/README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
        trainer = made(teacher="teacher")
        for _ in range(2):
            card = card_of(trainer, license="mit")
        assert "**Before you use or publish it**: teacher `teacher`: cc-by-nd-4.0 does not allow" in card.text
        assert len([line for line in warned() if "cc-by-nd-4.0" in line]) == 1

    def test_a_license_that_the_user_has_set_in_the_readme_stays(self, warned):
        """A license that changes because a script passes another."""
        write("---\nlicense: apache-2.0\n---\n")
        card = card_of(made(), license="mit")
        assert card.data.license == "apache-2.0"
        assert "`apache-2.0`." in card.text
        assert "states the license apache-2.0, which stays" in warned()[0]

    def test_snippets_ask_for_no_processor_that_is_not_there(self):
        """A snippet that fails on its first line."""
        text = card_of(made(processing_class=None)).text
        assert "No tokenizer was saved with it" in text
        assert "AutoTokenizer" not in text
        assert "pipeline(" not in text

    def test_layers_of_a_teacher_are_no_model_of_the_hub(self):
        """A student that is said to be its teacher."""
        teacher = from_hub(tiny.bert(1), "a/large")
        assert "into a `bert` (num_hidden_layers 1" in card_of(made(student_from_teacher(teacher, [0]), teacher)).text

    def test_labels_come_in_the_order_of_the_logits(self):
        """A snippet that gives class 2 the name of class 10, as the keys of a config.json are sorted."""
        names = [f"class {place}" for place in range(12)]
        for keys in (map(str, range(12)), sorted(range(12), key=str)):
            student = tiny.bert(0, num_labels=12, id2label=None, label2id=None)
            student.config.id2label = {key: names[int(key)] for key in keys}
            trainer = made(student, tiny.bert(1, **student_labels(names)))
            assert card_info_of(trainer, Provenance.of(trainer), None).data["label_names"] == names

    def test_rows_of_the_hub_are_named_with_their_commit(self):
        """A data set that is known, and left out; or one that is guessed."""
        trainer = measured()
        trainer.evaluate()
        info = card_info_of(trainer, Provenance.of(trainer), None)
        known = {"id": "a/reviews", "revision": SHA, "config": "short"}
        info = replace(info, lineage={**info.lineage, "dataset": known}, data={**info.data, "split": "validation"})
        card = trainer_card(info, Stated("mine"))
        assert card.data.datasets == ["a/reviews"]
        (result,) = card.data.eval_results
        assert (result.dataset_revision, result.dataset_config, result.dataset_split) == (SHA, "short", "validation")
        assert f"https://huggingface.co/datasets/a/reviews/tree/{SHA}" in card.text


# ---- Several processes ----

_IN_EACH_PROCESS = """
import sys
from hf_distill.training.distributed import shutdown_processes
sys.path.insert(0, {tests!r})
import tests.training.test_trainer_publishing as tests
trainer = tests.made(push_to_hub=True, hub_strategy="checkpoint", hub_always_push=True, ddp_backend="gloo")
assert trainer.args.world_size == 2
trainer.train()
commit = trainer.push_to_hub(commit_message="Both", license="mit")
assert (commit is None) == (trainer.args.process_index == 1)
shutdown_processes()
"""


@pytest.mark.slow
def test_of_two_processes_one_pushes(hub):
    """Every commit made twice, or a push that waits for ever for the other process."""
    Path("each.py").write_text(_IN_EACH_PROCESS.format(tests=str(Path(__file__).parents[1])))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "each.py"]
    environment = {**hub.environment, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert titles(hub) == ["Training in progress, step 2", "Training in progress, step 4", "Both"]
    assert {"last-checkpoint/rng_state_0.pth", "last-checkpoint/rng_state_1.pth"} < set(hub.files(NAME))
