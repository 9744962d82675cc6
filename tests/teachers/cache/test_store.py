"""A folder of soft targets: what is found in it, what is refused, and what is left of it after a fault."""

import errno
import hashlib
import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch
import torch.nn.functional as F
from filelock import FileLock

from hf_distill.teachers.cache import shards
from hf_distill.teachers.cache.key import check_key, read_key, weights_digest, write_key
from hf_distill.teachers.cache.shards import ShardWriter, StorageFormat, held, spread
from hf_distill.teachers.cache.store import SoftTargets

KEY = {
    "level": "rows",
    "labels": ["red", "green", "blue"],
    "logits": {"dtype": "float16", "top_k": None},
    "teachers": [{"weights": "ab12", "dtype": "float32", "label_index": None}],
    "about": {"torch": "2"},
}
ROWS = StorageFormat(dtype="float32", top_k=None, token_level=False, temperature=1.0)
TOKENS = StorageFormat(dtype="float32", top_k=None, token_level=True, temperature=1.0)


def digests(*numbers: int) -> np.ndarray:
    return np.stack([np.frombuffer(number.to_bytes(16, "big"), np.uint8) for number in numbers])


def logits(*numbers: int, width: int = 3) -> np.ndarray:
    """Logits of which no two rows and no two classes are alike."""
    return np.array([[10 * number + place for place in range(width)] for number in numbers], np.float32) / 8


def filled(path: Path, *groups: list[int], layout: StorageFormat = ROWS, key: dict = KEY) -> SoftTargets:
    """Return a folder with a shard for each group of rows."""
    path.mkdir(exist_ok=True)
    write_key(path, key)
    writer = ShardWriter(path, layout)
    for group in groups:
        writer.add(digests(*group), [logits(*group)])
        writer.flush()
    return SoftTargets(path)


def files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


class TestFinding:
    @pytest.mark.parametrize("merged", [True, False])
    def test_each_row_has_its_own_soft_targets(self, tmp_path, monkeypatch, merged):
        """Another row's, for rows in another order, from several shards, or twice in one batch."""
        if not merged:
            monkeypatch.setattr("hf_distill.teachers.cache.store._MERGED_BYTES", 0)
        targets = filled(tmp_path, [5, 1], [9, 3, 2**100], [4])
        wanted = [3, 9, 3, 4, 5, 2**100]
        positions = targets.find(digests(*wanted))
        for number, (row,) in zip(wanted, targets.fetch(positions), strict=True):
            assert np.array_equal(row, logits(number)[0])
        assert len(targets) == 6
        assert targets.widths == [3]

    def test_rows_that_are_not_there_are_known(self, tmp_path):
        """The nearest row's soft targets in their place."""
        targets = filled(tmp_path, [5, 1])
        found = targets.find(np.stack([digests(1, 0, 5), digests(6, 2, 1)]))
        assert (found >= 0).tolist() == [[True, False, True], [False, False, True]]
        assert filled(tmp_path / "empty").find(digests(1, 2)).tolist() == [-1, -1]

    def test_several_members_keep_their_widths(self, tmp_path):
        """A specialist's three logits beside a generalist's five."""
        write_key(tmp_path, KEY)
        writer = ShardWriter(tmp_path, ROWS)
        for group in ([1, 2], [3]):
            writer.add(digests(*group), [logits(*group, width=5), -logits(*group)])
        writer.flush()
        targets = SoftTargets(tmp_path)
        ((first, second),) = targets.fetch(targets.find(digests(3)))
        assert np.array_equal(first, logits(3, width=5)[0])
        assert np.array_equal(second, -logits(3)[0])
        assert targets.widths == [5, 3]

    @pytest.mark.parametrize("merged", [True, False])
    def test_tokens_keep_their_rows(self, tmp_path, monkeypatch, merged):
        """Tokens of one row that run into the next, and no soft target taken for one of zeros."""
        if not merged:
            monkeypatch.setattr("hf_distill.teachers.cache.store._MERGED_BYTES", 0)
        write_key(tmp_path, {**KEY, "level": "tokens"})
        writer = ShardWriter(tmp_path, TOKENS)
        values = logits(*range(6))
        values[4] = np.nan
        writer.add(digests(7, 8), [values[:5]], np.array([2, 3]))
        writer.flush()
        writer.add(digests(9), [values[5:]], np.array([1]))
        writer.flush()
        targets = SoftTargets(tmp_path)
        assert targets.token_level
        found = [row[0] for row in targets.fetch(targets.find(digests(9, 8, 7)))]
        for row, expected in zip(found, (values[5:], values[2:5], values[:2]), strict=True):
            assert np.array_equal(row, expected, equal_nan=True)

    def test_it_can_be_sent_to_a_worker_process(self, tmp_path, monkeypatch):
        """A copy of all soft targets in each worker, or none."""
        monkeypatch.setattr("hf_distill.teachers.cache.store._MERGED_BYTES", 0)
        targets = filled(tmp_path, [5, 1])
        sent = pickle.dumps(targets)
        again = pickle.loads(sent)
        assert len(sent) < 2000
        assert np.array_equal(again.fetch(again.find(digests(1)))[0][0], logits(1)[0])

    def test_mapped_files_are_not_kept_open(self, tmp_path, monkeypatch):
        """As many open files as shards: the system's limit, after a night's run."""
        monkeypatch.setattr("hf_distill.teachers.cache.store._MERGED_BYTES", 0)
        filled(tmp_path, *([number] for number in range(20)))
        before = len(os.listdir("/proc/self/fd"))
        targets = SoftTargets(tmp_path)
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert len(targets) == 20


class TestTopK:
    LAYOUT = StorageFormat(dtype="float32", top_k=3, token_level=False, temperature=4.0)

    def test_the_largest_are_kept_and_the_others_share_the_rest(self, tmp_path):
        """Other classes, or probabilities that do not sum to 1."""
        values = np.random.default_rng(0).normal(size=(5, 20)).astype(np.float32) * 3
        write_key(tmp_path, KEY)
        writer = ShardWriter(tmp_path, self.LAYOUT)
        writer.add(digests(*range(5)), [values])
        writer.flush()
        targets = SoftTargets(tmp_path)
        found = np.stack([row for (row,) in targets.fetch(targets.find(digests(*range(5))))])
        exact, kept = F.softmax(torch.tensor(values), -1), F.softmax(torch.tensor(found), -1)
        for row in range(5):
            top = exact[row].topk(3).indices
            torch.testing.assert_close(kept[row, top], exact[row, top])
            others = torch.ones(20, dtype=torch.bool).index_fill(0, top, False)
            torch.testing.assert_close(kept[row, others], (1 - exact[row, top].sum()).expand(17) / 17)
        expected = F.kl_div(
            F.log_softmax(torch.tensor(found) / 4, -1), F.softmax(torch.tensor(values) / 4, -1), reduction="none"
        ).sum(-1)
        assert targets.top_k_error() == pytest.approx((float(expected.mean()), float(expected.max())), rel=1e-4)
        stored = safetensors.numpy.load_file(files(tmp_path)[0])
        assert {name: array.shape for name, array in stored.items() if name != "digests"} == {
            "member-0": (5, 3),
            "member-0.indices": (5, 3),
            "member-0.rest": (5,),
        }

    def test_the_error_is_that_of_all_shards(self, tmp_path):
        """The last shard's, for all of them."""
        write_key(tmp_path, KEY)
        writer = ShardWriter(tmp_path, self.LAYOUT)
        values = [np.random.default_rng(seed).normal(size=(4, 20)).astype(np.float32) * seed for seed in (1, 3)]
        errors = []
        for number, each in enumerate(values):
            writer.add(digests(*range(4 * number, 4 * number + 4)), [each])
            writer.flush()
            errors.append(SoftTargets(tmp_path).top_k_error())
        first_mean, first_max = errors[0]
        mean, largest = errors[1]
        assert mean > first_mean
        assert largest > first_max

    def test_members_that_are_narrow_are_kept_whole(self, tmp_path):
        """A specialist's few labels, with nothing left to share."""
        write_key(tmp_path, KEY)
        writer = ShardWriter(tmp_path, self.LAYOUT)
        writer.add(digests(1), [logits(1, width=20), logits(1, width=4)])
        writer.flush()
        targets = SoftTargets(tmp_path)
        assert np.array_equal(targets.fetch(np.array([0]))[0][1], logits(1, width=4)[0])

    def test_classes_that_are_ruled_out_stay_so(self):
        """NaN, where all that is not kept is minus infinity."""
        rest = np.array([-np.inf], np.float32)
        made = spread(np.array([[1.0, 2.0]], np.float32), np.array([[2, 0]], np.uint16), rest, 4)
        assert made.tolist() == [[2.0, -np.inf, 1.0, -np.inf]]


class TestWriting:
    def test_half_precision_keeps_three_digits(self, tmp_path):
        """A type that is named and not used."""
        values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * 10
        write_key(tmp_path, KEY)
        writer = ShardWriter(tmp_path, StorageFormat("float16", None, False, 1.0))
        writer.add(digests(1, 2, 3, 4), [values])
        writer.flush()
        found = [row[0] for row in SoftTargets(tmp_path).fetch(np.arange(4))]
        assert found[0].dtype == np.float16
        assert np.allclose(found, values, rtol=1e-3)
        assert not np.array_equal(found, values)

    @pytest.mark.parametrize("value", [70_000.0, -3.0e38])
    def test_numbers_out_of_range_are_refused(self, tmp_path, value):
        """Infinity, which rules a class out, in the place of a large number."""
        writer = ShardWriter(tmp_path, StorageFormat("float16", None, False, 1.0))
        with pytest.raises(
            ValueError, match=re.escape(f"reach {value:.6g}, and float16 ends at 65504: set teacher_logits_dtype")
        ):
            writer.add(digests(1), [np.array([[value, 0.0]], np.float32)])
        writer.add(digests(1), [np.array([[-np.inf, 0.0]], np.float32)])

    def test_the_name_of_a_file_is_its_checksum(self, tmp_path):
        """A shard that cannot be told from a damaged one; or the same rows twice, under two names."""
        filled(tmp_path, [1, 2])
        (file,) = files(tmp_path)
        assert file.stem == hashlib.sha256(file.read_bytes()).hexdigest()[:32]
        assert set(safetensors.numpy.load_file(file)) == {"digests", "member-0"}

    def test_shards_are_written_in_time(self, tmp_path):
        """All of a night's work lost with the process; or a file for each batch."""
        write_key(tmp_path, KEY)
        writer = ShardWriter(tmp_path, ROWS, flush_seconds=0.0, _start=math.inf)  # a part of the time so far is none
        for number in range(3):
            writer.add(digests(number), [logits(number)])
        assert len(SoftTargets(tmp_path)) == 3
        patient = ShardWriter(tmp_path, ROWS)
        patient.add(digests(7), [logits(7)])
        assert len(SoftTargets(tmp_path)) == 3
        patient.flush()
        assert len(SoftTargets(tmp_path)) == 4
        patient.flush()
        assert len(files(tmp_path)) == 4


class TestFaults:
    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
    def test_a_damaged_shard_is_set_aside_and_the_others_are_read(self, tmp_path, damage):
        """Soft targets that nobody has given; or all of them lost for one."""
        filled(tmp_path, [1, 2], [3, 4])
        broken = next(file for file in files(tmp_path) if digests(3).tobytes() in file.read_bytes())
        content = bytearray(broken.read_bytes())
        content[-3] ^= 1
        broken.write_bytes({"truncated": content[:-7], "flipped": content, "empty": b""}[damage])
        targets = SoftTargets(tmp_path)
        assert targets.damaged == [broken]
        assert (targets.find(digests(1, 2, 3, 4)) >= 0).tolist() == [True, True, False, False]

    def test_every_flipped_byte_is_found(self, tmp_path):
        """A checksum of a part of the file."""
        filled(tmp_path, [1])
        (file,) = files(tmp_path)
        content = file.read_bytes()
        for place in range(0, len(content), 7):
            file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert SoftTargets(tmp_path).damaged == [file]

    def test_what_a_killed_builder_has_left_is_removed_by_the_next(self, tmp_path):
        """Halves of files that fill the disk; or a half that is read as a whole."""
        filled(tmp_path, [1])
        (tmp_path / "0123.safetensors.77.part").write_bytes(b"half")
        assert len(SoftTargets(tmp_path)) == 1
        with held(tmp_path):
            assert not list(tmp_path.glob("*.part"))
        assert len(SoftTargets(tmp_path)) == 1

    def test_a_folder_that_cannot_be_held_is_let_go_at_once(self, tmp_path):
        """In a notebook, which keeps the error, the next try waits for itself for ever."""
        (tmp_path / ".builder").mkdir()
        with pytest.raises(ValueError, match="cannot write") as kept, held(tmp_path):
            pass
        (tmp_path / ".builder").rmdir()
        FileLock(tmp_path / ".lock").acquire(timeout=0).lock.release()
        assert kept.value is not None

    def test_a_file_that_cannot_be_written_whole_leaves_no_half(self, tmp_path, monkeypatch):
        """A full disk: half a shard under a name that promises a whole one."""
        filled(tmp_path, [1])
        known = files(tmp_path)

        def fail(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(shards.os, "fsync", fail)
        writer = ShardWriter(tmp_path, ROWS)
        writer.add(digests(2), [logits(2)])
        with pytest.raises(ValueError, match=r"disk of .* is full: what was written is whole and is kept"):
            writer.flush()
        assert files(tmp_path) == known
        assert not list(tmp_path.glob("*.part"))
        assert len(SoftTargets(tmp_path)) == 1

    @pytest.mark.slow
    def test_a_second_builder_waits_for_the_first_and_says_for_whom(self, tmp_path):
        """Two that remove each other's files."""
        program = (
            "import sys, pathlib\n"
            "from hf_distill.teachers.cache.shards import held\n"
            "with held(pathlib.Path(sys.argv[1])):\n"
            "    print('in', flush=True); sys.stdin.read(); print('out', flush=True)\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "cache")]
        with (tmp_path / "log").open("a") as log:
            first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log)
            while not (tmp_path / "log").read_text():
                assert first.poll() is None
                time.sleep(0.02)
            second = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.PIPE, text=True)
            said = next((line for line in second.stderr if "waiting" in line), "")
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=1)
            first.communicate()
            second.communicate()
        assert [first.returncode, second.returncode] == [0, 0]
        assert f"waiting for process {first.pid} on" in said
        assert (tmp_path / "log").read_text() == "in\nout\nin\nout\n"


class TestKey:
    def test_a_folder_of_its_own_is_read_back(self, tmp_path):
        """A key that changes on its way through JSON."""
        assert read_key(tmp_path / "none") is None
        assert read_key(tmp_path) is None
        write_key(tmp_path, KEY)
        found = read_key(tmp_path)
        assert found == {**KEY, "format": 1}
        check_key(tmp_path, found, KEY)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (
                {"teachers": [{**KEY["teachers"][0], "weights": "cd34"}]},
                'teachers.0.weights is "ab12" there and "cd34"',
            ),
            ({"teachers": [*KEY["teachers"]] * 2}, "teachers is "),
            ({"labels": ["red", "blue", "green"]}, 'labels.1 is "green" there and "blue" here; labels.2'),
            ({"logits": {"dtype": "float32", "top_k": None}}, 'logits.dtype is "float16" there and "float32" here'),
            ({"level": "tokens"}, 'level is "rows" there and "tokens" here'),
            ({"autocast": "bfloat16"}, 'autocast is null there and "bfloat16" here'),
        ],
    )
    def test_another_key_is_refused_with_what_differs(self, tmp_path, changed, message):
        """Soft targets of another teacher, or of other rows, that are used without a word."""
        with pytest.raises(ValueError, match="made in another way") as caught:
            check_key(tmp_path, KEY, {**KEY, **changed})
        assert message in str(caught.value)
        assert "Set another teacher_logits_dir, or delete that folder" in str(caught.value)

    def test_what_is_for_the_reader_is_not_compared(self, tmp_path):
        """A cache that is lost with each new version of torch."""
        check_key(tmp_path, KEY, {**KEY, "about": {"torch": "3"}})
        check_key(tmp_path, KEY, {"level": "rows"})  # and without a teacher what only a teacher can tell

    def test_many_differences_are_counted(self, tmp_path):
        """A message of a thousand lines."""
        with pytest.raises(ValueError, match=r"; and 24 more\. Set"):
            check_key(tmp_path, {"a": list(range(30))}, {"a": list(range(1, 31))})

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path):
        """Someone's files among which shards are strewn, or which are cleaned away."""
        (tmp_path / "thesis.tex").write_text("...")
        with pytest.raises(ValueError, match=r"has no key\.json and holds thesis\.tex: name a new or an empty folder"):
            read_key(tmp_path)
        with pytest.raises(ValueError, match="is a file: name a folder"):
            read_key(tmp_path / "thesis.tex")
        (tmp_path / "thesis.tex").unlink()
        (tmp_path / ".lock").touch()
        (tmp_path / "key.json.9.part").touch()
        assert read_key(tmp_path) is None

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 99}', '{"format": true}'])
    def test_a_key_that_cannot_be_read_is_refused(self, tmp_path, content):
        """A KeyError; or soft targets of which nobody knows how they were made."""
        (tmp_path / "key.json").write_text(content)
        with pytest.raises(ValueError, match=r"teacher_logits_dir: .*delete the folder"):
            SoftTargets(tmp_path)

    def test_other_files_beside_a_key_do_no_harm(self, tmp_path):
        """A data set card, and models of the same ending."""
        filled(tmp_path, [1])
        (tmp_path / "README.md").write_text("card")
        (tmp_path / "model.safetensors").write_bytes(b"foreign")
        assert len(SoftTargets(tmp_path)) == 1
        assert SoftTargets(tmp_path).damaged == []


class TestWeights:
    def test_each_weight_and_buffer_counts(self):
        """One changed number in millions; a running mean, which is no parameter."""
        model = tiny.resnet(0)
        known = weights_digest(model)
        assert weights_digest(tiny.resnet(0)) == known != weights_digest(tiny.resnet(1))
        for name, tensor in model.state_dict().items():
            place = tensor.view(-1)[:1] if tensor.dim() else tensor
            before = place.clone()
            place += 1
            assert weights_digest(model) != known, name
            place.copy_(before)
        assert weights_digest(model) == known

    def test_types_and_buffers_that_are_not_saved_count(self):
        """float16 weights that give other logits; positions that no checkpoint holds."""
        model = tiny.bert(0)
        known = weights_digest(model)
        assert weights_digest(tiny.bert(0).half()) != known
        assert weights_digest(tiny.bert(0).bfloat16()) != weights_digest(tiny.bert(0).half())
        model.bert.embeddings.position_ids += 1
        assert weights_digest(model) != known

    def test_weights_that_are_not_here_are_refused(self):
        """A digest of nothing, the same for all teachers."""
        with pytest.raises(
            ValueError, match=r"the teacher's .* is not in this process .*set teacher_placement to same"
        ):
            weights_digest(tiny.bert(0).to("meta"))


def test_a_key_is_readable_by_a_person(tmp_path):
    """One line of a megabyte."""
    write_key(tmp_path, KEY)
    text = (tmp_path / "key.json").read_text()
    assert text.count("\n") > 15
    assert json.loads(text)["labels"] == ["red", "green", "blue"]
