"""A training rank: how ranks meet, and what its part of a checkpoint brings back."""

import os
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("openrlhf")
from glue import make_args

from openrlhf_orz.trainer import rank as module
from openrlhf_orz.trainer.live_objects import hold_settings
from openrlhf_orz.trainer.rank import Rank, capture_random_states, meet_by_file, restore_random_states


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "barrier", lambda: None)


def test_random_states_come_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = capture_random_states()
    first = draw()
    assert draw() != first
    restore_random_states(state)
    assert draw() == first


def trained(lr: float, **options):
    """An engine as DeepSpeed makes it, after three steps: warm-up over two, two groups, one of them never decayed."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}]
    settings = dict(lr=lr, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1) | options
    optimizer = torch.optim.AdamW(groups, **{**settings, "betas": tuple(settings["betas"])})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 8))
    for _ in range(3):
        sum(weight.square().sum() for weight in weights).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return SimpleNamespace(
        global_steps=3, optimizer=optimizer, lr_scheduler=scheduler, optimizer_params=lambda: settings
    )


def test_the_rates_of_a_resumed_run_are_those_of_its_flags():
    """DeepSpeed loads the checkpoint's; with --orz.allow_changed_flags the run said that the new ones hold."""
    saved, now = trained(2e-4), trained(1e-4, betas=[0.8, 0.9], eps=1e-6, weight_decay=0.2)
    saved_states = saved.optimizer.state_dict(), saved.lr_scheduler.state_dict()
    now.optimizer.load_state_dict(saved_states[0])
    now.lr_scheduler.load_state_dict(saved_states[1])
    hold_settings(now.optimizer, now.lr_scheduler, now.optimizer_params())
    for group, decay in zip(now.optimizer.param_groups, (0.2, 0.0)):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5e-4, (0.8, 0.9), 1e-6, decay)
    assert now.lr_scheduler.get_last_lr() == [0.5e-4] * 2
    now.optimizer.step()
    now.lr_scheduler.step()
    assert now.lr_scheduler.get_last_lr() == pytest.approx([1e-4 * 5 / 8] * 2)
    # the same flags change nothing, to the bit
    hold_settings(saved.optimizer, saved.lr_scheduler, saved.optimizer_params())
    assert str(saved.optimizer.state_dict()["param_groups"]) == str(saved_states[0]["param_groups"])
    assert saved.lr_scheduler.get_last_lr() == saved_states[1]["_last_lr"]


def test_muon_and_its_adam_have_rates_of_their_own():
    engine = trained(2e-4)
    muon, adam = engine.optimizer.param_groups
    muon |= {"use_muon": True, "momentum": 0.9, "weight_decay": 0.0}
    adam |= {"use_muon": False}
    settings = dict(lr=2e-2, muon_lr=2e-2, adam_lr=1e-4, momentum=0.8, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)
    hold_settings(engine.optimizer, engine.lr_scheduler, settings)
    assert engine.lr_scheduler.base_lrs == [2e-2, 1e-4] and muon["momentum"] == 0.8
    assert muon["weight_decay"] == adam["weight_decay"] == 0.1, "DeepSpeed gives both the same"


def test_a_checkpoint_brings_back_step_rollouts_and_random_states(tmp_path):
    (tmp_path / "x").mkdir()
    engine, buffer = trained(1e-4), SimpleNamespace(rollouts=3)
    engine.global_steps = 7
    saving = Rank("_critic", make_args(tmp_path / "x"))
    saving.save("global_step7", engine, buffer)
    path = saving.checkpoint_path("global_step7")
    assert path.name == ".partial-global_step7" and (path / "_critic" / "rank0.pt").is_file()
    expected = torch.rand(1)
    fresh = SimpleNamespace(rollouts=0)
    again = Rank("_critic", make_args(tmp_path / "x", resume_from=str(path)))
    again.resume(engine, fresh)
    assert fresh.rollouts == 3 and torch.equal(torch.rand(1), expected)
    with pytest.raises(RuntimeError, match="has not loaded _critic"):
        again.resume(SimpleNamespace(global_steps=6), fresh)


@pytest.mark.parametrize("rank, of", [(0, 0), (1, 1), (2, 0), (5, 1)])
def test_more_ranks_than_were_take_the_states_of_those(tmp_path, monkeypatch, rank, of):
    (tmp_path / "_actor").mkdir()
    states = [torch.Generator().manual_seed(seed).get_state() for seed in (1, 2)]
    for number, state in enumerate(states):
        saved = {"global_steps": 1, "rollouts": number, "random": {**capture_random_states(), "torch": state}}
        torch.save(saved, tmp_path / "_actor" / f"rank{number}.pt")
    linked = []
    monkeypatch.setattr(module, "link_states", linked.append)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    buffer, engine = SimpleNamespace(), trained(1e-4)
    engine.global_steps = 1
    for universal in (None, "converted"):
        args = make_args(tmp_path, resume_from=str(tmp_path), universal=universal)
        Rank("_actor", args).resume(engine, buffer)
        assert buffer.rollouts == of and torch.equal(torch.get_rng_state(), states[of])
    assert linked == [engine], "only what is converted leaves the parameters unlinked"


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_hash_what_they_have_written(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    rank, met = Rank("_critic", make_args(tmp_path)), []

    def notes() -> list[str]:
        return [note.name for note in rank.checkpoint_path("global_step7").glob(".hashes/*.json")]

    monkeypatch.setattr(dist, "barrier", lambda: met.append(notes()))
    rank.save("global_step7", SimpleNamespace(global_steps=7), SimpleNamespace(rollouts=3))
    assert notes() == (["_critic-0.json"] if ranks > 1 else [])
    assert met == ([[], ["_critic-0.json"]] if ranks > 1 else [[]]), "a save returns when all have hashed theirs"


def test_a_resumed_rank_holds_this_runs_rates(tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(module, "hold_settings", lambda *given: held.append(given))
    torch.save({"global_steps": 3, "rollouts": 2, "random": capture_random_states()}, tmp_path / "rank0.pt")
    monkeypatch.setattr(module.dist, "get_rank", lambda: 0)
    engine = SimpleNamespace(
        global_steps=3, optimizer="Adam", lr_scheduler="constant", optimizer_params=lambda: "rates"
    )
    Rank("", make_args(tmp_path, resume_from=str(tmp_path))).resume(engine, SimpleNamespace())
    assert held == [("Adam", "constant", "rates")]


@pytest.mark.parametrize("rank, told", [(0, ["loaded"]), (1, [])])
def test_the_first_rank_tells_the_stages_of_the_start(tmp_path, monkeypatch, rank, told):
    said = []
    monkeypatch.setattr(module.dist, "get_rank", lambda: rank)
    monkeypatch.setattr(module, "tell_stage", lambda run_dir, stage: said.append(stage))
    Rank("_actor", make_args(tmp_path)).tell("loaded")
    assert said == told


def test_a_new_run_has_nothing_to_resume(tmp_path):
    rank = Rank("_actor", make_args(tmp_path))
    rank.resume(None, None)
    assert rank.memory.role == "actor" and not torch.utils.deterministic.fill_uninitialized_memory
    assert list(tmp_path.glob("scratch/rank-*"))  # on record


@pytest.mark.parametrize(
    "device, own_ray, met", [("cpu", True, "gloo"), ("cpu", False, ""), ("cuda", True, "nccl"), ("cuda", False, "")]
)
def test_ranks_of_one_machine_meet_by_a_file(tmp_path, monkeypatch, device, own_ray, met):
    calls = []
    monkeypatch.setattr(module.dist, "init_process_group", lambda *given, **kwargs: calls.append((given, kwargs)))
    args = make_args(tmp_path, changes={"orz.device": device}, own_ray=own_ray)
    meet_by_file(SimpleNamespace(_rank=1, _world_size=2), args)
    assert bool(calls) is bool(met)
    if met:
        (given, kwargs), = calls  # fmt: skip
        assert given == (met,) and kwargs["rank"] == 1 and kwargs["world_size"] == 2
        assert kwargs["init_method"] == f"file://{args.run.scratch}SimpleNamespace"


def test_a_save_returns_when_all_ranks_have_written(monkeypatch, tmp_path):
    rank, met = Rank("_actor", make_args(tmp_path)), []
    file = rank.checkpoint_path("global_step1") / "_actor" / "rank0.pt"
    monkeypatch.setattr(dist, "barrier", lambda: met.append(file.is_file()))
    rank.save("global_step1", SimpleNamespace(global_steps=1), SimpleNamespace(rollouts=1))
    rank.save("global_step1", SimpleNamespace(global_steps=1), SimpleNamespace(rollouts=1))  # a second try
    assert met == [True, True]


class Code:
    """Unpickled, it would end the process."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_checkpoint_runs_no_code(tmp_path):
    rank = Rank("_actor", make_args(tmp_path, resume_from=str(tmp_path)))
    (tmp_path / "_actor").mkdir()
    torch.save({"global_steps": 1, "rollouts": Code()}, tmp_path / "_actor" / "rank0.pt")
    with pytest.raises(pickle.UnpicklingError):
        rank.resume(SimpleNamespace(global_steps=1), SimpleNamespace())


def test_a_device_keeps_its_random_state_too(monkeypatch):
    states = []
    cuda = SimpleNamespace(device_name=lambda: "cuda", get_rng_state=lambda: "seed", set_rng_state=states.append)
    assert "device" not in capture_random_states()
    monkeypatch.setattr(module, "get_accelerator", lambda: cuda)
    state = capture_random_states()
    restore_random_states(state)
    assert state["device"] == "seed" and states == ["seed"]


@pytest.fixture
def saving(tmp_path, monkeypatch):
    """Saves a model of one file with a text; notes the barriers that the other ranks wait at."""
    met = []
    monkeypatch.setattr(module, "torch_dist_barrier_and_cuda_sync", lambda: met.append(1))
    (tmp_path / "run").mkdir()
    rank, target = Rank("_actor", make_args(tmp_path / "run")), tmp_path / "hf"

    def save(text, error=None):
        def write(folder):
            assert folder == str(tmp_path / ".partial-hf")
            (tmp_path / ".partial-hf").mkdir()
            (tmp_path / ".partial-hf" / "model.safetensors").write_text(text)
            if error:
                raise error

        return rank.save_model(write, str(target))

    save.target, save.met = target, met
    return save


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), module.SafetensorError("I/O error: No space left on device")]
)
def test_a_model_is_saved_whole_or_not_at_all(saving, tmp_path, error):
    assert saving("first") is None and not saving.met
    assert "No space left" in saving("second", error) and saving.met == [1]
    assert (saving.target / "model.safetensors").read_text() == "first"
    assert saving("third") is None and (saving.target / "model.safetensors").read_text() == "third"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "hf"}


def test_a_model_that_cannot_be_flushed_is_not_there(saving, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left")

    monkeypatch.setattr(module, "sync_files", full)
    assert "No space left" in saving("text") and not saving.met and not saving.target.exists()


def test_only_the_first_rank_writes(saving, monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    assert saving("text") is None and not saving.target.exists()
