"""Checkpoints: nothing half-written has a final name, and nothing that has changed since is taken for good."""

import json
import os
import shutil
from pathlib import Path

import pytest

from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.runtime.checkpoints import Damaged


def write(path, step, content="weights", best=False):
    partial = checkpoints.partial_path(path, f"{'best_' if best else ''}global_step{step}")
    (partial / "_actor").mkdir(parents=True)
    (partial / "_actor" / "rank0.pt").write_text(f"{content} {step}")
    (partial / checkpoints.TRAINER).write_text(json.dumps({"global_step": step}))
    (partial / checkpoints.STATE).write_bytes(b"state")
    return partial


def test_committed_under_its_name_and_verified(tmp_path):
    final = checkpoints.commit(write(tmp_path, 7))
    assert final == tmp_path / "global_step7" and checkpoints.step_of(final) == 7
    checkpoints.verify(final)
    entries = json.loads((final / "manifest.json").read_text())["files"]
    assert set(entries) == {"_actor/rank0.pt", "trainer.json", "trainer.pt"}
    assert entries["trainer.pt"]["bytes"] == 5


def test_what_ranks_have_hashed_is_not_read_again(tmp_path, monkeypatch):
    """Unless it has changed since; names of files tell who wrote them, the rest is the first rank's."""
    partial = write(tmp_path, 7)
    names = ["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt", "rank1.pt",
             "latest"]  # fmt: skip
    for name in names:
        (partial / "_actor" / name).write_text(name)
    read = []
    real = checkpoints._sha256
    monkeypatch.setattr(checkpoints, "_sha256", lambda file, sync=False: read.append(file.name) or real(file, sync))
    for rank, theirs in ((0, {names[0], "latest", "rank0.pt"}), (1, {names[1], "rank1.pt"})):
        read.clear()
        checkpoints.hash_written(partial, "_actor", rank, 2)
        assert set(read) == theirs
    (partial / "_actor" / "latest").write_text("other!")
    read.clear()
    final = checkpoints.commit(partial)
    assert sorted(read) == ["latest", "trainer.json", "trainer.pt"]
    checkpoints.verify(final)
    assert not (final / checkpoints.HASHES).exists()


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda c: (c / "_actor" / "rank0.pt").write_text("Weights 7"), "_actor/rank0.pt has changed"),
        (lambda c: (c / "_actor" / "rank0.pt").write_text("we"), "_actor/rank0.pt has 2 bytes, not 9"),
        (lambda c: (c / "_actor" / "rank0.pt").unlink(), "_actor/rank0.pt is missing"),
        (lambda c: (c / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda c: (c / "manifest.json").write_text('{"files": {"a"'), "manifest.json cannot be read"),
        (lambda c: (c / "manifest.json").write_text('{"format": 1, "files": {}}'), "nothing to resume from"),
    ],
)
def test_a_damaged_one_is_skipped_with_its_reason(tmp_path, harm, message):
    good, bad = checkpoints.commit(write(tmp_path, 6)), checkpoints.commit(write(tmp_path, 7))
    harm(bad)
    with pytest.raises(Damaged, match=message):
        checkpoints.verify(bad)
    found, skipped = checkpoints.newest_valid(tmp_path)
    assert found == good and list(skipped) == [bad] and message in skipped[bad] and str(bad) in skipped[bad]


def test_of_one_step_the_best_is_gone_on_from(tmp_path):
    """The regular one was written before the evaluation and has an older best, with which a worse one would win."""
    for best in (True, False):
        checkpoints.commit(write(tmp_path, 4, best=best))
    checkpoints.commit(write(tmp_path, 3))
    assert checkpoints.newest_valid(tmp_path)[0].name == "best_global_step4"


def test_a_partial_one_is_never_found_and_is_cleared(tmp_path):
    good = checkpoints.commit(write(tmp_path, 3))
    partial = write(tmp_path, 4)
    assert checkpoints.newest_valid(tmp_path) == (good, {})
    assert checkpoints.clear_partial(tmp_path) == [partial] and not partial.exists() and good.exists()


def test_no_directory_and_no_checkpoint(tmp_path):
    assert checkpoints.newest_valid(tmp_path / "nowhere") == (None, {})
    (tmp_path / "notes").mkdir()
    assert checkpoints.newest_valid(tmp_path) == (None, {})


def test_the_same_step_again_replaces(tmp_path):
    checkpoints.commit(write(tmp_path, 5, "old"))
    final = checkpoints.commit(write(tmp_path, 5, "new"))
    assert (final / "_actor" / "rank0.pt").read_text() == "new 5"
    checkpoints.verify(final)
    assert [entry.name for entry in tmp_path.iterdir()] == ["global_step5"]


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 10):
        checkpoints.commit(write(tmp_path, step))
    for step in (1, 2):
        checkpoints.commit(write(tmp_path, step, best=True))
    gone = checkpoints.rotate(tmp_path, max_num=2, max_bytes=float("inf"))
    assert {g.name for g in gone} == {"global_step1", "global_step2", "best_global_step1"}
    assert {c.name for c in checkpoints.all_checkpoints(tmp_path)} == {
        "global_step3", "global_step10", "best_global_step2"}  # fmt: skip
    assert checkpoints.all_checkpoints(tmp_path)[0].name == "global_step10"  # by number, not by name
    checkpoints.rotate(tmp_path, max_num=3, max_bytes=1)
    assert {c.name for c in checkpoints.all_checkpoints(tmp_path)} == {"global_step10", "best_global_step2"}


def test_everything_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    """Files, manifest and their folders are flushed before the rename, and the folder of the new name after it."""
    partial, events = write(tmp_path, 2), []
    fsync, rename = os.fsync, type(tmp_path).rename
    shown = {partial: "partial", tmp_path: "parent"}

    def note_fsync(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        events.append(shown.get(path) or str(path.relative_to(partial)))
        fsync(handle)

    def note_rename(path, target):
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(checkpoints.os, "fsync", note_fsync)
    monkeypatch.setattr(type(tmp_path), "rename", note_rename)
    checkpoints.commit(partial)
    assert set(events[:3]) == {"_actor/rank0.pt", "trainer.json", "trainer.pt"}
    assert events[3] == "manifest.json" and set(events[4:6]) == {"partial", "_actor"}
    assert events[6:] == ["rename", "parent"]


def test_what_an_interrupted_replacement_left_is_no_obstacle(tmp_path):
    checkpoints.commit(write(tmp_path, 5, "old"))
    left = tmp_path / ".partial-old-global_step5"
    left.mkdir()
    (left / "file").touch()
    final = checkpoints.commit(write(tmp_path, 5, "new"))
    assert (final / "_actor" / "rank0.pt").read_text() == "new 5" and not left.exists()


def test_what_was_just_written_is_kept(tmp_path):
    """Also where checkpoints of a higher step lie, of a run that was given up."""
    for step in (100, 120, 140):
        checkpoints.commit(write(tmp_path, step))
    new = checkpoints.commit(write(tmp_path, 20))
    checkpoints.rotate(tmp_path, max_num=3, max_bytes=float("inf"), keep=new)
    assert new.is_dir()


def test_a_damaged_one_that_is_put_aside_counts_no_more(tmp_path):
    good, bad = checkpoints.commit(write(tmp_path, 6)), checkpoints.commit(write(tmp_path, 9))
    aside = checkpoints.put_damaged_aside(bad)
    assert aside.name == "damaged-global_step9" and checkpoints.all_checkpoints(tmp_path) == [good]
    checkpoints.put_damaged_aside(checkpoints.commit(write(tmp_path, 9)))
    checkpoints.commit(write(tmp_path, 8))
    checkpoints.rotate(tmp_path, max_num=1, max_bytes=float("inf"))
    assert {path.name for path in tmp_path.iterdir()} == {"damaged-global_step9", "global_step8"}


def test_what_was_being_replaced_comes_back(tmp_path):
    """A kill between the two renames of a replacement."""
    old = checkpoints.commit(write(tmp_path, 5, "old"))
    old.rename(tmp_path / ".partial-old-global_step5")
    write(tmp_path, 5, "new")
    checkpoints.clear_partial(tmp_path)
    assert (old / "_actor" / "rank0.pt").read_text() == "old 5" and list(tmp_path.iterdir()) == [old]


def test_rotation_counts_bytes(tmp_path):
    """The best and the newest count, and a checkpoint that just fits stays."""
    for step in (1, 2, 3):
        checkpoints.commit(write(tmp_path, step))
    checkpoints.commit(write(tmp_path, 3, best=True))
    best, *_ = sizes = [checkpoints.size_of(c) for c in sorted(tmp_path.iterdir())]
    assert len(set(sizes)) == 1, "the four are equally large"
    assert checkpoints.rotate(tmp_path, max_num=9, max_bytes=4 * best) == []
    assert [c.name for c in checkpoints.rotate(tmp_path, max_num=9, max_bytes=3 * best)] == ["global_step1"]
    assert checkpoints.rotate(tmp_path, max_num=0, max_bytes=float("inf")) == [tmp_path / "global_step2"]
    assert [c.name for c in checkpoints.all_checkpoints(tmp_path)] == ["best_global_step3", "global_step3"]


def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    good, partial = checkpoints.commit(write(tmp_path, 1)), write(tmp_path, 2)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.commit(partial)
    assert checkpoints.newest_valid(tmp_path)[0] == good
    shutil.rmtree(partial)
