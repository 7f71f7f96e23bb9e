"""The policy's glue: which loss is trained, what its metrics are over, what the model is built with and saved into."""

import contextlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("openrlhf")
from glue import bare, make_args, make_sample
from openrlhf.trainer.ppo_utils.experience import make_experience_batch, split_experience_batch
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer, PolicyModelActor
from transformers import PretrainedConfig, Qwen2Config, Qwen2ForCausalLM

from openrlhf_orz.data.prompts import chat_template
from openrlhf_orz.trainer import actor as module
from openrlhf_orz.trainer.actor import OrzActor, OrzActorPPOTrainer, OrzPolicyLoss, OrzPolicyModelActor
from openrlhf_orz.trainer.batches import regroup


def make(cls, **kwargs):
    """A policy model of OpenRLHF's or ours, for padded batches."""
    actor = cls(make_model(), **kwargs)
    actor.packing_samples = False
    return actor


def make_model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def test_a_position_that_nobody_needs_costs_no_logits():
    ours = make(OrzActor)
    seen = []
    ours.model.lm_head.register_forward_hook(lambda head, args, output: seen.append(args[0].shape[1]))
    action = torch.zeros(2, 8)
    action[0, 5], action[1, 6] = 1, 1
    ours(torch.randint(1, 64, (2, 9)), action, attention_mask=torch.ones(2, 9).long())
    assert seen == [2]


def test_on_policy_the_ratio_is_one_whatever_the_old_log_probs():
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    mask, advantages = torch.ones(1, 2), torch.tensor([[2.0, -1.0]])
    loss = OrzPolicyLoss(clip_eps_low=0.2, clip_eps_high=0.2, policy_loss_type="ppo")
    loss.on_policy = True
    value = loss(log_probs, torch.full((1, 2), -7.0), advantages, action_mask=mask)[0]
    value.backward()
    assert value.item() == pytest.approx(-0.5)
    assert torch.allclose(log_probs.grad, torch.tensor([[-1.0, 0.5]]))
    loss.on_policy = False
    far = loss(log_probs, torch.tensor([[-1.5, -2.0]]), advantages, action_mask=mask)[0]
    assert far.item() == pytest.approx(-(1.2 * 2 - 1) / 2)  # the first ratio, e^0.5, is clipped


def test_older_rollouts_are_corrected_without_a_forward_of_their_own():
    """One step on the rollout of an older policy: old log-probs would be those that the loss has at hand."""
    mask, advantages = torch.ones(1, 3), torch.tensor([[2.0, -1.0, 1.0]])
    sampled, found = torch.tensor([[-1.2, -1.9, -6.0]]), []
    for on_policy in (True, False):
        log_probs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
        loss = OrzPolicyLoss(is_correction_level="token", is_correction_threshold=[0.5, 5.0])
        loss.on_policy = on_policy
        old = torch.zeros(1, 3) if on_policy else log_probs.detach().clone()
        value, *rest = loss(log_probs, old, advantages, action_mask=mask, rollout_log_probs=sampled)
        value.backward()
        found.append([value.item(), *(x.item() for x in rest), log_probs.grad.tolist()])
    assert found[0] == found[1] and found[0][-1][0][2] == 0.0, "the last token is too far from its sampler"


def test_the_loss_sums_entropy_and_gap_of_a_step():
    loss = OrzPolicyLoss(clip_eps_low=0.2, clip_eps_high=0.2, policy_loss_type="ppo")
    loss.on_policy = True
    log_probs, mask = torch.tensor([[-1.0, -3.0, -5.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    advantages = torch.ones(1, 3)
    loss(log_probs, log_probs, advantages, action_mask=mask)
    assert loss.tally.tolist() == [4.0, 2.0] and loss.gap.metrics(lambda x, op: x) == {}
    sampled = torch.tensor([[-1.5, float("nan"), 0.0]])  # one that vLLM gave, one that it was not asked for, padding
    loss(log_probs, log_probs, advantages, action_mask=mask, rollout_log_probs=sampled)
    assert loss.gap.metrics(lambda x, op: x)["logprob_gap_mean"] == 0.5
    assert loss.gap.metrics(lambda x, op: x)["logprob_gap_tokens"] == 1
    loss.start_step()
    assert (
        loss.mask_above == math.inf and loss.tally.tolist() == [0.0, 0.0] and loss.gap.metrics(lambda x, op: x) == {}
    )


def test_a_response_with_a_large_gap_is_left_out():
    loss = OrzPolicyLoss(clip_eps_low=0.2, clip_eps_high=0.2, policy_loss_type="ppo")
    loss.on_policy, loss.mask_above = True, 0.5
    log_probs = torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]], requires_grad=True)
    sampled = torch.tensor([[-1.5, -1.5], [-2.0, -1.5], [math.nan, math.nan]])  # at the bound, above it, not measured
    loss(log_probs, None, torch.ones(3, 2), action_mask=torch.ones(3, 2), rollout_log_probs=sampled)[0].backward()
    assert log_probs.grad.ne(0).tolist() == [[True, True], [False, False], [True, True]]


def test_right_responses_have_a_likelihood_term():
    """The second is right: -(-3 - 1) / 4 right tokens of the step, on two ranks twice that, for 0.5 of the weight."""
    loss = OrzPolicyLoss(clip_eps_low=0.2, clip_eps_high=0.2, policy_loss_type="ppo")
    loss.on_policy = True
    log_probs = torch.tensor([[-1.0, -1.0], [-3.0, -1.0]], requires_grad=True)
    advantages, mask = torch.zeros(2, 2), torch.ones(2, 2)
    kwargs = {"action_mask": mask, "dp_size": 2, "batch_num_tokens": 8.0}
    assert loss(log_probs, None, advantages, **kwargs)[0].item() == 0
    loss.nll_weight, loss.right_B, loss.right_tokens = 0.5, torch.tensor([0.0, 1.0]), 4.0
    value = loss(log_probs, None, advantages, **kwargs)[0]
    value.backward()
    assert value.item() == 1.0 and loss.nll.item() == 2.0
    assert log_probs.grad.tolist() == [[0, 0], [-0.25, -0.25]]
    loss.mask_above, sampled = 0.5, torch.tensor([[-1.0, -1.0], [-5.0, -1.0]])
    assert loss(log_probs, None, advantages, rollout_log_probs=sampled, **kwargs)[0].item() == 0, (
        "left out of the step"
    )


def trainer_of(monkeypatch, args, losses, boundaries, skipped=()):
    """An OrzActorPPOTrainer without a model, whose micro-batches have these losses."""
    monkeypatch.setattr(module, "share_cores", lambda args: None)

    def training_step(self, experience, kl_ctl, step, loss_batch_info=None):
        return {"metrics": {"policy_loss": torch.tensor(losses[step])}}

    def ppo_train(self, kl_ctl):
        for step in range(len(losses)):
            self.training_step(None, kl_ctl, step)
        return {"policy_loss": -99.0}

    monkeypatch.setattr(ActorPPOTrainer, "training_step", training_step)
    monkeypatch.setattr(ActorPPOTrainer, "ppo_train", ppo_train)
    trainer = bare(OrzActorPPOTrainer, args, skipped)
    trainer.actor_loss_fn = OrzPolicyLoss(clip_eps_low=0.2, clip_eps_high=0.2, policy_loss_type="ppo")
    trainer.replay_buffer = SimpleNamespace(dynamic_optimizer_step=boundaries)
    return trainer


def test_policy_loss_is_the_mean_over_steps_of_sums_over_micro_batches(monkeypatch, tmp_path):
    trainer = trainer_of(monkeypatch, make_args(tmp_path), [1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1])
    status = trainer.ppo_train(0)
    assert status["policy_loss"] == 5.0 and status["policy_updates"] == 2 and status["policy_steps_skipped"] == 0
    strict = trainer_of(monkeypatch, make_args(tmp_path), [1.0, 2.0], [0, 1])
    assert strict.ppo_train(0)["policy_loss"] == 3.0


@pytest.mark.parametrize("flags, kl", [((), 3.0), (("--algo.kl.init_coef", "0.1", "--algo.kl.use_loss"), 8.0)])
def test_other_losses_are_means_over_steps_of_sums_too(monkeypatch, tmp_path, flags, kl):
    """A KL loss and an entropy loss are shares of a step's mean, as the policy's; a KL penalty's mean is none."""
    flags = (*flags, "--algo.kl.estimator", "k3") if flags else ()
    trainer = trainer_of(monkeypatch, make_args(tmp_path, *flags), [1.0, 2.0], [0, 1])
    step, train = ActorPPOTrainer.training_step, ActorPPOTrainer.ppo_train

    def training_step(self, *given):
        result = step(self, *given)
        result["metrics"].update(kl=torch.tensor(4.0), entropy_loss=torch.tensor(5.0))
        return result

    monkeypatch.setattr(ActorPPOTrainer, "training_step", training_step)
    monkeypatch.setattr(ActorPPOTrainer, "ppo_train", lambda self, kl_ctl: {**train(self, kl_ctl), "kl": 3.0})
    status = trainer.ppo_train(0)
    assert (status["policy_loss"], status["entropy_loss"], status["kl"]) == (3.0, 10.0, kl)


def test_the_likelihood_term_is_a_metric_of_its_own(monkeypatch, tmp_path):
    trainer = trainer_of(monkeypatch, make_args(tmp_path, "--orz.positive_nll", "0.1"), [1.0, 2.0], [0, 1])
    trainer.replay_buffer.right_tokens = [5.0, 5.0]
    step, seen = ActorPPOTrainer.training_step, []

    def training_step(self, experience, *given):
        seen.append((self.actor_loss_fn.right_B.tolist(), self.actor_loss_fn.right_tokens))
        self.actor_loss_fn.nll = torch.tensor(4.0)
        return step(self, experience, *given)

    def ppo_train(self, kl_ctl):
        (share,) = regroup([make_sample(right=1)], [[0]])
        (item,) = split_experience_batch(share)
        one = make_experience_batch([item])  # on the way that it comes from the buffer
        assert isinstance(one.info["right"], list)
        for number in range(2):
            self.training_step(one, kl_ctl, number)
        return {}

    monkeypatch.setattr(ActorPPOTrainer, "training_step", training_step)
    monkeypatch.setattr(ActorPPOTrainer, "ppo_train", ppo_train)
    status = trainer.ppo_train(0)
    assert seen == [([1.0], 5.0)] * 2
    assert status["positive_nll"] == 8.0 and status["policy_loss"] == pytest.approx(3.0 - 0.8)


def test_metrics_of_a_rollout_begin_anew(monkeypatch, tmp_path):
    trainer = trainer_of(monkeypatch, make_args(tmp_path), [1.0], [1])
    trainer.actor_loss_fn.tally += torch.tensor([8.0, 2.0])  # of the rollout before
    assert trainer.ppo_train(0)["entropy"] == 0.0
    assert trainer.ppo_train(0)["policy_loss"] == 1.0


def test_cores_are_shared_anew_for_each_micro_batch(monkeypatch, tmp_path):
    trainer, shared = trainer_of(monkeypatch, make_args(tmp_path), [1.0, 2.0], [0, 1]), []
    monkeypatch.setattr(module, "share_cores", shared.append)
    trainer.sums, trainer.steps = {}, 0
    results = [trainer.training_step(None, 0, step)["metrics"]["policy_loss"].item() for step in range(2)]
    assert results == [1.0, 2.0], "OpenRLHF gets what its own step returns"
    assert shared == [trainer.args] * 2


def test_a_skipped_step_is_no_update(monkeypatch, tmp_path):
    trainer = trainer_of(monkeypatch, make_args(tmp_path), [1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1], skipped=(3,))
    status = trainer.ppo_train(0)
    assert status["policy_updates"] == 1 and status["policy_steps_skipped"] == 1


@pytest.mark.parametrize("device, ipc", [("cpu", False), ("cuda", True), ("cuda", False)])
def test_a_lone_engine_gets_the_weights(monkeypatch, device, ipc):
    """On GPUs of its own it is in no group: all form a new one, and the old one ends."""
    calls = []

    def sync(trainer, engines):
        calls.append(engines)
        return {"sync_bytes": 1.0}

    monkeypatch.setattr(module, "sync_to_engines", sync)
    monkeypatch.setattr(module, "on_first_rank", lambda work: work())
    monkeypatch.setattr(ActorPPOTrainer, "_init_vllm_sync_group", lambda self, backend: calls.append(backend))
    trainer = object.__new__(OrzActorPPOTrainer)
    trainer.vllm_engines, trainer.use_cuda_ipc = ["first", "second"], ipc
    vllm = SimpleNamespace(sync_with_ray=False, sync_backend="nccl")
    trainer.args = SimpleNamespace(orz=SimpleNamespace(device=device), vllm=vllm)
    trainer._model_update_group = SimpleNamespace(destroy=lambda: calls.append("destroy"))
    trainer.sync_engine(1)
    alone = device == "cpu" or ipc
    assert calls == ([["second"]] if alone else ["destroy", "nccl", ["first", "second"]])
    assert trainer.sync_metrics == {"sync_bytes": 1.0}
    trainer.broadcast_to_vllm()
    assert calls[-1] == ["first", "second"]
    vllm.sync_with_ray = True
    if not alone:
        with pytest.raises(RuntimeError, match="--ckpt.load_enable"):
            trainer.sync_engine(1)


class Rank:
    """Records what the actor asks of its rank."""

    def __init__(self, role, args):
        self.role, self.calls = role, []

    def resume(self, engine, buffer):
        self.calls.append(("resume", engine, buffer))

    def save(self, tag, engine, buffer):
        self.calls.append(("save", tag, engine, buffer))

    def checkpoint_path(self, tag):
        return Path(f"/aside/{tag}")

    def tell(self, stage):
        self.told = stage


def initialised(monkeypatch, args):
    monkeypatch.setattr(module, "Rank", Rank)

    def init(self, strategy, pretrain, max_steps=None, vllm_engines=None):
        self.strategy, self.tokenizer = strategy, SimpleNamespace(chat_template="the model's own")
        self.actor = SimpleNamespace(model="engine")
        self.trainer = SimpleNamespace(replay_buffer="buffer", average=None)
        self.max_steps = max_steps

    monkeypatch.setattr(PolicyModelActor, "init_model_from_pretrained", init)
    actor = object.__new__(OrzPolicyModelActor)
    actor.init_model_from_pretrained(SimpleNamespace(args=args), "model", 70, [])
    return actor


@pytest.mark.parametrize("flags, share", [((), True), (("--orz.share_prefixes", "never"), False)])
def test_the_model_is_built_as_the_settings_say(monkeypatch, tmp_path, flags, share):
    actor = initialised(monkeypatch, make_args(tmp_path, *flags))
    assert actor.model_cls.func is OrzActor and actor.model_cls.keywords == {
        "share": share, "on_cpu": True, "fp32_head": False, "router_loss": False
    }  # fmt: skip
    assert actor.rank.told == "policy is loaded"
    assert actor.max_steps == 70 and actor.rank.calls == [("resume", "engine", "buffer")]
    cuda = initialised(monkeypatch, make_args(tmp_path, changes={"orz.device": "cuda"}))
    assert cuda.model_cls.keywords["on_cpu"] is False
    weighed = initialised(monkeypatch, make_args(tmp_path, changes={"actor.aux_loss_coef": 0.01}))
    assert weighed.model_cls.keywords["router_loss"] is True


def test_the_saved_tokenizer_asks_as_it_was_trained(monkeypatch, tmp_path):
    actor = initialised(monkeypatch, make_args(tmp_path, template="released"))
    assert actor.tokenizer.chat_template == chat_template("released") != chat_template("paper")
    own = initialised(monkeypatch, make_args(tmp_path, template=None))
    assert own.tokenizer.chat_template == "the model's own"


def test_a_checkpoint_is_written_aside_by_deepspeed_and_by_the_rank(monkeypatch, tmp_path):
    actor = initialised(monkeypatch, make_args(tmp_path))
    saved = []
    monkeypatch.setattr(
        PolicyModelActor, "save_checkpoint", lambda self, tag, states=None: saved.append((tag, states))
    )
    actor.save_checkpoint("global_step3", {"episode": 0})
    assert saved == [("global_step3", {"episode": 0})] and actor.checkpoint_path("t") == "/aside/t"
    assert actor.rank.calls[-1] == ("save", "global_step3", "engine", "buffer")


@pytest.mark.parametrize("flags, scaled", [((), True), (("--algo.advantage.no_std_norm",), False)])
def test_cross_fitted_advantages_are_scaled_unless_switched_off(tmp_path, flags, scaled):
    actor = object.__new__(OrzPolicyModelActor)
    actor.strategy = SimpleNamespace(args=make_args(tmp_path, *flags), all_reduce=lambda sums, op: sums)
    items = [
        SimpleNamespace(returns=torch.full((2,), reward), action_mask=torch.ones(2), advantages=None)
        for reward in (0.0, 4.0)
    ]
    actor.trainer = SimpleNamespace(replay_buffer=SimpleNamespace(items=items))
    metrics = actor.set_values([torch.zeros(2), torch.zeros(2)])
    expected = 1.0 if scaled else 2.0
    assert [item.advantages.tolist() for item in items] == [[-expected] * 2, [expected] * 2]
    assert metrics["explained_variance"] == pytest.approx(0.0)


class Memory:
    """Notes the phases that are measured."""

    def __init__(self):
        self.phases = []

    @contextlib.contextmanager
    def phase(self, name):
        self.phases.append(name)
        yield

    def take(self):
        return {"actor_memory_mib": 5.0}


@pytest.fixture
def working(monkeypatch, tmp_path):
    """An actor whose model and processes are not there, with what is measured around it."""
    actor, at_work = object.__new__(OrzPolicyModelActor), []

    @contextlib.contextmanager
    def work(args):
        at_work.append(args)
        yield

    monkeypatch.setattr(module, "at_work", work)
    actor.strategy = SimpleNamespace(args=make_args(tmp_path))
    actor.rank, actor.at_work = SimpleNamespace(memory=Memory()), at_work
    return actor


def test_each_phase_is_measured_and_counts_as_work(monkeypatch, working):
    monkeypatch.setattr(PolicyModelActor, "forward", lambda self, *given: ("log-probs", given))
    monkeypatch.setattr(PolicyModelActor, "fit", lambda self, kl: {"kl": kl})
    monkeypatch.setattr(PolicyModelActor, "broadcast_to_vllm", lambda self: self.synced.append("all"))
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    working.synced = []
    working.trainer = SimpleNamespace(sync_metrics={"sync_bytes": 2.0}, sync_engine=working.synced.append)
    assert working.forward(1, 2) == ("log-probs", (1, 2))
    assert working.fit(0.5) == {"kl": 0.5, "seconds_actor": 2.5, "actor_memory_mib": 5.0}
    working.broadcast_to_vllm()
    working.sync_engine(3)
    assert working.synced == ["all", 3]
    assert working.rank.memory.phases == ["experience", "training", "sync", "sync"] and len(working.at_work) == 2
    assert working.sync_report() == {"sync_bytes": 2.0, "actor_memory_mib": 5.0}


def test_log_probs_at_temperature_1(monkeypatch, working):
    working.actor = SimpleNamespace(temperature=0.6)
    monkeypatch.setattr(PolicyModelActor, "forward", lambda self, *given: (given, self.actor.temperature))
    assert working.log_probs_at_temperature_1("ids") == (("ids",), 1.0) and working.actor.temperature == 0.6
    monkeypatch.setattr(PolicyModelActor, "forward", lambda self, *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        working.log_probs_at_temperature_1("ids")
    assert working.actor.temperature == 0.6


def test_a_frozen_policy_forgets_its_rollout(working):
    cleared = []
    working.trainer = SimpleNamespace(replay_buffer=SimpleNamespace(clear=lambda: cleared.append(True)))
    working.drop_buffer()
    assert cleared == [True]


def test_the_reference_model_meets_and_works_like_the_others(monkeypatch, tmp_path):
    calls, args, cls = [], make_args(tmp_path), module.OrzReferenceModelActor
    upstream = cls.__bases__[-1]
    monkeypatch.setattr(module, "meet_by_file", lambda actor, args: calls.append("meet"))
    monkeypatch.setattr(upstream, "_setup_distributed", lambda self, strategy: calls.append("set up"))
    monkeypatch.setattr(upstream, "forward", lambda self, *given: given)

    @contextlib.contextmanager
    def work(args):
        calls.append("work")
        yield

    monkeypatch.setattr(module, "at_work", work)
    actor = object.__new__(cls)
    actor.strategy = SimpleNamespace(args=args)
    actor._setup_distributed(actor.strategy)
    assert actor.forward(7) == (7,) and calls == ["meet", "set up", "work"]
    config = PretrainedConfig(output_router_logits=True)  # as OpenRLHF sets it
    engine = SimpleNamespace(module=SimpleNamespace(config=config))

    def initialise(self, strategy, pretrain):
        self.model = SimpleNamespace(model=engine)

    monkeypatch.setattr(upstream, "init_model_from_pretrained", initialise)
    actor.init_model_from_pretrained(actor.strategy, "m")
    assert config.output_router_logits is False


def test_policy_ranks_meet_before_they_are_set_up(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(module, "meet_by_file", lambda actor, args: calls.append("meet"))
    monkeypatch.setattr(PolicyModelActor, "_setup_distributed", lambda self, strategy: calls.append("set up"))
    object.__new__(OrzPolicyModelActor)._setup_distributed(SimpleNamespace(args=make_args(tmp_path)))
    assert calls == ["meet", "set up"]


@pytest.mark.parametrize("device, nccl", [("cpu", False), ("cuda", True)])
def test_no_nccl_on_a_cpu(monkeypatch, tmp_path, device, nccl):
    calls = []
    monkeypatch.setattr(ActorPPOTrainer, "_init_vllm_sync_group", lambda self, backend: calls.append(backend), False)
    trainer = object.__new__(OrzActorPPOTrainer)
    trainer.args = make_args(tmp_path, changes={"orz.device": device})
    trainer._init_vllm_sync_group("nccl")
    assert calls == (["nccl"] if nccl else [])


@pytest.mark.parametrize("flags, on_policy", [((), True), (("--orz.old_log_probs", "always"), False)])
def test_the_trainer_is_on_policy_where_the_settings_say_so(monkeypatch, tmp_path, flags, on_policy):
    made = {}

    def init(self, strategy, *given, **kwargs):
        made.update(kwargs)
        self.args, self.actor = strategy.args, SimpleNamespace(model="engine")
        self.actor_loss_fn = SimpleNamespace()

    monkeypatch.setattr(ActorPPOTrainer, "__init__", init)
    monkeypatch.setattr(module, "skip_reduction", lambda engine: made.update(spared=engine))
    monkeypatch.setattr(module.StepGuard, "of", lambda args, engine, name: (engine, name))
    trainer = OrzActorPPOTrainer(SimpleNamespace(args=make_args(tmp_path, *flags)))
    assert trainer.actor_loss_fn.on_policy is on_policy and made == {
        "dataloader_pin_memory": False,
        "spared": "engine",
    }
    assert trainer.guard == ("engine", "policy")


@pytest.mark.parametrize("action, above", [("warn", math.inf), ("error", math.inf), ("mask", 0.25)])
def test_the_loss_leaves_responses_out_where_the_settings_say_so(monkeypatch, tmp_path, action, above):
    def init(self, strategy, **kwargs):
        self.args, self.actor, self.actor_loss_fn = strategy.args, SimpleNamespace(model="engine"), OrzPolicyLoss()

    monkeypatch.setattr(ActorPPOTrainer, "__init__", init)
    monkeypatch.setattr(module, "skip_reduction", lambda engine: None)
    monkeypatch.setattr(module.StepGuard, "of", lambda *given: None)
    args = make_args(tmp_path, "--orz.on_logprob_gap", action, "--orz.max_logprob_gap", "0.25")
    assert OrzActorPPOTrainer(SimpleNamespace(args=args)).actor_loss_fn.mask_above == above
