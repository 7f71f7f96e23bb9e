"""The trainer's side of checkpoints: when one is written, what is in it, what a failure costs, where a run goes on."""

import json
import random
import shutil
from types import SimpleNamespace

import pytest
import ray
import torch

pytest.importorskip("openrlhf")
from glue import Group, make_args, make_sample

from openrlhf_orz.runtime import checkpoints as disk
from openrlhf_orz.runtime.run_dir import RunDir
from openrlhf_orz.runtime.stopping import Stopped, StopRequested, stop_mark
from openrlhf_orz.trainer import checkpoints as module
from openrlhf_orz.trainer.checkpoints import DrawnRollouts, NoRollouts, TrainerCheckpoints

STATES = {
    "episode": 1,
    "global_step": 4,
    "total_consumed_prompts": 16,
    "data_loader_state_dict": {"episode": 1, "position": 4},
}


class WritingGroup(Group):
    """A model group whose ranks write a file, or fail."""

    error = None

    saves: list = []  # what try_save_model returns, call by call

    def async_run_method(self, method_name, tag=None, **kwargs):
        if method_name == "try_save_model":
            return [self.saves.pop(0) if self.saves else None, None]
        super().async_run_method(method_name, tag=tag, **kwargs)
        if self.error:
            raise self.error
        folder = disk.partial_path(self.folder, tag) / self.name
        folder.mkdir(parents=True)
        (folder / "rank0.pt").write_text("weights")
        return []


def make(tmp_path, *flags, ranks=1, rollouts=None, **run):
    args = make_args(tmp_path, *flags, prompts_sha256="abc", recorded_flags={"a.b": 1}, **run)
    groups = [WritingGroup(ranks, name=name) for name in ("_actor", "_critic")]
    for group in groups:
        group.folder = args.run.checkpoints
    best = {"best_eval_metric_key": "k", "best_eval_metric_value": 0.5, "latest_eval_metric_value": 0.25}
    made = TrainerCheckpoints(args, groups, RunDir(args.orz.run_dir), rollouts or NoRollouts(), lambda: best)
    return made, groups


@pytest.fixture(autouse=True)
def plain_ray(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda refs, **_: refs)


def names(folder):
    return sorted(path.name for path in disk.all_checkpoints(folder))


@pytest.mark.parametrize("every, saved", [(2, ["global_step2", "global_step4"]), (-1, [])])
def test_every_so_many_steps(tmp_path, every, saved):
    made, _ = make(tmp_path, save_steps=every)
    for step in range(1, 5):
        made.after_step(step, {**STATES, "global_step": step})
        assert (made.take_seconds() != {}) == (f"global_step{step}" in saved)
    made.wait_for_commit()
    assert names(made.folder) == saved and made.take_seconds() == {}


def test_what_is_in_it(tmp_path):
    made, groups = make(tmp_path)
    made.last_states = dict(STATES)
    assert made.save("global_step4") and made.saved_step == 4
    made.wait_for_commit()
    disk.verify(made.folder / "global_step4")
    state = json.loads((made.folder / "global_step4" / "trainer.json").read_text())
    assert {key: state[key] for key in STATES} == STATES
    assert state["best_eval_metric_value"] == 0.5 and state["prompts_sha256"] == "abc" and state["flags"] == {"a.b": 1}
    assert state["faults"] == {"checkpoints_failed": 0}
    assert groups[0].calls[0][2]["client_states"] == STATES and "client_states" not in groups[1].calls[0][2]


def test_resumed_where_it_was(tmp_path):
    made, _ = make(tmp_path)
    made.last_states, made.faults["checkpoints_failed"] = dict(STATES), 2
    made.save("global_step4")
    made.wait_for_commit()
    drawn = [random.random(), torch.rand(1).item()]
    again, _ = make(tmp_path, resume_from=str(made.folder / "global_step4"))
    states = again.resume()
    assert {key: states[key] for key in STATES} == STATES and states["best_eval_metric_key"] == "k"
    assert [random.random(), torch.rand(1).item()] == drawn  # the random states are those of the save
    assert again.last_states == STATES and again.saved_step == 4 and again.faults == {"checkpoints_failed": 2}
    assert make(tmp_path)[0].resume() is None


def test_a_converted_checkpoint_goes_when_it_is_loaded(tmp_path):
    made, _ = make(tmp_path)
    made.last_states = dict(STATES)
    made.save("global_step4")
    made.wait_for_commit()
    copy = made.folder / ".partial-universal-global_step4"
    (copy / "_actor").mkdir(parents=True)
    again, _ = make(tmp_path, resume_from=str(made.folder / "global_step4"), universal=str(copy))
    assert again.args.ckpt.path == str(copy) and again.args.ds.use_universal_ckpt
    again.resume()
    assert not copy.exists() and (made.folder / "global_step4").is_dir()


class Loader:
    def __init__(self, position, length=8):
        self.position, self.length = position, length

    exhausted = property(lambda self: self.position >= self.length)

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(["the rest"])


def test_responses_not_yet_trained_on_come_back(tmp_path):
    generator = SimpleNamespace(faults={"engines_restarted": 1, "prompts_redone": 5}, _sample_buffer=[make_sample()])
    made, _ = make(tmp_path, rollouts=DrawnRollouts(generator, Loader(8)))
    made.last_states = dict(STATES)
    made.save("global_step4")
    made.wait_for_commit()
    state = json.loads((made.folder / "global_step4" / "trainer.json").read_text())
    assert state["episode"] == 1 and state["faults"]["prompts_redone"] == 5
    fresh = SimpleNamespace(faults={"engines_restarted": 0, "prompts_redone": 0})
    again, _ = make(tmp_path, rollouts=DrawnRollouts(fresh, Loader(4)), resume_from=str(made.folder / "global_step4"))
    again.resume()
    assert torch.equal(fresh._sample_buffer[0].sequences, make_sample().sequences)
    assert list(fresh._dataloader_iter) == ["the rest"] and fresh.faults["engines_restarted"] == 1


def test_an_episode_that_is_over_is_resumed_in_the_next(tmp_path):
    generator = SimpleNamespace(faults={})  # as before its first rollout
    made, _ = make(tmp_path, rollouts=DrawnRollouts(generator, Loader(8)))
    made.finished(STATES)
    made.save("global_step4")
    made.wait_for_commit()
    assert json.loads((made.folder / "global_step4" / "trainer.json").read_text())["episode"] == 2


def test_a_stop_in_an_episodes_last_rollout_resumes_with_it(tmp_path):
    """All prompts are drawn by then, but those of the interrupted rollout are not trained on."""
    loader = Loader(4)
    made, _ = make(tmp_path, rollouts=DrawnRollouts(SimpleNamespace(faults={}), loader))
    assert made.nothing_due(4, STATES)
    loader.position = 8
    made.stopped()
    assert json.loads((made.folder / "global_step4" / "trainer.json").read_text())["episode"] == STATES["episode"]


def test_no_loader_goes_on_where_its_prompts_are_used_up():
    generator = SimpleNamespace(faults={})
    DrawnRollouts(generator, Loader(8)).restore([vars(make_sample())], position=8)
    assert generator._dataloader_iter is None


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    made, groups = make(tmp_path)
    made.last_states = dict(STATES)
    made.save("global_step4")
    made.wait_for_commit()
    size = disk.size_of(made.folder / "global_step4")
    usage = shutil.disk_usage(tmp_path)
    for free, fits in ((int(1.1 * size) - 1, False), (int(1.1 * size), True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        groups[0].calls.clear()
        assert made.save("global_step5") is fits
        assert bool(groups[0].calls) is fits
    made.wait_for_commit()
    assert made.faults["checkpoints_failed"] == 1
    assert "global_step4 is kept" in (tmp_path / "warnings.log").read_text()


def task_error():
    return ray.exceptions.RayTaskError("save_checkpoint", "traceback", OSError("disk"))


@pytest.mark.parametrize("ranks, error, ends", [(1, OSError("disk"), False), (1, task_error(), False),
                                                (2, OSError("disk"), False), (2, task_error(), True)])  # fmt: skip
def test_a_failure_is_counted_and_ends_the_run_only_where_ranks_wait(tmp_path, ranks, error, ends):
    made, groups = make(tmp_path, ranks=ranks)
    made.last_states = dict(STATES)
    groups[1].error = error
    if ends:
        with pytest.raises(ray.exceptions.RayTaskError):
            made.save("global_step4")
    else:
        assert made.save("global_step4") is False
    assert made.faults["checkpoints_failed"] == 1 and made.saved_step is None
    assert names(made.folder) == [] and not list(made.folder.glob(".partial*"))


def test_a_metric_that_is_not_better_writes_nothing(tmp_path):
    made, _ = make(tmp_path)
    assert made.attempt("best_global_step4", lambda: None) is False and made.faults["checkpoints_failed"] == 0


def test_a_failed_commit_is_counted(tmp_path, monkeypatch):
    made, _ = make(tmp_path)
    made.last_states = dict(STATES)

    def fail(partial):
        raise OSError("gone")

    monkeypatch.setattr(disk, "commit", fail)
    assert made.save("global_step4")
    made.wait_for_commit()
    assert made.faults["checkpoints_failed"] == 1 and not list(made.folder.glob(".partial*"))
    made.wait_for_commit()  # once
    assert made.faults["checkpoints_failed"] == 1


def test_a_stop_saves_the_last_step_once(tmp_path):
    made, groups = make(tmp_path, save_steps=-1)
    stop_mark(made.args).touch()
    with pytest.raises(Stopped, match="stopped after step 4; resume .*global_step4"):
        made.after_step(4, STATES)
    assert names(made.folder) == ["global_step4"] and len(groups[0].calls) == 1
    made.stopped()
    assert len(groups[0].calls) == 1
    groups[0].error = OSError("disk")
    made.saved_step = None
    shutil.rmtree(made.folder / "global_step4")
    assert "could not be saved" in str(made.stopped())


def test_old_checkpoints_go(tmp_path):
    made, _ = make(tmp_path, "--ckpt.max_num", "2", save_steps=1)
    for step in range(1, 5):
        made.after_step(step, {**STATES, "global_step": step})
    made.wait_for_commit()
    assert names(made.folder) == ["global_step3", "global_step4"]


def test_a_trained_model_waits_for_space(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    made, groups = make(tmp_path)
    groups[0].saves = ["No space left on device", "No space left on device"]
    made.save_models()
    notes = (tmp_path / "warnings.log").read_text().splitlines()
    assert len(notes) == 2 and str(tmp_path / "hf") in notes[0] and "No space left" in notes[0]
    assert not groups[0].saves

    groups[1].saves = ["full"] * 3
    stop_mark(made.args).touch()
    with pytest.raises(StopRequested):
        made.save_models()
    stop_mark(made.args).unlink()
    made, groups = make(tmp_path, "--orz.checkpoint_timeout_s", "0.5")
    monkeypatch.setattr(module, "RETRY_S", 0.3)
    groups[0].saves = ["full"] * 9
    with pytest.raises(RuntimeError, match="full, for longer than --orz.checkpoint_timeout_s"):
        made.save_models()


@pytest.mark.parametrize("flags, needed, said", [((), 100, 0), ((), 130, 1), (("--orz.stop_timeout_s", "600"), 130, 0),
                                                 (("--orz.stop_timeout_s", "60"), 100, 1)])  # fmt: skip
def test_a_stop_that_takes_longer_than_it_is_given_is_said_once(tmp_path, flags, needed, said):
    """Slurm and Docker kill a run that has not ended in time, and with it the checkpoint that is being written."""
    made, _ = make(tmp_path, *flags)
    notes = []
    made.run_dir.note = notes.append
    made.warn_of_stop()
    assert not notes, "no step has been yet"
    line = {"seconds_step": needed - 30.0, "seconds_checkpoint": 30.0}
    (made.run_dir.path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for _ in range(2):
        made.warn_of_stop()
    assert len(notes) == said and all(f"{needed} s" in note and "--signal=B:TERM" in note for note in notes)
