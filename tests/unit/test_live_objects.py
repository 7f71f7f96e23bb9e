"""What the package assigns to other objects: of other libraries in few places, which docs/architecture.md names."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "openrlhf_orz"
PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
# Other libraries' objects and modules, changed in a way that they do not offer. docs/architecture.md names each file.
CHANGED = {
    "trainer/live_objects.py": {
        "engine.optimizer.check_grad_overflow", "engine.enable_backward_allreduce", "engine.optimizer.engine",
        "engine.optimizer.__class__", "lp._hp_grad", "scheduler._last_lr", "scheduler.base_lrs",
    },
    "runtime/ray_session.py": {"constants.ENABLE_RAY_CLUSTER"},
    "rollout/worker.py": {"method.moe_kernel"},
    "runtime/fork_server.py": {"multiprocessing.util.spawnv_passfds"},
    "models/dropout.py": {"module.p", "module.?"},
}  # fmt: skip
# What its library, or OpenRLHF, lets one set; and objects of the package's own.
MEANT_TO_BE_SET = {
    "cli/publish.py": {"about.curation", "run.evals", "run.metrics"},
    "data/curate/dedup.py": {"decision.conflicts"},
    "evaluate/run.py": {"options.?"},
    "models/adapters.py": {"base.set_submodule"},
    "models/cpu_ops.py": {"ctx.first", "ctx.lengths", "ctx.scale", "model.set_submodule"},
    "models/dropout.py": {"config.?"},
    "models/log_prob_head.py": {"ctx.elements", "ctx.fp32", "ctx.temperature", "ctx.with_entropy"},
    "models/packed_attention.py": {"_current_pack.several", "ctx.groups", "ctx.shape"},
    "models/routers.py": {"config.output_router_logits"},
    "models/shared_prefixes.py": {"self.pack.source"},
    "models/value_head.py": {"model.set_submodule", "ours.of_actions"},
    "report/rollout_sample.py": {"sample.left_out"},
    "report/run_data.py": {"run.name"},
    "rollout/agent.py": {"loaded.rules", "params.include_stop_str_in_output", "params.logprobs", "params.stop"},
    "rollout/engine.py": {"params.output_kind", "params.seed", "tempfile.tempdir"},
    "rollout/generation.py": {
        "experience.action_mask", "experience.attention_mask", "numbering.next", "params.logprobs", "params.seed",
    },
    "rollout/sync/check.py": {"sample.rollout_log_probs"},
    "runtime/fork_server.py": {"sys.argv"},
    "runtime/private.py": {"tempfile.tempdir"},
    "runtime/stopping.py": {"timer.daemon"},
    "settings/command_line.py": {
        "action.default", "args.rollout.max_tokens_per_gpu", "args.train.dynamic_batch_enable", "flat.dry_run",
        "parser.allow_abbrev", "parser.prog", "parser.usage",
    },
    "settings/redact.py": {"args.logger.wandb.key", "value.?"},
    "trainer/actor.py": {
        "head.labels", "head.temperature", "head.with_entropy", "item.advantages", "self.actor.temperature",
        "self.actor_loss_fn.mask_above", "self.actor_loss_fn.nll_weight", "self.actor_loss_fn.on_policy",
        "self.actor_loss_fn.right_B", "self.actor_loss_fn.right_tokens", "self.tokenizer.chat_template",
    },
    "trainer/batches.py": {"batch.?"},
    "trainer/checkpoints.py": {"self.generator._dataloader_iter", "self.generator._sample_buffer"},
    "trainer/critic.py": {
        "self.critic_loss_fn.form", "self.critic_loss_fn.outputs", "self.trainer.values", "strategy.args",
    },
    "trainer/critic_beside.py": {"trainer.critic_model_group"},
    "trainer/experience_maker.py": {"experience.advantages", "sample.index"},
    "trainer/exports.py": {"tokenizer.chat_template"},
    "trainer/ppo_trainer.py": {
        "self.experience_maker.early_values", "self.samples_generator.on_responses", "unlimited.args",
        "self.kl_ctl.value",
    },
    "trainer/pretraining.py": {"self.actor.saved"},
    "trainer/rank.py": {"buffer.rollouts", "torch.utils.deterministic.fill_uninitialized_memory"},
}  # fmt: skip


def chain(node: ast.expr) -> list[str]:
    """["a", "b", "c"] for a.b.c; calls and subscripts on the way are left out."""
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    if isinstance(node, (ast.Call, ast.Subscript)):
        return chain(node.func if isinstance(node, ast.Call) else node.value)
    return [node.id] if isinstance(node, ast.Name) else []


def changes(code: str) -> set[str]:
    """Attributes of other objects than ``self`` that ``code`` assigns or deletes; setattr, delattr, set_submodule."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            found.append(chain(node))
        elif isinstance(node, ast.Call) and chain(node.func)[-1:] in (["setattr"], ["delattr"]) and node.args:
            name = node.args[1]
            found.append([*chain(node.args[0]), name.value if isinstance(name, ast.Constant) else "?"])
        elif isinstance(node, ast.Call) and chain(node.func)[-1:] == ["set_submodule"]:
            found.append(chain(node.func))
    return {".".join(names) for names in found if len(names) > 1 and not (names[0] == "self" and len(names) == 2)}


@pytest.mark.parametrize(
    "code",
    [
        "head.__class__ = X", "module.forward = f", "engine.optimizer.check = True", "self.critic.train = f",
        "del self.critic.train", "setattr(norm, 'forward', f)", "self.engine.optimizer.step = f",
        "import vllm\nvllm.LLM.generate = f", "from vllm import LLM\nLLM.x = f", "a, model.b = 1, 2",
        "for engine.x in y: pass", "self.model.config.x = 1", "layers[0].forward = f", "m.set_submodule(name, x)",
    ],
)  # fmt: skip
def test_what_is_seen(code):
    assert changes(code), code


@pytest.mark.parametrize("code", ["self.model = x", "self.optimizer = x", "model = x", "x[0] = y", "self.x[0] = y"])
def test_what_is_not_meant(code):
    assert not changes(code), code


def test_each_is_listed():
    """A new one belongs into one of the two tables, by whose object it is."""
    for path in PACKAGE.rglob("*.py"):
        file = str(path.relative_to(PACKAGE))
        assert changes(path.read_text(encoding="utf-8")) == CHANGED.get(file, set()) | MEANT_TO_BE_SET.get(file, set())
    assert all((PACKAGE / file).exists() for file in [*CHANGED, *MEANT_TO_BE_SET])


@pytest.mark.parametrize("file", sorted(CHANGED))
def test_the_page_names_it(file):
    assert f"`{file}" in PAGE.partition("## What is changed on live objects of others")[2]
