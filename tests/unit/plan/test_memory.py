"""Bytes by hand, and what must hold of any plan."""

import dataclasses
import itertools

import pytest
from planned import COLOCATED, arguments, make, ranks

from openrlhf_orz.models import log_prob_head
from openrlhf_orz.plan import costs
from openrlhf_orz.plan.costs import LIVE_PARAMETERS, REDUCE_BUCKET, trained_states
from openrlhf_orz.plan.hardware import GIB
from openrlhf_orz.plan.shapes import KNOWN, Shape

P = 1_600_000_000


def states(*flags, count=P, n=8):
    return trained_states(count, arguments(*flags), n)


def test_zero_3_on_eight_ranks():
    """2/8 weights, 4/8 gradients, 12/8 optimizer (float32 master 4, moments 8) bytes a parameter."""
    found = states("--ds.zero_stage", 3)
    assert (found.weights, found.gradients, found.optimizer) == (P * 2 / 8, P * 4 / 8, P * 12 / 8)
    assert states("--ds.zero_stage", 3, "--ds.grad_accum_dtype", "bf16").gradients == P * 2 / 8
    assert found.gathered == 2 * LIVE_PARAMETERS and found.bucket == 2 * REDUCE_BUCKET
    assert found.step == 4 * P / 8 and found.host == 0


def test_zero_2_and_1_keep_the_weights_whole():
    two, one = states("--ds.zero_stage", 2), states("--ds.zero_stage", 1)
    assert two.weights == one.weights == 2 * P and two.optimizer == one.optimizer == 12 * P / 8
    assert two.gradients == 2 * P / 8 and one.gradients == (4 + 2) * P  # stage 1 sums in float32
    assert two.gathered == one.gathered == 0


def test_offloaded_optimizer_is_on_the_host():
    found = states("--ds.zero_stage", 3, "--ds.adam_offload")
    assert (found.optimizer, found.step) == (0, 0)
    assert found.host == 12 * P / 8 + 4 * P / 8  # with float32 gradients


def test_a_second_copy_of_the_weights_in_groups_of_ranks():
    """ZeRO++: in groups of 4 ranks, each holds a quarter of the weights besides its eighth."""
    assert states("--ds.zero_stage", 3, "--ds.zpg", 4).weights == P * 2 / 8 + P * 2 / 4
    assert states("--ds.zero_stage", 2, "--ds.zpg", 4).weights == P * 2


def test_a_bucket_that_overlaps_counts_twice():
    assert states("--ds.zero_stage", 2, "--ds.overlap_comm").bucket == 2 * 2 * REDUCE_BUCKET
    assert states("--ds.zero_stage", 2, count=1000).bucket == 2 * 1000


def test_float32():
    found = states("--ds.param_dtype", "fp32", "--ds.zero_stage", 2, n=1)
    assert (found.weights, found.gradients, found.optimizer) == (4 * P, 4 * P, 12 * P)
    assert states("--ds.param_dtype", "fp32", "--ds.zero_stage", 0, n=1).optimizer == 8 * P  # no second master


def test_bfloat16_with_float32_sums():
    """At ZeRO-1: gradients of a backward 2, their sums 4, which the step reads; master and moments 12."""
    found = states("--ds.param_dtype", "bf16", "--ds.zero_stage", 1, "--ds.grad_accum_dtype", "fp32", n=1)
    assert (found.weights, found.gradients, found.optimizer) == (2 * P, 6 * P, 12 * P)
    assert (found.bucket, found.step) == (0, 0)


def test_activations_by_hand():
    # H = 4, Q = 4, K = 2, I = 8; float32. Two norms of 3 x 4, attention 3 x 4 + 2 x 2, MLP 4 x 8 numbers of 4 bytes
    shape = Shape("llama", 4, 3, 2, 1, 2, 8, 10, tied=True)
    assert costs.layer_activations(shape, 4) == 4 * (24 + 16 + 32)
    working = 4 * (4 * 4 + 3 * 8)
    ends = 4 * (2 * 4 + 3 * 4)
    assert costs.training_activations(shape, 4, 5, checkpointing=False) == 5 * (3 * 288 + ends + working)
    # half of the widths with two ranks in tensor parallel, but not the norms and the residual stream
    assert costs.layer_activations(shape, 4, 2) == 4 * (24 + (16 + 32) / 2)
    halved = 5 * (3 * 4 * 48 + ends + 4 * (4 * 4 + 3 * 8 / 2))
    assert costs.training_activations(shape, 4, 5, checkpointing=False, tensor_parallel=2) == halved
    assert costs.forward_activations(shape, 4, 5) == 5 * (4 * 12 + working)
    # Qwen3 norms queries and keys; of two experts of width 3 each keeps 4 x 3 numbers and two of width H
    qwen3 = dataclasses.replace(shape, qk_norm=True)
    assert costs.layer_activations(qwen3, 4) == 4 * (24 + 16 + 32 + 3 * (4 + 2))
    experts = dataclasses.replace(shape, moe_layers=3, experts=5, active_experts=2, expert_intermediate=3)
    assert costs.layer_activations(experts, 4) == 4 * (24 + 16 + 2 * (4 * 3 + 2 * 4))
    # with checkpointing each layer's input, and one layer
    assert costs.training_activations(shape, 4, 5, checkpointing=True) == 5 * (288 + 3 * 16 + ends + working)


def test_a_tile_of_logits():
    shape = KNOWN["Qwen/Qwen2.5-7B"]
    assert costs.LOGITS_PER_TILE == log_prob_head.TILE_LOGITS
    assert costs.LOGITS_KEPT == log_prob_head.KEPT_LOGITS
    weight = shape.vocabulary * shape.hidden

    def tile(tokens, device="cuda"):
        found = log_prob_head.tile_shape(tokens, shape.vocabulary, log_prob_head.TILE_LOGITS[device])
        assert found == costs.tile_shape(tokens, shape.vocabulary, costs.LOGITS_PER_TILE[device])
        return found[0] * found[1]

    most = costs.head_activations(shape, 2, 10**6, "cuda", gradient=True)
    assert most == tile(10**6) * (4 + 2 + 2) + weight * (4 + 2)
    # all tokens in a tile: the weight's gradient has one summand
    assert costs.head_activations(shape, 2, 3000, "cuda", gradient=True) == tile(3000) * 8 + weight * 2
    # few tokens on a CPU in half precision: their logits are kept
    few, part = 800 * shape.vocabulary, tile(800, "cpu")
    assert costs.head_activations(shape, 2, 800, "cpu", gradient=True) == few * 2 + part * 8 + weight * 2
    assert costs.head_activations(shape, 4, 800, "cpu", gradient=True) == part * 4 + weight * 4
    assert costs.head_activations(shape, 2, 3, "cuda", gradient=True) == 3 * shape.vocabulary * 8 + weight * 2
    # --orz.fp32_head: no logit in half precision, none kept, and on a CPU float32 copies of a tile's inputs
    assert costs.head_activations(shape, 2, 3000, "cuda", gradient=True, fp32=True) == tile(3000) * 6 + weight * 2
    copies = 4 * shape.hidden * sum(costs.tile_shape(800, shape.vocabulary, costs.LOGITS_PER_TILE["cpu"]))
    assert costs.head_activations(shape, 2, 800, "cpu", gradient=True, fp32=True) == part * 6 + weight * 2 + copies


def test_kv_cache():
    """7B in bfloat16: 2 x 28 layers x 4 heads x 128 x 2 bytes are 56 KiB a token."""
    found = make(*COLOCATED, *ranks(1, 8))
    assert found.policy.kv_bytes_per_token(2) == 57344
    # of a step of 8,192 tokens the residual stream, a norm and the MLP's products; the logits of 1,024 are less
    step = 8192 * (3584 * (4 + 2 * 2) + 4 * 3584 * 2 + 3 * 18944 * 2)
    assert found.args.orz.max_num_batched_tokens == 8192 and found.args.orz.max_num_seqs == 1024
    step = max(step, 1024 * 152064 * 14)
    cache = 0.5 * 79 * GIB - 2 * found.policy.policy_parameters() - GIB - step
    assert found.memory.kv_cache_tokens == pytest.approx(cache / 57344)
    two = make(*COLOCATED, *ranks(1, 8), "--vllm.tensor_parallel_size", 2)
    assert two.memory.kv_cache_tokens > 2 * found.memory.kv_cache_tokens  # half the weights on each GPU
    # more GPUs than the four key-value heads: each holds a whole head, a quarter of a token's bytes
    eight = make(*COLOCATED, *ranks(1, 8), "--vllm.tensor_parallel_size", 8)
    cache = 0.5 * 79 * GIB - 2 * found.policy.policy_parameters() / 8 - GIB - step
    assert eight.memory.kv_cache_tokens == pytest.approx(cache / (57344 / 4))


def test_peak_grows_with_tokens():
    peaks = [
        make(*COLOCATED, *ranks(1, 8), "--train.max_tokens_per_gpu", n, "--ds.zero_stage", 3).memory.peak.total
        for n in (2048, 4096, 8192, 16384, 32768)
    ]
    assert peaks == sorted(peaks) and peaks[-1] > peaks[0]


def test_a_histogram_of_returns_by_hand():
    flags = (*COLOCATED, *ranks(1, 8), "--ds.zero_stage", 3)
    plain, found = make(*flags), make(*flags, "--orz.value_loss", "hl_gauss", "--orz.value_bins", 101)
    hidden = found.critic.hidden
    assert found.critic.critic_parameters() - plain.critic.critic_parameters() == 100 * hidden + 101
    assert make(*flags, "--orz.value_loss", "bce").critic.critic_parameters() - plain.critic.critic_parameters() == 1
    assert phase(found, "values")["critic outputs"] == 10 * 101 * found.batches.forward_pack
    assert phase(found, "training of critic")["critic outputs"] == 37 * 101 * found.batches.longest_pack
    assert "critic outputs" not in phase(plain, "values") and found.policy == plain.policy


@pytest.mark.parametrize("stage", range(4))
def test_more_ranks_never_need_more(stage):
    asleep = [flag for flag in COLOCATED if flag != "--ds.enable_sleep" or stage >= 2]
    common = ("--ds.zero_stage", stage, *asleep, "--actor.gradient_checkpointing_enable")
    plans = [make(*common, *ranks(nodes, 8)) for nodes in (1, 2, 4, 8)]
    for few, many in itertools.pairwise(plans):
        for a, b in zip(few.memory.phases, many.memory.phases, strict=True):
            assert b.total <= a.total, (a.name, stage)


def phase(plan, name, place="all"):
    (found,) = [phase for phase in plan.memory.phases if (phase.place, phase.name) == (place, name)]
    return {key: value for key, value in found.parts.items() if value}


def test_phases_by_hand():
    """ZeRO-3 on eight GPUs that all models and vLLM share and sleep on; no old log-probs, no reference model."""
    found = make(*COLOCATED, *ranks(1, 8), "--ds.zero_stage", 3, "--orz.sync_bucket_mib", 512)
    policy, critic = found.policy.policy_parameters(), found.critic.critic_parameters()
    # a context for policy, critic and vLLM; 2/8 bytes of weights; asleep, optimizers are on the host
    base = {"CUDA contexts": 3 * 0.75 * GIB, "policy weights": policy / 4, "critic weights": critic / 4}
    names = ["generation", "values", "training of critic", "training of policy", "weight sync"]
    assert [phase.name for phase in found.memory.phases] == names
    step = 1024 * 152064 * 14  # whole logits of 1,024 responses
    cache = 0.5 * 79 * GIB - 2 * policy - GIB - step
    awake = {"vLLM weights": 2 * policy, "vLLM KV cache": cache, "vLLM graphs and step": GIB + step}
    assert phase(found, "generation") == base | awake
    # the bucket's gathered parameters and the flat buffer; vLLM has its weights and no cache
    assert phase(found, "weight sync") == base | {
        "policy gathered weights": 2 * LIVE_PARAMETERS, "sync bucket": 2 * 512 * 2**20,
        "vLLM weights": 2 * policy, "vLLM asleep": GIB,
    }  # fmt: skip
    forward = costs.forward_activations(found.critic, 2, found.batches.forward_pack)
    assert phase(found, "values") == base | {
        "critic gathered weights": 2 * LIVE_PARAMETERS, "critic activations": forward, "vLLM asleep": GIB,
    }  # fmt: skip
    pack = found.batches.longest_pack
    assert phase(found, "training of policy") == base | {
        "policy optimizer": policy * 12 / 8, "policy gradients": policy / 2,
        "policy gathered weights": 2 * LIVE_PARAMETERS, "policy gradient bucket": 2 * REDUCE_BUCKET,
        "policy activations": costs.training_activations(found.policy, 2, pack, checkpointing=False),
        "policy logits": costs.head_activations(found.policy, 2, pack, "cuda", gradient=True),
        "vLLM asleep": GIB,
    }  # fmt: skip
    assert found.memory.host == {
        "policy optimizer and gradients": 16 * policy, "critic optimizer and gradients": 16 * critic,
        "vLLM weights asleep": 8 * 2 * policy, "processes (all)": 8 * 3 * 4 * GIB,
    }  # fmt: skip
    assert found.memory.limit == 79 * GIB and not found.memory.problems


def test_the_sync_bucket_is_never_larger_than_the_weights():
    found = make(*COLOCATED, *ranks(1, 8), "--orz.sync_bucket_mib", 10**6)
    assert phase(found, "weight sync")["sync bucket"] == 2 * 2 * found.policy.policy_parameters()


def test_forwards_that_flags_add_or_save():
    def names(*flags):
        plan = make(*COLOCATED, *ranks(1, 8), *flags)
        return {phase.name for phase in plan.memory.phases}

    assert {"values", "training of critic"} <= names()
    assert {"reference log-probs", "old log-probs"} <= names("--algo.kl.init_coef", "0.1")
    assert "old log-probs" in names("--orz.policy_updates", 2) and "old log-probs" not in names()
    assert "values" not in names("--orz.cross_fit_values")
    awake = make("--train.colocate_all", *ranks(1, 8), "--orz.cross_fit_values").memory.phases
    assert {"training of critic", "training of policy"} <= {phase.name for phase in awake}  # one after the other
    assert not {"values", "training of critic"} & names("--algo.advantage.estimator", "group_norm")


def test_the_larger_of_backward_and_optimizer_step():
    """ZeRO-2 on one rank and a short pack: float32 gradients for the step are more than what a backward holds."""
    flags = ("--train.colocate_all", "--ds.zero_stage", 2, "--data.max_len", 512, "--train.max_tokens_per_gpu", 512)
    parts = phase(make(*flags, *ranks(1, 1)), "training of critic and policy")
    policy = KNOWN["Qwen/Qwen2.5-7B"].policy_parameters()
    assert parts["policy float32 gradients"] == 4 * policy and "policy activations" not in parts


def test_a_reference_model_holds_all_logits_of_a_pack():
    kl = ("--algo.kl.init_coef", "0.1", "--rollout.max_tokens_per_gpu", "32768")
    found = make(*COLOCATED, *ranks(1, 8), *kl)
    (phase,) = [phase for phase in found.memory.phases if "reference" in phase.name]
    assert phase.parts["ref logits"] == 32768 * found.policy.vocabulary * 6


def test_a_reference_model_is_sharded_under_zero_3_and_can_be_on_the_host():
    p, args = P, arguments("--ds.zero_stage", 3)
    assert costs.reference_states(p, args, 8, offload=False) == costs.States(p / 4, 0, 0, 2 * LIVE_PARAMETERS, 0, 0, 0)
    assert costs.reference_states(p, args, 8, offload=True).host == p / 4
    assert costs.reference_states(p, args, 8, offload=True).weights == 0
    whole = costs.reference_states(p, arguments("--ds.zero_stage", 2), 8, offload=False)
    assert costs.reference_states(p, arguments("--ds.zero_stage", 2), 8, offload=True) == whole
    assert (whole.weights, whole.gathered) == (2 * p, 0)


def test_an_average_of_the_weights_is_on_the_host():
    """Sharded under ZeRO-3: each of 16 GPUs holds 1/16 on its node, whole on each GPU's rank else."""
    for stage, share in ((3, 16), (2, 1)):
        found = make(*COLOCATED, *ranks(2, 8), "--ds.zero_stage", stage, "--train.enable_ema")
        expected = 8 * 2 * found.policy.policy_parameters() / share
        assert found.memory.host["average of the policy's weights"] == pytest.approx(expected)


def test_on_a_cpu_host_and_device_are_one():
    from openrlhf_orz.plan.hardware import parse_hardware
    from openrlhf_orz.plan.planner import plan_run

    args = arguments("--train.colocate_all", "--orz.cpu_kvcache_mib", 256, *ranks(1, 2), device="cpu")
    found = plan_run(args, parse_hardware("cpux2"))
    parts = phase(found, "generation")
    assert parts["processes"] == (2 * 0.65 + 1.3) * GIB and parts["vLLM KV cache"] == 256 * 2**20
    assert found.memory.host == {} and found.memory.limit == found.hardware.memory_gib * GIB / 2


def test_sleep_takes_the_other_side_off_the_gpu():
    flags = ("--train.colocate_all", "--vllm.gpu_memory_utilization", "0.5", "--ds.zero_stage", 3, *ranks(1, 8))
    awake, asleep = make(*flags), make(*flags, "--vllm.enable_sleep", "--ds.enable_sleep")
    training = {phase.name for phase in asleep.memory.phases if "training" in phase.name}
    assert training == {"training of critic", "training of policy"}
    assert "training of critic and policy" in {phase.name for phase in awake.memory.phases}
    assert asleep.memory.peak.total < awake.memory.peak.total
    # what leaves the GPUs is on the hosts: 8 ranks hold 12 + 4 bytes of each parameter together
    count = asleep.policy.policy_parameters()
    assert asleep.memory.host["policy optimizer and gradients"] == pytest.approx(16 * count)
    assert asleep.memory.host["vLLM weights asleep"] == pytest.approx(8 * 2 * count)


def test_separate_gpus_are_separate_places():
    found = make(*ranks(1, 2), "--vllm.num_engines", 3, "--algo.kl.init_coef", "0.1")
    assert list(dict.fromkeys(phase.place for phase in found.memory.phases)) == [
        "policy", "reference", "critic", "engines",
    ]  # fmt: skip
    assert found.seconds.gpus == 2 + 2 + 2 + 3


def test_host_memory_counts():
    flags = (*COLOCATED, "--ds.zero_stage", "3", "--actor.gradient_checkpointing_enable", *ranks(1, 8))
    from openrlhf_orz.plan.hardware import parse_hardware
    from openrlhf_orz.plan.planner import plan_run

    small = plan_run(arguments(*flags), dataclasses.replace(parse_hardware("h100"), host_gib=100))
    large = plan_run(arguments(*flags), dataclasses.replace(parse_hardware("h100"), host_gib=2000))
    assert large.fits and not small.fits


def test_frozen_parameters_have_weights_alone():
    whole, half = states("--ds.zero_stage", 3), trained_states(P, arguments("--ds.zero_stage", 3), 8, frozen=P // 2)
    assert (half.weights, half.gathered) == (whole.weights, whole.gathered)
    assert (half.optimizer, half.gradients, half.step) == (whole.optimizer / 2, whole.gradients / 2, whole.step / 2)


def test_a_critic_that_trains_in_part_needs_less_and_several_passes_take_longer():
    plain, epochs = make(*COLOCATED), make(*COLOCATED, "--orz.critic_epochs", 2)
    frozen = make(*COLOCATED, "--orz.freeze_critic", "layers:14")
    assert epochs.work.useful["critic training"] == 2 * plain.work.useful["critic training"]
    assert epochs.batches.critic_updates == 24 and epochs.memory.peak.total == plain.memory.peak.total
    assert epochs.seconds.phases["critic training"] == pytest.approx(2 * plain.seconds.phases["critic training"])
    # half of the layers have no backward: 1 + 1 forwards instead of 1 + 2
    assert frozen.work.useful["critic training"] == pytest.approx(2 / 3 * plain.work.useful["critic training"])
    now, before = (next(p.parts for p in x.memory.phases if p.name == "training of critic") for x in (frozen, plain))
    assert now["critic weights"] == before["critic weights"]
    assert now["critic optimizer"] < 0.6 * before["critic optimizer"]


def test_tensor_parallel_ranks_have_embedding_and_head_whole():
    """DeepSpeed cuts what transformers' plan names, layers: of Qwen2.5-7B 2.72e9 of 7.6e9 are on a rank."""
    found = make("--train.colocate_all", *ranks(1, 8), "--ds.tensor_parallel_size", 4, "--ds.zero_stage", 1)
    shape = found.policy
    table = shape.vocabulary * shape.hidden
    held = (shape.policy_parameters() - 2 * table) / 4 + 2 * table
    assert held == pytest.approx(2.72e9, rel=0.01)
    peak = max(phase.parts.get("policy weights", 0) for phase in found.memory.phases)
    assert peak == pytest.approx(2 * held)
