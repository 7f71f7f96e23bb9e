"""The critic's glue: its own steps for the schedule, its losses' metrics, values by their samples, its checkpoint."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("openrlhf")
from glue import bare, make_args
from openrlhf.trainer.ray.ppo_critic import CriticModelActor, CriticPPOTrainer
from transformers import PretrainedConfig

from openrlhf_orz.settings.finished import changed
from openrlhf_orz.trainer import critic as module
from openrlhf_orz.trainer.critic import OrzCriticModelActor, OrzCriticPPOTrainer, RecordingValueLoss


def test_value_loss_is_eq_2_and_keeps_its_values():
    loss = RecordingValueLoss(None)
    values, returns = torch.tensor([[1.0, 3.0, 9.0]], requires_grad=True), torch.tensor([[0.0, 1.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    result = loss(values, torch.zeros(1, 3), returns, action_mask=mask)
    assert result.item() == pytest.approx(0.5 * (1 + 4) / 2)  # unclipped though the old values are far
    assert loss.values.tolist() == [[1.0, 3.0, 9.0]] and not loss.values.requires_grad
    assert loss.sums.tolist() == [2, 1, 1, -3, 5]  # tokens, sum and squares of returns, of errors


def trainer_of(monkeypatch, args, losses, boundaries, skipped=()):
    """An OrzCriticPPOTrainer without a model: micro-batch i has ``losses[i]`` and sample i alone, of two tokens."""
    monkeypatch.setattr(module, "share_cores", lambda args: None)

    def training_step(self, experience, step, loss_batch_info=None):
        values = torch.tensor([[float(step), 10.0 + step, -1.0]])
        self.critic_loss_fn(values, None, torch.tensor([[0.0, 1.0, 0.0]]), action_mask=torch.tensor([[1.0, 1.0, 0.0]]))
        return {"critic_loss": losses[step], "values": 0.0, "critic_lr": 0.1 * step, "critic_grad_norm": float(step)}

    def ppo_train(self):
        rows = [dict(self.training_step(None, step)) for step in range(len(losses))]
        return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}

    monkeypatch.setattr(CriticPPOTrainer, "training_step", training_step)
    monkeypatch.setattr(CriticPPOTrainer, "ppo_train", ppo_train)
    trainer = bare(OrzCriticPPOTrainer, args, skipped)
    trainer.max_epochs = 1
    trainer.critic_loss_fn = RecordingValueLoss(None)

    class Buffer:
        dynamic_optimizer_step = boundaries
        dynamic_indices = [[i] for i in reversed(range(len(losses)))]  # micro-batch i holds the sample i from the end
        items = [SimpleNamespace(action_mask=torch.ones(2)) for _ in losses]

        def __len__(self):
            return len(losses)

    trainer.replay_buffer = Buffer()
    return trainer


def test_metrics_are_of_optimizer_steps_not_of_micro_batches(monkeypatch, tmp_path):
    status = trainer_of(monkeypatch, make_args(tmp_path), [1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1]).ppo_train()
    assert status["critic_loss"] == pytest.approx(5.0)  # 1 + 2 and 3 + 4: shares of a step's mean add up
    assert status["critic_grad_norm"] == 2.0 and status["critic_lr"] == pytest.approx(0.3)
    assert status["critic_updates"] == 2 and status["critic_steps_skipped"] == 0
    assert {key for key in status if key.startswith("explained")} == {
        "explained_variance_minibatch_01", "explained_variance_minibatch_02"}  # fmt: skip
    # errors 0, -9, -1, -10 have variance 20.5, returns 0, 1, 0, 1 have 0.25
    assert status["explained_variance_minibatch_01"] == pytest.approx(1 - 20.5 / 0.25, rel=1e-4)


def test_a_skipped_step_has_no_metrics(monkeypatch, tmp_path):
    args = make_args(tmp_path)
    status = trainer_of(monkeypatch, args, [1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1], skipped=(1,)).ppo_train()
    assert status["critic_updates"] == 1 and status["critic_steps_skipped"] == 1
    assert status["critic_grad_norm"] == 3.0 and "explained_variance_minibatch_02" not in status
    # errors -2, -11, -3, -12; with those of the skipped step the variance would be 21.5
    assert status["explained_variance_minibatch_01"] == pytest.approx(1 - 20.5 / 0.25, rel=1e-4)


def test_values_are_kept_by_sample_only_where_they_are_asked_for(monkeypatch, tmp_path):
    args = make_args(tmp_path, "--orz.cross_fit_values")
    trainer = trainer_of(monkeypatch, args, [1.0, 2.0], [1, 1])
    trainer.ppo_train()
    assert [values.tolist() for values in trainer.values] == [[1.0, 11.0], [0.0, 10.0]]
    actor = object.__new__(OrzCriticModelActor)
    actor.trainer = trainer
    assert [values.tolist() for values in actor.take_values()] == [[1.0, 11.0], [0.0, 10.0]]
    assert trainer.values == []  # let go
    plain = trainer_of(monkeypatch, make_args(tmp_path), [1.0, 2.0], [1, 1])
    plain.ppo_train()
    assert plain.values == [None, None]


def test_a_cross_fitted_value_is_of_the_first_pass(monkeypatch, tmp_path):
    trainer = trainer_of(monkeypatch, make_args(tmp_path, "--orz.cross_fit_values"), [1.0, 2.0], [1, 1])
    trainer.replay_buffer.dynamic_indices = [[0], [0]]  # the second pass has trained on the sample already
    trainer.ppo_train()
    assert trainer.values[0].tolist() == [0.0, 10.0]


def initialised(monkeypatch, args, max_steps):
    ranks = []

    def make_rank(role, args):
        ranks.append(role)
        return SimpleNamespace(
            resume=lambda *given: ranks.append(given), save=lambda *given: ranks.append(given),
            checkpoint_path=lambda tag: f"/aside/{tag}", tell=lambda stage: None,
        )  # fmt: skip

    def init(self, strategy, pretrain, max_steps):
        self.strategy, self.critic, self.max_steps = strategy, "engine", max_steps
        self.trainer = SimpleNamespace(replay_buffer="buffer")

    monkeypatch.setattr(module, "Rank", make_rank)
    monkeypatch.setattr(CriticModelActor, "init_model_from_pretrained", init)
    actor = object.__new__(OrzCriticModelActor)
    actor.init_model_from_pretrained(SimpleNamespace(args=args), "model", max_steps)
    return actor, ranks


def test_the_critics_schedule_counts_its_own_steps(monkeypatch, tmp_path):
    args = make_args(tmp_path, "--orz.critic_updates", "3", "--orz.policy_updates", "2")
    actor, ranks = initialised(monkeypatch, args, max_steps=20)  # ten rollouts
    assert actor.max_steps == 30 and ranks == ["_critic", ("engine", "buffer")]


def test_a_checkpoint_is_written_aside_by_deepspeed_and_by_the_rank(monkeypatch, tmp_path):
    actor, ranks = initialised(monkeypatch, make_args(tmp_path), max_steps=2)
    saved = []
    monkeypatch.setattr(CriticModelActor, "save_checkpoint", lambda self, tag: saved.append(tag))
    actor.save_checkpoint("global_step3")
    assert saved == ["global_step3"] and actor.checkpoint_path("t") == "/aside/t"
    assert ranks[-1] == ("global_step3", "engine", "buffer")


class Head(torch.nn.Module):
    value_head_prefix = "score"

    def __init__(self):
        super().__init__()
        self.config = PretrainedConfig()
        self.score = torch.nn.Linear(16, 1, bias=False)
        torch.nn.init.constant_(self.score.weight, 7.0)


@pytest.mark.parametrize("how", ["released", "kaiming", "paper"])
def test_the_value_head_is_initialised_by_flag_and_seed(monkeypatch, tmp_path, how):
    monkeypatch.setattr(CriticModelActor, "build_model", lambda self, strategy, pretrain: Head())
    monkeypatch.setattr(module, "has_weight", lambda pretrain, name: False)

    def weight(seed):
        args = make_args(tmp_path, "--orz.value_head_init", how, "--train.seed", str(seed))
        args = changed(args, {"orz.share_prefixes": "never"})
        return object.__new__(OrzCriticModelActor).build_model(SimpleNamespace(args=args), "m").score.weight.data

    first = weight(1)
    assert torch.equal(first, weight(1)) and not torch.equal(first, weight(2))
    bound = {"released": 5 / 17, "kaiming": 1 / 4, "paper": 5**0.5}[how]
    assert 0 < first.abs().max() <= bound
    monkeypatch.setattr(module, "has_weight", lambda pretrain, name: name == "score.weight")
    monkeypatch.setattr(module, "folded_head", lambda pretrain, args: None)
    assert (weight(1) == 7).all()  # a trained critic keeps its head


def test_each_phase_is_measured_and_counts_as_work(monkeypatch, tmp_path):
    phases, work = [], []

    @contextlib.contextmanager
    def phase(name):
        phases.append(name)
        yield

    @contextlib.contextmanager
    def at_work(args):
        work.append(args)
        yield

    monkeypatch.setattr(module, "at_work", at_work)
    monkeypatch.setattr(CriticModelActor, "fit", lambda self: {"critic_loss": 1.0})
    monkeypatch.setattr(CriticModelActor, "execute_batch", lambda self, method, *given: (method, given))
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    actor = object.__new__(OrzCriticModelActor)
    actor.strategy = SimpleNamespace(args=make_args(tmp_path, changes={"orz.device": "cuda"}))
    actor.rank = SimpleNamespace(memory=SimpleNamespace(phase=phase, take=lambda: {"critic_memory_mib": 5.0}))
    actor.critic = SimpleNamespace(zero_optimization_stage=lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert actor.fit() == {"critic_loss": 1.0, "seconds_critic": 2.5, "critic_memory_mib": 5.0}
    data = {"sequences": ["a", "b", "c"]}
    assert actor.execute_batch("forward", data, 0, 3) == ("forward", (data, 0, 3))
    assert actor.execute_batch("append", data, 0, 3) == ("append", (data, 0, 3))
    assert phases == ["training", "experience"] and len(work) == 2, "what is appended is no work"


@pytest.mark.parametrize(
    "ranks, stage, device, side_by_side",
    [(1, 1, "cpu", True), (2, 1, "cpu", False), (1, 3, "cpu", False), (1, 1, "cuda", False)],
)
def test_packs_go_side_by_side_on_a_lone_cpu_rank(monkeypatch, tmp_path, ranks, stage, device, side_by_side):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    actor = object.__new__(OrzCriticModelActor)
    actor.strategy = SimpleNamespace(args=make_args(tmp_path, changes={"orz.device": device}))
    actor.critic = SimpleNamespace(zero_optimization_stage=lambda: stage)
    assert actor.forwards_side_by_side is side_by_side


def test_critic_ranks_meet_before_they_are_set_up(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(module, "meet_by_file", lambda actor, args: calls.append("meet"))
    monkeypatch.setattr(CriticModelActor, "_setup_distributed", lambda self, strategy: calls.append("set up"))
    object.__new__(OrzCriticModelActor)._setup_distributed(SimpleNamespace(args=make_args(tmp_path)))
    assert calls == ["meet", "set up"]


def test_the_trainer_has_our_loss_and_a_guard(monkeypatch, tmp_path):
    made = {}

    def init(self, strategy, *given, **kwargs):
        made.update(kwargs)
        self.args, self.critic, self.critic_loss_fn = strategy.args, "engine", SimpleNamespace(clip_eps=0.3)

    monkeypatch.setattr(CriticPPOTrainer, "__init__", init)
    monkeypatch.setattr(module, "skip_reduction", lambda engine: made.update(spared=engine))
    monkeypatch.setattr(module.StepGuard, "of", lambda args, engine, name: (engine, name))
    trainer = OrzCriticPPOTrainer(SimpleNamespace(args=make_args(tmp_path)))
    assert isinstance(trainer.critic_loss_fn, RecordingValueLoss) and trainer.critic_loss_fn.clip_eps == 0.3
    assert made == {"dataloader_pin_memory": False, "spared": "engine"} and trainer.guard == ("engine", "critic")


@pytest.mark.parametrize("flags, shared, norms", [((), 1, 1), (("--orz.share_prefixes", "never"), 0, 1)])
def test_the_critic_is_built_as_the_settings_say(monkeypatch, tmp_path, flags, shared, norms):
    calls, asked = {"shared": 0, "norms": 0, "dropout": 0}, []
    monkeypatch.setattr(CriticModelActor, "build_model", lambda self, strategy, pretrain: Head())
    monkeypatch.setattr(module, "ask_router_loss", lambda critic, wanted: asked.append(wanted))
    monkeypatch.setattr(module, "has_weight", lambda pretrain, name: True)
    monkeypatch.setattr(module, "folded_head", lambda pretrain, args: None)
    monkeypatch.setattr(module, "install_prefix_sharing", lambda critic: calls.update(shared=calls["shared"] + 1))
    monkeypatch.setattr(module, "install_rms_norm", lambda critic: calls.update(norms=calls["norms"] + 1))
    monkeypatch.setattr(module, "turn_off_dropout", lambda critic: calls.update(dropout=calls["dropout"] + 1))
    strategy = SimpleNamespace(args=make_args(tmp_path, *flags))
    object.__new__(OrzCriticModelActor).build_model(strategy, "m")
    assert calls == {"shared": shared, "norms": norms, "dropout": 1} and asked == [False]
    gpu = SimpleNamespace(args=make_args(tmp_path, *flags, changes={"orz.device": "cuda"}))
    object.__new__(OrzCriticModelActor).build_model(gpu, "m")
    assert calls == {"shared": 2 * shared, "norms": norms, "dropout": 2}


class TinyCritic(torch.nn.Module):
    """Ends as OpenRLHF's critic does: padded (B, S, K), or packed (B, S, 1, K) as its gather leaves them."""

    value_head_prefix, packing_samples = "score", False

    def __init__(self):
        super().__init__()
        self.score = torch.nn.Linear(4, 1, bias=False)
        self.config = PretrainedConfig(hidden_size=4)

    def forward(self, hidden, action_mask=None, attention_mask=None, return_output=False):
        values = self.score(hidden).squeeze(-1)
        if self.packing_samples and values.dim() == 3:
            values = values[:, :, None]
        values = values[:, :-1][:, -action_mask.shape[1] :] * action_mask.float()
        return (values, "outputs") if return_output else values


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("loss", ["bce", "hl_gauss"])
def test_a_head_of_outputs_gives_values_and_trains(monkeypatch, tmp_path, loss, packed):
    rate = ("--orz.value_base_rate", "0.2") if loss == "bce" else ()
    args = make_args(tmp_path, "--orz.value_loss", loss, *rate)
    critic, made = TinyCritic(), object.__new__(OrzCriticModelActor)
    critic.packing_samples = packed
    monkeypatch.setattr(module, "has_weight", lambda pretrain, name: False)
    made.fill_outputs_head(critic, "m", args)
    form = module.value_form(args)
    assert critic.config.orz_values == {"loss": loss, "bins": 51, "low": 0.0, "high": 1.0}
    torch.manual_seed(0)
    hidden, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        critic.score.outputs.weight.zero_()
        start = 0.2 if loss == "bce" else 0.5
        assert torch.allclose(critic(hidden, mask, None), start * mask, atol=1e-6)
        critic.score.outputs.weight.normal_()
    values, rest = critic(hidden, action_mask=mask, return_output=True)
    assert rest == "outputs" and torch.allclose(form.values(critic.score.of_actions) * mask, values)
    assert values.shape == (2, 3) and values[1, 2] == 0 and ((values >= -0.05) & (values <= 1.05)).all()
    criterion = RecordingValueLoss(None)
    criterion.form, criterion.outputs = form, lambda: critic.score.of_actions
    returns = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    found = criterion(values, None, returns, action_mask=mask, batch_num_tokens=5.0, dp_size=1)
    expected = (form.losses(critic.score.of_actions, returns) * mask).sum() / 5
    assert found.item() == pytest.approx(expected.item()) and torch.equal(criterion.values, values.detach())
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        values = critic(hidden, action_mask=mask)
        criterion(values, None, returns, action_mask=mask).backward()
        optimizer.step()
    errors = ((critic(hidden, mask) - returns) * mask).abs()
    assert errors.mean() < 0.2, errors  # 0.42 for values of a half


def test_a_saved_head_of_outputs_comes_back(monkeypatch, tmp_path):
    args = make_args(tmp_path, "--orz.value_loss", "hl_gauss")
    stored = {"score.outputs.weight": torch.randn(51, 4), "score.outputs.bias": torch.randn(51)}
    monkeypatch.setattr(module, "has_weight", lambda pretrain, name: name in stored)
    monkeypatch.setattr(module, "stored_tensor", lambda pretrain, name: stored[name])
    critic = TinyCritic()
    object.__new__(OrzCriticModelActor).fill_outputs_head(critic, "m", args)
    assert critic.state_dict().keys() == stored.keys()
    assert all(torch.equal(critic.state_dict()[name], tensor) for name, tensor in stored.items())


def test_a_head_saved_in_rows_loads_as_one(monkeypatch, tmp_path):
    """As the released 32B critic's: [8, 640] for [1, 5120]; here [4, 8] for [1, 32], and back from what it saves."""
    from openrlhf.models import get_llm_for_sequence_regression
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = dict(hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
    Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **shape)).save_pretrained(tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["score.weight"] = torch.arange(32.0).reshape(4, 8)
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})

    def upstream(self, strategy, pretrain):
        return get_llm_for_sequence_regression(
            pretrain, "critic", param_dtype="fp32", attn_implementation="sdpa",
            value_head_prefix=strategy.args.ds.value_head_prefix,
        )  # fmt: skip

    monkeypatch.setattr(CriticModelActor, "build_model", upstream)
    strategy = SimpleNamespace(args=make_args(tmp_path, changes={"orz.share_prefixes": "never"}))

    def build(path):
        return object.__new__(OrzCriticModelActor).build_model(strategy, str(tmp_path / path))

    critic = build("m")
    head = critic.get_submodule(critic.value_head_prefix).weight
    assert head.tolist() == [list(range(32))] and head.requires_grad
    assert strategy.args.ds.value_head_prefix == "score", "nobody else's settings have changed"
    critic.save_pretrained(tmp_path / "again")
    again = build("again")
    assert torch.equal(again.get_submodule(again.value_head_prefix).weight, head)
