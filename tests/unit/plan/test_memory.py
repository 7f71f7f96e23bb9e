"""Bytes by hand, and what must hold of any plan."""

import itertools

import pytest
from planned import COLOCATED, arguments, make, ranks

from openrlhf_orz.models import log_prob_head
from openrlhf_orz.plan import activations
from openrlhf_orz.plan.hardware import GIB
from openrlhf_orz.plan.shapes import KNOWN, Shape
from openrlhf_orz.plan.states import LIVE_PARAMETERS, REDUCE_BUCKET, trained

P = 1_600_000_000


def states(*flags, count=P, n=8):
    return trained(count, arguments(*flags), n)


def test_zero_3_on_eight_ranks():
    """2/8 weights, 2/8 gradients, 12/8 optimizer (float32 master 4, moments 8) bytes a parameter."""
    found = states("--ds.zero_stage", 3)
    assert (found.weights, found.gradients, found.optimizer) == (P * 2 / 8, P * 2 / 8, P * 12 / 8)
    assert found.gathered == 2 * LIVE_PARAMETERS and found.bucket == 2 * REDUCE_BUCKET
    assert found.step == 4 * P / 8 and found.host == 0


def test_zero_2_and_1_keep_the_weights_whole():
    two, one = states("--ds.zero_stage", 2), states("--ds.zero_stage", 1)
    assert two.weights == one.weights == 2 * P and two.optimizer == one.optimizer == 12 * P / 8
    assert two.gradients == 2 * P / 8 and one.gradients == 2 * P
    assert two.gathered == one.gathered == 0


def test_offloaded_optimizer_is_on_the_host():
    found = states("--ds.zero_stage", 3, "--ds.adam_offload")
    assert (found.optimizer, found.step) == (0, 0)
    assert found.host == 12 * P / 8 + 4 * P / 8  # with float32 gradients


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
    assert activations.layer(shape, 4) == 4 * (24 + 16 + 32)
    working = 4 * (4 * 4 + 3 * 8)
    ends = 4 * (2 * 4 + 3 * 4)
    assert activations.training(shape, 4, 5, checkpointing=False) == 5 * (3 * 288 + ends + working)
    # with checkpointing each layer's input, and one layer
    assert activations.training(shape, 4, 5, checkpointing=True) == 5 * (288 + 3 * 16 + ends + working)


def test_a_tile_of_logits():
    shape = KNOWN["Qwen/Qwen2.5-7B"]
    assert activations.TILE_ELEMENTS == log_prob_head.TILE_LOGITS
    assert activations.KEPT_ELEMENTS == log_prob_head.KEPT_LOGITS
    tile, weight = 2**27, shape.vocabulary * shape.hidden
    assert activations.head(shape, 2, 10**6, "cuda", gradient=True) == tile * (4 + 2 + 2) + weight * (4 + 2)
    # all tokens in a tile: the weight's gradient has one summand
    assert activations.head(shape, 2, 3000, "cuda", gradient=True) == tile * 8 + weight * 2
    # few tokens on a CPU in half precision: their logits are kept
    few, tile = 800 * shape.vocabulary, 2**22
    assert activations.head(shape, 2, 800, "cpu", gradient=True) == few * 2 + tile * 8 + weight * 2
    assert activations.head(shape, 4, 800, "cpu", gradient=True) == tile * 4 + weight * 4
    assert activations.head(shape, 2, 3, "cuda", gradient=True) == 3 * shape.vocabulary * 8 + weight * 2


def test_kv_cache():
    """7B in bfloat16: 2 x 28 layers x 4 heads x 128 x 2 bytes are 56 KiB a token."""
    found = make(*COLOCATED, *ranks(1, 8))
    assert found.policy.kv_bytes_per_token(2) == 57344
    cache = 0.5 * 79 * GIB - 2 * found.policy.policy_parameters() - 2 * GIB
    assert found.memory.kv_cache_tokens == pytest.approx(cache / 57344)
    two = make(*COLOCATED, *ranks(1, 8), "--vllm.tensor_parallel_size", 2)
    assert two.memory.kv_cache_tokens > 2 * found.memory.kv_cache_tokens  # half the weights on each GPU


def test_peak_grows_with_tokens():
    peaks = [
        make(*COLOCATED, *ranks(1, 8), "--train.max_tokens_per_gpu", n, "--ds.zero_stage", 3).memory.peak.total
        for n in (2048, 4096, 8192, 16384, 32768)
    ]
    assert peaks == sorted(peaks) and peaks[-1] > peaks[0]


@pytest.mark.parametrize("stage", range(4))
def test_more_ranks_never_need_more(stage):
    common = ("--ds.zero_stage", stage, *COLOCATED, "--actor.gradient_checkpointing_enable")
    plans = [make(*common, *ranks(nodes, 8)) for nodes in (1, 2, 4, 8)]
    for few, many in itertools.pairwise(plans):
        for a, b in zip(few.memory.phases, many.memory.phases, strict=True):
            assert b.total <= a.total, (a.name, stage)


def test_sleep_takes_the_other_side_off_the_gpu():
    flags = ("--train.colocate_all", "--vllm.gpu_memory_utilization", "0.5", "--ds.zero_stage", 3, *ranks(1, 8))
    awake, asleep = make(*flags), make(*flags, "--vllm.enable_sleep", "--ds.enable_sleep")
    training = {phase.name for phase in asleep.memory.phases if "training" in phase.name}
    assert training == {"training of critic", "training of policy"}
    assert "training of critic and policy" in {phase.name for phase in awake.memory.phases}
    assert asleep.memory.peak.total < awake.memory.peak.total
    # what leaves the GPUs is on the hosts: 8 ranks hold 12 + 2 bytes of each parameter together
    count = asleep.policy.policy_parameters()
    assert asleep.memory.host["policy optimizer and gradients"] == pytest.approx(14 * count)
    assert asleep.memory.host["vLLM weights asleep"] == pytest.approx(8 * 2 * count)


def test_separate_gpus_are_separate_places():
    found = make(*ranks(1, 2), "--vllm.num_engines", 3, "--algo.kl.init_coef", "0.1")
    assert [p for p in dict.fromkeys(phase.place for phase in found.memory.phases)] == [
        "policy", "reference", "critic", "engines",
    ]  # fmt: skip
    assert found.seconds.gpus == 2 + 2 + 2 + 3


def test_host_memory_counts():
    flags = (*COLOCATED, "--ds.zero_stage", "3", "--actor.gradient_checkpointing_enable", *ranks(1, 8))
    import dataclasses

    from openrlhf_orz.plan.hardware import parse
    from openrlhf_orz.plan.planner import plan

    small = plan(arguments(*flags), dataclasses.replace(parse("h100"), host_gib=100))
    large = plan(arguments(*flags), dataclasses.replace(parse("h100"), host_gib=2000))
    assert large.fits and not small.fits
