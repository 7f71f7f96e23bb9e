"""Whole plans: batches, FLOPs, seconds, advice, and the recipes that must fit."""

import math
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from planned import COLOCATED, arguments, make, ranks

from openrlhf_orz.plan.advice import advise, possible_changes, replan, words
from openrlhf_orz.plan.costs import decode_flops, forward_flops
from openrlhf_orz.plan.hardware import UnknownHardware, parse_hardware
from openrlhf_orz.plan.layout import Lengths, cut_batches, default_lengths, padded_batches
from openrlhf_orz.plan.planner import PlanError, plan_run
from openrlhf_orz.plan.seconds import Rates, prompts_computed
from openrlhf_orz.plan.shapes import KNOWN, Shape
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.finished import changed
from openrlhf_orz.settings.skip_plan import cost

ROOT = Path(__file__).parents[3]
GIVEN = Lengths(100, 900, 4000, "test")


def test_batches_by_hand():
    """128 x 64 on 32 ranks: 256 samples each, one policy step, twelve critic steps of 21 or 22."""
    cut = make(*COLOCATED, *ranks(4, 8), "--train.max_tokens_per_gpu", 16000, lengths=GIVEN).batches
    assert (cut.samples, cut.data_parallel_ranks, cut.samples_per_rank) == (8192, 32, 256)
    assert (cut.policy_updates, cut.policy_mini_batch, cut.critic_updates, cut.critic_mini_batch) == (1, 256, 12, 22)
    # 16 samples of 1000 tokens share a pack: 256 / 16 of the policy, 12 x ceil(22 / 16) of the critic
    assert (cut.policy_micro_batches, cut.critic_micro_batches) == (16, 24)


def test_batches_of_ranks_that_share_samples():
    """8 GPUs, 2 in ring attention and 2 in tensor parallel for each sample: 2 ranks of 4 x 8 / 2 = 16 samples."""
    flags = ("--rollout.batch_size", 4, "--rollout.n_samples_per_prompt", 8, "--orz.critic_updates", 4)
    args = changed(
        arguments(*ranks(1, 8), *flags, "--data.max_len", 500),
        {
            "orz.critic_updates": 12,
            "ds.ring_attn_size": 2,
            "ds.tensor_parallel_size": 2,
            "train.max_tokens_per_gpu": 1000,
            "rollout.max_tokens_per_gpu": 100,
            "orz.policy_updates": 2,
            "train.max_epochs": 3,
        },
    )
    cut = cut_batches(args, Lengths(100, 900, 1000, "test"))
    assert (cut.data_parallel_ranks, cut.samples_per_rank) == (2, 16)
    # packs of 4 x 1000 tokens, half of them on each rank of the ring; at least the longest sample
    assert (cut.longest_pack, cut.forward_pack) == (2000, 250)
    # an epoch: two steps of 8 samples in two packs; forwards: a pack for each of 16 samples
    assert (cut.policy_updates, cut.policy_mini_batch, cut.policy_micro_batches) == (6, 8, 12)
    assert (cut.critic_updates, cut.critic_mini_batch, cut.critic_micro_batches) == (36, 2, 36)
    assert cut.forward_packs == 16 and cut.tokens == 32_000


def test_fixed_micro_batches():
    args = arguments(
        *ranks(1, 2), "--rollout.batch_size", 4, "--rollout.n_samples_per_prompt", 8, "--data.max_len", 500
    )
    fixed = {"orz.fixed_micro_batches": True, "train.micro_batch_size": 3, "rollout.micro_batch_size": 4}
    args = changed(args, fixed)
    cut = cut_batches(args, Lengths(100, 300, 400, "test"))
    assert (cut.longest_pack, cut.forward_pack, cut.policy_micro_batches, cut.forward_packs) == (1500, 2000, 6, 4)


def test_an_uneven_rollout():
    cut = make(*COLOCATED, *ranks(1, 8), "--rollout.batch_size", 10, "--rollout.n_samples_per_prompt", 10).batches
    assert (cut.samples_per_rank, cut.smallest_per_rank) == (13, 12)


def test_flops_by_hand():
    # 144 weights of the layer, 2 FLOPs each for a token; scores and values: 2 x 2 x 4 x 3^2, half of it causal
    shape = Shape("llama", 4, 1, 2, 1, 2, 8, 10, tied=True)
    assert forward_flops(shape, [3], [2]) == {"body": 2 * 144 * 3 + 2 * 4 * 9, "head": 2 * 4 * 10 * 2}


@pytest.mark.parametrize(
    "flags",
    [(), ("--actor.gradient_checkpointing_enable",), ("--orz.cross_fit_values",), ("--algo.kl.init_coef", "0.1"),
     ("--algo.advantage.estimator", "group_norm"), ("--orz.policy_updates", "2", "--train.max_epochs", "2")],
)  # fmt: skip
def test_work_follows_the_skip_plan(flags):
    """In units of a forward, the head left out, it is what the start of a run prints."""
    found = make(*COLOCATED, *ranks(1, 8), *flags, "--orz.share_prefixes", "never", lengths=GIVEN)
    body = found.batches.samples * forward_flops(found.policy, [1000], [])["body"]
    head = found.batches.samples * forward_flops(found.policy, [], [900])["head"]
    computed = sum(value for name, value in found.work.computed.items() if name != "generation")
    assert computed / body == pytest.approx(cost(found.args), rel=10 * head / body / cost(found.args))
    assert computed / body > cost(found.args) - 1e-9


def test_shared_prompts_by_hand():
    """Two prompts of four responses, sorted and cut into three packs: at most 2 + 2 prompts of 8 are computed."""
    args = arguments(
        "--rollout.batch_size", 2, "--rollout.n_samples_per_prompt", 4, "--orz.critic_updates", 1, *ranks(1, 1)
    )
    args = changed(args, {"ds.attn_implementation": "orz_packed"})  # where flash-attn is, it would be that one
    assert prompts_computed(args, 8, 3) == 4 / 8
    assert prompts_computed(args, 8, 1) == 2 / 8
    assert prompts_computed(args, 2, 2) == 1.0  # two at random in packs of their own
    # two at random in one pack: 2 (1 - (6/8)^4) prompts
    assert prompts_computed(args, 2, 1) == pytest.approx(2 * (1 - 0.75**4) / 2)
    assert prompts_computed(changed(args, {"orz.share_prefixes": "never"}), 8, 1) == 1.0


def test_seconds_follow_the_rates():
    slow = make(*COLOCATED, *ranks(4, 8), "--ds.zero_stage", 2, lengths=GIVEN, rates=Rates(training=0.2))
    fast = make(*COLOCATED, *ranks(4, 8), "--ds.zero_stage", 2, lengths=GIVEN, rates=Rates(training=0.4))
    name = "policy training"
    # 1 % is the optimizer's step
    assert slow.seconds.phases[name] == pytest.approx(2 * fast.seconds.phases[name], rel=0.02)
    assert slow.seconds.phases[name] == pytest.approx(slow.work.computed[name] / (32 * 989e12 * 0.2), rel=0.02)
    assert slow.seconds.gpu_hours == pytest.approx(32 * slow.seconds.step / 3600)


def test_small_packs_of_zero_3_wait_for_the_network():
    flags = (*COLOCATED, *ranks(4, 8), "--ds.zero_stage", 3, "--data.max_len", 1024)
    found = make(*flags, "--train.max_tokens_per_gpu", 1024, lengths=Lengths(100, 900, 1000, "test"))
    assert "gathering" in found.seconds.bound_by["policy training"]
    large = make(*flags, "--train.max_tokens_per_gpu", 32768, lengths=Lengths(100, 900, 1000, "test"))
    assert large.seconds.bound_by["policy training"] == "computation"


def test_zero_3_gathers_for_each_pass():
    """A weight crosses the network once in a forward, and in training in forward, backward and to reduce gradients."""
    flags = (*COLOCATED, *ranks(4, 8), "--ds.zero_stage", 3, "--data.max_len", 1024)
    flags += ("--train.max_tokens_per_gpu", 1024, "--rollout.max_tokens_per_gpu", 1024)
    lengths, rates = Lengths(100, 900, 1000, "test"), Rates(training=1.0)
    once, cut = make(*flags, lengths=lengths, rates=rates), make(*flags, lengths=lengths).batches
    gather = 2 * once.policy.policy_parameters() * 31 / 32 / 50e9
    seconds = once.seconds.phases
    assert seconds["policy training"] == pytest.approx(3 * cut.policy_micro_batches * gather, rel=0.01)
    more = make(*flags, "--actor.gradient_checkpointing_enable", lengths=lengths, rates=rates).seconds.phases
    assert more["policy training"] == pytest.approx(4 * cut.policy_micro_batches * gather, rel=0.01)
    critic = 2 * once.critic.critic_parameters() * 31 / 32 / 50e9
    assert seconds["values"] == pytest.approx(cut.forward_packs * critic)


def test_generation_by_hand():
    """Two engines of 4 x 8 / 2 = 16 requests, all at once; the longest response goes on alone."""
    flags = ("--train.colocate_all", *ranks(1, 2), "--vllm.num_engines", 2, "--rollout.batch_size", 4)
    flags += ("--rollout.n_samples_per_prompt", 8, "--vllm.enable_prefix_caching")
    found = make(*flags, lengths=Lengths(100, 900, 4000, "test"), on="h100x2")
    shape = found.policy
    read = 2 * (shape.layer_products() + shape.hidden * shape.vocabulary)
    cache = (100 + 450) * shape.kv_bytes_per_token(2)
    step = [(read + n * cache) / (3.35e12 * 0.6) + 0.005 for n in (16, 1)]
    prefill = 4 / 2 * forward_flops(shape, [100], [])["body"] / (989e12 * 0.4)
    assert found.seconds.phases["generation"] == pytest.approx(900 * step[0] + 3100 * step[1] + prefill)
    useful = 4 * forward_flops(shape, [100], [])["body"] + decode_flops(shape, 32 * 900, 550)
    assert found.work.useful["generation"] == pytest.approx(useful)


def test_decoding_by_hand():
    # as above, with the head: 2 x (144 + 4 x 10), and scores and values 2 x 2 x 4 for each token of the context
    shape = Shape("llama", 4, 1, 2, 1, 2, 8, 10, tied=True)
    assert decode_flops(shape, 3, 5) == 3 * (2 * (144 + 40) + 4 * 4 * 5)


def test_copies_by_hand():
    found = make(*COLOCATED, *ranks(1, 8), lengths=GIVEN)
    policy, critic = found.policy.policy_parameters(), found.critic.critic_parameters()
    assert found.seconds.phases["weight sync"] == pytest.approx(2 * policy / 50e9)
    # to the host and back: vLLM's weights, and 14 bytes a parameter of what eight ranks train
    moved = 2 * 2 * policy + 2 * 14 * (policy + critic) / 8
    assert found.seconds.phases["sleep and wake"] == pytest.approx(moved / 50e9)
    assert "sleep and wake" not in make("--train.colocate_all", *ranks(1, 8), lengths=GIVEN).seconds.phases


def test_weights_cross_the_slowest_link():
    for nodes, link in ((1, 25e9), (2, 1.5e9)):
        found = make("--train.colocate_all", *ranks(nodes, 8), lengths=GIVEN, on="l40s")
        assert found.seconds.phases["weight sync"] == pytest.approx(2 * found.policy.policy_parameters() / link)


def test_engines_and_ranks_share_a_cpu():
    flags = ("--train.colocate_all", *ranks(1, 2), "--vllm.num_engines", 2, "--orz.cpu_kvcache_mib", 4096)
    flags += ("--orz.critic_updates", 4)
    args = arguments(*flags, "--rollout.batch_size", 4, "--rollout.n_samples_per_prompt", 4, device="cpu")
    found = plan_run(args, parse_hardware("cpux2"), lengths=Lengths(100, 200, 300, "test"))
    b, shape, flops = 4 if args.ds.param_dtype == "fp32" else 2, found.policy, found.hardware.flops * 0.35 / 2
    read = b * (shape.layer_products() + shape.hidden * shape.vocabulary)

    def step(together):
        by_bytes = (read + together * 200 * shape.kv_bytes_per_token(b)) / (10e9 * 0.5 / 2)
        return max(by_bytes, decode_flops(shape, together, 200) / flops) + 0.015

    prompts = 4 if args.vllm.enable_prefix_caching else 16
    prefill = prompts / 2 * forward_flops(shape, [100], [])["body"] / flops
    assert found.seconds.phases["generation"] == pytest.approx(200 * step(8) + 100 * step(1) + prefill)
    # all ranks together have one machine
    training = found.work.computed["policy training"] / (found.hardware.flops * 0.35)
    assert found.seconds.phases["policy training"] == pytest.approx(training, rel=0.1) and found.seconds.gpus == 2


def test_training_on_separate_gpus_takes_the_longer_of_the_two():
    flags = ("--critic.num_gpus_per_node", 1, "--actor.num_gpus_per_node", 2, "--ds.zero_stage", 2)
    found = make(*flags, "--orz.critic_beside", "never", lengths=GIVEN)
    assert found.seconds.bound_by["training"].startswith("critic training")
    assert found.seconds.phases["training"] == pytest.approx(
        found.work.computed["critic training"] / (989e12 * 0.4), rel=0.02
    )


@pytest.mark.parametrize("critics", [1, 2])
def test_a_critic_with_gpus_of_its_own_works_beside_generation(critics):
    """It ends its training, then takes values while the last responses are generated."""
    flags = ("--critic.num_gpus_per_node", critics, "--actor.num_gpus_per_node", 2, "--ds.zero_stage", 2)
    never, found = (make(*flags, *more, lengths=GIVEN).seconds for more in (("--orz.critic_beside", "never"), ()))
    policy, critic = found.phases["policy training"], never.phases["training"]
    left, generation = critic - policy - found.phases["weight sync"], found.phases["generation"]
    assert found.phases["waiting for the critic"] == pytest.approx(max(0, left - generation))
    early = never.phases["values"] - found.phases["values"]
    assert 0 <= early <= max(0, generation - max(0, left)) + 1e-6
    assert (left > generation, early > 0) == ((True, False) if critics == 1 else (False, True))
    assert never.step - found.step == pytest.approx(critic - policy - found.phases["waiting for the critic"] + early)


def test_asynchronous_training_hides_the_shorter_half():
    flags = (*ranks(1, 4), "--train.colocate_all", "--vllm.num_engines", 4)
    both = make(*flags, lengths=GIVEN).seconds.phases
    together = make(*flags, "--train.async_enable", lengths=GIVEN)
    assert "old log-probs" not in together.work.computed, "they are of the policy as the step finds it"
    rest = sum(both.values()) - both["generation"]
    assert together.seconds.phases == {"step": pytest.approx(max(rest, both["generation"]), rel=0.01)}
    hidden = "generation" if both["generation"] < rest else "the rest"
    assert together.seconds.bound_by["step"] == f"asynchronous: {hidden} is hidden"


def test_longer_responses_take_longer():
    times = [make(*COLOCATED, *ranks(1, 8), "--data.max_len", 8192, lengths=Lengths(100, n, 8000, "")).seconds.step
             for n in (500, 1000, 2000, 4000)]  # fmt: skip
    assert times == sorted(times)


def test_what_does_not_fit_gets_changes_that_do():
    found = make("--train.colocate_all", "--data.max_len", 8192, on="h100x8")
    assert not found.fits
    changes = advise(found)
    assert changes
    for told, after in changes:
        assert after.fits, told
        assert after.seconds.gpus == found.seconds.gpus
    # the flags named, given to the parser, make that plan
    given = ["--train.colocate_all", "--data.max_len", "8192", *shlex.split(changes[0][0])]
    assert make(*given, on="h100x8").memory.peak.total == changes[0][1].memory.peak.total


def test_one_change_is_preferred_to_several():
    long = ("--data.max_len", 16384, "--train.max_tokens_per_gpu", 16384)
    found = make(*COLOCATED, *ranks(1, 8), "--ds.zero_stage", 3, *long)
    assert not found.fits and "activations" in max(found.memory.peak.parts, key=found.memory.peak.parts.get)
    told = [flags for flags, _ in advise(found)]
    assert "--actor.gradient_checkpointing_enable" in told
    assert all(flags.count("--") == 1 or ".num_nodes" in flags or ".tensor_parallel" in flags for flags in told), told


def test_more_nodes_are_more_of_everything():
    before = make(*COLOCATED, *ranks(1, 8), "--vllm.num_engines", 8)
    change = possible_changes(before)[-1][1]
    flags = [f"--{role}.num_nodes 4" for role in ("actor", "critic")]
    told = " ".join([*flags, "--vllm.num_engines 32", "--train.colocate_all"])
    assert words([change], replan(before, [change])) == told and change.more_devices
    args = replan(before, [change]).args
    assert [part.num_nodes for part in (args.actor, args.critic, args.ref)] == [
        4,
        4,
        4,
    ] and args.vllm.num_engines == 32
    assert before.args.actor.num_nodes == 1 and replan(before, [change]).seconds.gpus == 32


def test_of_several_changes_none_can_be_left_out():
    def planned(*flags):
        return make("--train.colocate_all", *flags, on="l40s", model="Qwen/Qwen2.5-14B")

    found = planned()
    ((told, after),) = advise(found)
    single, nodes, more = told.partition(" --actor.num_nodes ")
    assert not found.fits and after.fits and nodes and "--ds.enable_sleep" not in told
    flags = [f"--{part}" for part in single.removeprefix("--").split(" --")]
    assert len(flags) > 3 and planned(*told.split()).fits and not planned(*single.split()).fits
    for flag in flags:
        rest = " ".join(other for other in flags if other != flag)
        assert not planned(*f"{rest}{nodes}{more}".split()).fits, flag


def test_advice_is_what_a_run_takes():
    """Adam on the host is offered where trainers sleep, which it ends; ZeRO-3 is not beside tensor parallel ranks."""
    small = make(*COLOCATED, *ranks(1, 2), "--ds.zero_stage", 3, "--actor.gradient_checkpointing_enable", on="h100x2")
    assert not small.fits and small.args.ds.enable_sleep and "--ds.adam_offload" in [told for told, _ in advise(small)]
    cut = make("--train.colocate_all", *ranks(1, 8), "--ds.tensor_parallel_size", 2, "--ds.zero_stage", 1,
               model="Qwen/Qwen2.5-14B", on="h100x8")  # fmt: skip
    assert not cut.fits and not any("--ds.zero_stage 3" in told for told, _ in advise(cut))


def test_no_advice_where_it_fits_and_none_where_nothing_helps():
    fits = make(*COLOCATED, *ranks(4, 8), "--ds.zero_stage", 3, "--actor.gradient_checkpointing_enable")
    assert fits.fits and advise(fits) == []
    hopeless = make(*COLOCATED, *ranks(1, 1), on="4090", model="Qwen/Qwen2.5-32B")
    assert not hopeless.fits and all(after.fits for _, after in advise(hopeless))


def test_a_cache_that_holds_no_sequence_is_a_problem():
    found = make(*COLOCATED, *ranks(1, 8), "--vllm.gpu_memory_utilization", "0.2", on="a100-40")
    assert not found.fits and "--vllm.gpu_memory_utilization" in found.memory.problems[0]


def test_too_few_gpus():
    with pytest.raises(PlanError, match="32 GPUs.*8 x 1"):
        plan_run(arguments(*COLOCATED, *ranks(4, 8)), parse_hardware("h100x8"))
    with pytest.raises(PlanError, match="9 GPUs.*8 x 1"):
        plan_run(arguments(*COLOCATED, *ranks(3, 3)), parse_hardware("h100x8"))
    assert plan_run(arguments(*COLOCATED, *ranks(1, 8)), parse_hardware("h100x8")).seconds.gpus == 8


def test_unknown_names():
    with pytest.raises(PlanError, match="Qwen/Qwen2.5-7B"):
        make(model="some/model")
    for text in ("b17", "h100x", "h100x0", "h100x8x0", "x8"):
        with pytest.raises(UnknownHardware, match="h100"):
            parse_hardware(text)
    assert (parse_hardware("h100x8x16").per_node, parse_hardware("h100x8x16").nodes) == (8, 16)
    assert (parse_hardware("a100-40x4").name, parse_hardware("a100-40x4").nodes) == ("a100-40", 1)


def test_lengths_are_said_to_be_assumed():
    args = arguments(*COLOCATED, "--data.max_len", 8192)
    assert "assumption" in default_lengths(args).source
    assert default_lengths(args, 100, 500) == Lengths(100, 500, 8092, "as given")


def test_it_is_quick():
    args, machine = arguments(*COLOCATED, *ranks(4, 8)), parse_hardware("h100")
    start = time.perf_counter()
    for _ in range(10):
        plan_run(args, machine)
    assert (time.perf_counter() - start) / 10 < 0.05


@pytest.mark.parametrize(
    "name, machines",
    [("0.5b_1gpu", ["h100x1", "a100-80x1"]), ("0.5b", ["h100x8"]), ("1.5b", ["h100x8x2"]),
     ("7b", ["h100x8x4", "a100-80x8x4"]), ("32b", ["h100x8x16"])],
)  # fmt: skip
def test_recipes_fit_and_leave_vllm_what_the_trainers_leave(monkeypatch, name, machines):
    """With 8 % of the memory to spare, for what no plan counts."""
    monkeypatch.chdir(ROOT)
    recipe = ROOT / "examples" / f"train_orz_qwen2.5_{name}.sh"
    arms = ("split", "colocated") if name == "32b" else ("",)
    for arm in arms:
        env = {"DRY_RUN": "1", "RUN_DIR": "r", "PATH": "/usr/bin:/bin"} | ({"ARM": arm} if arm else {})
        printed = subprocess.run(["bash", recipe], env=env, capture_output=True, text=True, check=True).stdout
        args, _ = parse(shlex.split(printed)[3:])
        for machine in machines:
            found = plan_run(args, parse_hardware(machine))
            assert found.fits and found.memory.peak.total < 0.92 * found.memory.limit, (machine, found.memory.peak)
            assert found.args.vllm.gpu_memory_utilization >= 0.6
            assert KNOWN[args.actor.model_name_or_path] is found.policy
            assert replan(found, []).memory.peak.total == found.memory.peak.total


def test_a_plan_with_too_few_samples_is_refused():
    """More nodes are one piece of advice, and 16 samples are too few for 32 ranks."""
    flags = ("--train.colocate_all", "--algo.advantage.estimator", "group_norm", "--rollout.batch_size", 2)
    flags += ("--rollout.n_samples_per_prompt", 8, *ranks(1, 8))
    found = make(*flags, on="4090x8", model="Qwen/Qwen2.5-32B")
    assert not found.fits
    advise(found)
    more = changed(found.args, {"actor.num_nodes": 4, "vllm.num_engines": 32})
    with pytest.raises(PlanError, match="are 16 samples, fewer than the 32 ranks"):
        plan_run(more, parse_hardware("4090"))


def test_an_optimizer_step_by_hand():
    """36 bytes a parameter of a rank's part, by memory or the link to the host; at ZeRO-1 then the weights to all."""
    from openrlhf_orz.plan.seconds import _optimizer_seconds

    hardware, rates = parse_hardware("h100x8"), Rates()
    for flags, expected in (
        (("--ds.zero_stage", 3), 1e9 / 8 * 36 / (3.35e12 * 0.6)),
        (("--ds.zero_stage", 1), 1e9 / 8 * 36 / (3.35e12 * 0.6) + 2e9 * 7 / 8 / 450e9),
        (("--ds.zero_stage", 3, "--ds.adam_offload"), 1e9 / 8 * 36 / 50e9),
    ):
        assert _optimizer_seconds(arguments(*flags), 1e9, 8, hardware, rates) == pytest.approx(expected)


def test_a_small_model_waits_for_its_launches():
    """Twelve critic steps of few short packs: 24 layers, four passes with recomputation, 0.15 ms each."""
    flags = (*COLOCATED, *ranks(1, 8), "--rollout.batch_size", 8, "--rollout.n_samples_per_prompt", 16)
    flags += ("--actor.gradient_checkpointing_enable", "--data.max_len", 128)
    found = make(*flags, model="Qwen/Qwen2.5-0.5B", lengths=Lengths(10, 50, 100, "test"))
    assert found.seconds.bound_by["critic training"] == "launching kernels"
    assert found.seconds.phases["critic training"] > found.batches.critic_micro_batches * 4 * 24 * 0.15e-3


def test_padded_micro_batches_by_hand():
    """Where the mean is the longest, all are alike; without a longest, four samples have these quantiles."""
    lengths = Lengths(10, 100, 100, "")
    assert padded_batches(lengths, 5, 330, 1) == (2, pytest.approx(1))  # all are the longest: 3 and 2 of 110 tokens
    lengths = Lengths(10, 50, 1e9, "")
    each = [10 - 50 * math.log(u) for u in (0.125, 0.375, 0.625, 0.875)]
    padded = 2 * each[0] + 2 * each[2]
    assert padded_batches(lengths, 4, None, 2) == (2, pytest.approx(padded / sum(each)))
    assert padded_batches(lengths, 4, 120, 1) == (3, pytest.approx((each[0] + 2 * each[1] + each[3]) / sum(each)))


def test_padding_is_computed_and_not_useful():
    packed, padded = (make(*COLOCATED, *ranks(1, 8), *flags) for flags in ((), ("--orz.share_prefixes", "never")))
    args = changed(padded.args, {"ds.packing_samples": False})
    more = plan_run(args, padded.hardware, padded.policy, padded.critic)
    assert more.work.useful == padded.work.useful and packed.batches.policy_padding == 1
    for phase, factor in (("values", more.batches.forward_padding), ("critic training", more.batches.critic_padding)):
        assert more.work.computed[phase] == pytest.approx(factor * padded.work.computed[phase]) and factor > 1.01
    assert more.seconds.phases["critic training"] > padded.seconds.phases["critic training"]
