"""The card of a trainer's student, and its pushes."""

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress, logging

from hf_distill.evaluation.curves import PLOT, student_curves
from hf_distill.hub.card.trainer_card import Stated, Training, license_lines, trainer_card
from hf_distill.hub.destination import Destination
from hf_distill.hub.files import (
    ADAPTER,
    README,
    Outgoing,
    check_adapter_base,
    checkpoint_files,
    left_over,
    student_files,
)
from hf_distill.hub.push import Card, Content, create_repository, push
from hf_distill.hub.readme import merge, read_readme, users_license
from hf_distill.teachers.cache.cache import folder_of
from hf_distill.training.card_info import card_info_of

logger = logging.get_logger(__name__)

_LAST_CHECKPOINT = "last-checkpoint"
_STAGED = "_push-"
_TRIES = 3  # of a push that others' commits get in the way of


class TrainerHub:
    """Writes the card of a `DistillationTrainer`'s student, and pushes it.

    What differs from `Trainer` itself:

    - README.md belongs to the user: the card is a marked section of it, and the rest stays as it is, here and on the
      Hub, where somebody may have written in it meanwhile. Each push writes the card, those of a training too.
    - A push is one commit, so that nobody ever loads weights of one step with the config, or the checkpoint, of
      another. With `hub_strategy` checkpoint or all_checkpoints, the student and its checkpoint are in the same one.
    - Pushed are the files that make the student (safetensors, JSON, texts, and pictures for README.md): no logs, and no
      pickles. Of a checkpoint all is pushed that the training needs to go on; among it are the states of the optimizer,
      the schedule and the random numbers, pickles that `Trainer` loads as plain tensors (`weights_only`).
    - training_args.bin is never pushed, and one that is on the Hub is removed: nothing reads it, it runs code where
      somebody loads it, and it holds this machine's folders. The local one holds no token.
    - Keys in a text, and paths and names of this machine in one that is not README.md, stop a push.
    - What goes wrong with a push in the background is logged as a warning, and the training goes on.
    - A private repository that turns out to be there already, and public, is refused.

    Args:
        trainer: a DistillationTrainer, with `provenance`, noted when it was new.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._stated: dict[str, Any] = {}
        self._card: Card | None = None
        self._warned_of: set[str] = set()
        self._pushes: ThreadPoolExecutor | None = None

    # ---- The card ----

    def write_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of the student, as far as it is trained, into README.md of the output folder.

        Text and metadata of the user's in README.md stay. What was said in an earlier call holds until it is said
        otherwise, so that the pushes of a training say it too. The picture of the training lies beside the card.

        Args:
            language: of the data, such as `en`. It, and all that follows but the names and the license, may be several.
            license: by the Hub's identifier; by default that of what the student was made from, if it is known. One
                that the user has set in README.md stays.
            tags: beside `knowledge-distillation`, `distillation` and `generated_from_trainer`.
            model_name: the title; by default the name of the repository or of the output folder.
            finetuned_from: what the student's weights started from; by default what its config says.
            tasks: the Hub's names; by default that of the student's class.
            dataset_tags: Hub ids of the data sets; by default the one that the rows are known to come from.
            dataset: their names.
            dataset_args: their configurations. With a data set and an evaluation, the card has a model-index.

        Raises:
            ValueError: README.md cannot be read, or its marks are broken; nothing is written then.
        """
        if not self._trainer.is_world_process_zero():
            return
        said = {
            "language": language,
            "license": license,
            "tags": tags,
            "model_name": model_name,
            "finetuned_from": finetuned_from,
            "tasks": tasks,
            "dataset_tags": dataset_tags,
            "dataset": dataset,
            "dataset_args": dataset_args,
        }
        self._stated |= {name: value for name, value in said.items() if value is not None}
        words = {"model_name": self._model_name(), **self._stated}
        training = card_info_of(self._trainer, self._trainer.provenance, words.pop("finetuned_from", None))
        stated = Stated(**words)
        picture = student_curves(training.curve, training.metric)
        repo_id = self._trainer.hub_model_id or self._trainer.args.hub_model_id or ""
        self._card = partial(_card, training, stated, None if picture is None else PLOT)
        self._write_card(partial(self._card, repo_id=repo_id), picture)
        for line in sorted(set(license_lines(training, stated)) - self._warned_of):
            logger.warning(line)
            self._warned_of.add(line)

    def _write_card(self, card: Callable[..., ModelCard], picture: bytes | None) -> None:
        folder = Path(self._trainer.args.output_dir)
        readme = folder / README
        existing = None if self._is_made_by_peft(readme) else read_readme(readme)
        license, wanted = users_license(existing), self._stated.get("license")
        if None not in (license, wanted) and license != wanted:
            logger.warning(f"{readme} states the license {license}, which stays: change it there to have {wanted}")
        text = merge(existing, card(license))
        folder.mkdir(parents=True, exist_ok=True)
        readme.write_bytes(text.encode())
        if picture is None:
            (folder / PLOT).unlink(missing_ok=True)
        else:
            (folder / PLOT).write_bytes(picture)

    def _model_name(self) -> str:
        named = self._trainer.hub_model_id or self._trainer.args.hub_model_id
        return named.split("/")[-1] if named else Path(self._trainer.args.output_dir).absolute().name

    def _is_made_by_peft(self, readme: Path) -> bool:
        """Tell whether a README.md is the form that PEFT lays beside an adapter, in which nobody has written."""
        model: Any = self._trainer.accelerator.unwrap_model(self._trainer.model)
        if not hasattr(model, "create_or_update_model_card") or not readme.is_file():
            return False
        with tempfile.TemporaryDirectory() as folder:
            model.create_or_update_model_card(folder)
            return (Path(folder) / README).read_bytes() == readme.read_bytes()

    # ---- Pushing ----

    def create_repository(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository that the student goes to, if there is none.

        Args:
            token: the user's, by default `args.hub_token`, or that of the last login.
            private: whether it is made private, by default `args.hub_private_repo`.

        Raises:
            ValueError: the Hub did not make it, or it is public and should be private; the message has the remedy.
        """
        if not self._trainer.is_world_process_zero():
            return
        named = self._trainer.args.hub_model_id
        self._trainer.hub_model_id = create_repository(
            Path(self._trainer.args.output_dir).absolute().name if named is None else named,
            private=private if private is not None else self._trainer.args.hub_private_repo,
            token=token if token is not None else self._trainer.args.hub_token,
        )
        self._trainer.push_in_progress = None
        delete_staged(Path(self._trainer.args.output_dir))

    def push(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Push the student and its processor with a card, in one commit, to `args.hub_model_id`.

        The card is that of `create_model_card`, in README.md of the output folder and of the repository: what users
        have written in either stays, and is in both afterwards.

        Args:
            commit_message: its title.
            blocking: wait until it is done; if not, what goes wrong is raised by `result()` of what is returned.
            token: the user's, by default `args.hub_token`, or that of the last login.
            revision: the branch, made if it is not there; by default `args.hub_revision`, or main.
            private: whether a repository that is made now is private, by default `args.hub_private_repo`.
            **kwargs: for `create_model_card`.

        Returns:
            the commit, or what comes to hold it; None in all processes but the main one.

        Raises:
            ValueError: there is something in the files that must not be published, or the Hub did not take them; the
                message has the remedy. The output folder holds the student in any case.
        """
        self._trainer.callback_handler.on_push_begin(self._trainer.args, self._trainer.state, self._trainer.control)
        token = token if token is not None else self._trainer.args.hub_token
        if self._trainer.hub_model_id is None:
            self.create_repository(token=token, private=private)
        self._trainer.save_model(_internal_call=True)
        if not self._trainer.is_world_process_zero():
            return None
        tags = kwargs.pop("tags", None) or []
        tags = [*([tags] if isinstance(tags, str) else tags), *(getattr(self._trainer.model, "model_tags", None) or [])]
        self._renew_card(tags=tags or None, **kwargs)
        files = student_files(self._output_dir, left_out=[folder_of(self._trainer.args)])
        job = self._job(commit_message or "End of training", files, token=token, revision=revision)
        return job() if blocking else self._in_background(partial(_warned, job, commit_message or "End of training"))

    def push_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the student of a checkpoint that was saved just now, and the checkpoint if `hub_strategy` says so."""
        strategy = self._trainer.args.hub_strategy
        if not self._trainer.is_world_process_zero() or strategy == HubStrategy.END:
            return
        is_busy = self._trainer.push_in_progress is not None and not self._trainer.push_in_progress.is_done()
        if is_busy and not self._trainer.args.hub_always_push:
            return
        self._trainer.callback_handler.on_push_begin(self._trainer.args, self._trainer.state, self._trainer.control)
        by_step = self._trainer.args.save_strategy == SaveStrategy.STEPS
        place = f"step {self._trainer.state.global_step}" if by_step else f"epoch {int(self._trainer.state.epoch or 0)}"
        title, output, replaced = f"Training in progress, {place}", Path(self._trainer.args.output_dir), ""
        try:
            self._renew_card()
            staged = stage(Path(checkpoint_folder), output)
        except (ValueError, OSError) as error:
            logger.warning(f"the push {title!r} failed: {error}")
            return
        files = student_files(staged)
        files += [Outgoing(PLOT, (output / PLOT).read_bytes())] if (output / PLOT).is_file() else []
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            replaced = _LAST_CHECKPOINT if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            files += checkpoint_files(staged, replaced)
        job = self._job(title, files, replaced=replaced, token=self._trainer.args.hub_token)
        self._in_background(partial(_warned, job, title, staged))

    def _renew_card(self, **kwargs: Any) -> None:
        # Through the public method, as in the parent: a subclass may write another card, which then goes out as it is.
        self._card = None
        name = kwargs.pop("model_name", None) or self._stated.get("model_name") or self._model_name()
        self._trainer.create_model_card(model_name=name, **kwargs)

    @property
    def _output_dir(self) -> Path:
        return Path(self._trainer.args.output_dir)

    def _job(
        self, title: str, files: list[Outgoing], *, token: str | None, revision: str | None = None, replaced: str = ""
    ) -> Callable[[], CommitInfo]:
        for file in files:
            if file.path_in_repo.split("/")[-1] == ADAPTER:
                check_adapter_base(file, file.path_in_repo)
        readme = self._output_dir / README
        here = read_readme(readme)
        names = getattr(getattr(self._trainer.student, "config", None), "id2label", None) or {}
        content = Content(
            title,
            files,
            self._output_dir,
            self._card,
            readme=here,
            public=list(map(str, names.values())),
            left_over=lambda there: left_over(there, files, whole=False, replaced=replaced),
            may_replace=True,
        )
        revision = revision if revision is not None else self._trainer.args.hub_revision
        assert self._trainer.hub_model_id is not None
        to = Destination(self._trainer.hub_model_id, revision=revision)

        def written(text: str | None) -> None:
            if text is not None and text != here and read_readme(readme) == here:  # nobody has written there meanwhile
                readme.write_bytes(text.encode())

        def job() -> CommitInfo:
            done = push(content, to, token=token, tries=_TRIES, is_signed_in=True, written=written)
            url = f"{done.url.split('/tree/')[0]}/commit/{done.commit}"
            return CommitInfo(commit_url=url, commit_message=title, commit_description="", oid=done.commit)

        return job

    def _in_background(self, job: Callable[[], Any]) -> Future[Any]:
        if self._pushes is None:
            self._pushes = ThreadPoolExecutor(max_workers=1)  # one after the other
        future = self._pushes.submit(job)
        if self._trainer.push_in_progress is None or self._trainer.push_in_progress.is_done():
            self._trainer.push_in_progress = PushInProgress([future])
        else:
            self._trainer.push_in_progress.jobs.append(future)
        return future


def _card(training: Training, stated: Stated, plot: str | None, license: str | None, repo_id: str) -> ModelCard:
    return trainer_card(training, stated, repo_id=repo_id if "/" in repo_id else None, plot=plot, license=license)


def _warned(job: Callable[[], CommitInfo], title: str, staged: Path | None = None) -> CommitInfo:
    """Push, and say what went wrong: perhaps nobody asks a push in the background how it went."""
    try:
        return job()
    except Exception as error:
        logger.warning(f"the push {title!r} failed: {error}", exc_info=not isinstance(error, ValueError))
        raise
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def stage(folder: Path, beside: Path) -> Path:
    """Keep the files of a folder for a push in the background: a checkpoint may be deleted before it has ended."""
    staged = Path(tempfile.mkdtemp(prefix=f"{_STAGED}{os.getpid()}-", dir=beside))
    shutil.copytree(folder, staged, copy_function=_linked, dirs_exist_ok=True)
    return staged


def delete_staged(beside: Path) -> None:
    """Delete what another process has left, which was killed while it pushed."""
    for folder in beside.glob(f"{_STAGED}*"):
        if not folder.name.startswith(f"{_STAGED}{os.getpid()}-"):
            shutil.rmtree(folder, ignore_errors=True)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
