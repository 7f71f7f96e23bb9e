"""What the engine actor asks of vLLM and its executor, without vLLM's engine; its arguments; how engines start."""

import asyncio
from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from openrlhf_orz.rollout import engine
from openrlhf_orz.rollout.engine import Engines, OrzRolloutActor, engine_args
from openrlhf_orz.rollout.sync.checksums import SyncError
from openrlhf_orz.settings.command_line import parse


class Llm:
    """Notes what it is asked for."""

    def __init__(self, outputs=(), healthy=True):
        self.calls, self.params, self.outputs, self.healthy = [], [], list(outputs), healthy
        self.answers = {}

    async def generate(self, prompt, params, request_id):
        self.params.append((prompt["prompt_token_ids"], params))
        for output in self.outputs:
            yield output

    async def collective_rpc(self, method, args):
        self.calls.append((method, *args))
        return self.answers.get(method, ["report"])

    async def reset_prefix_cache(self):
        self.calls.append(("reset_prefix_cache",))

    async def check_health(self):
        if not self.healthy:
            raise RuntimeError("dead")


class Executor:
    def __init__(self):
        self.seeds = []

    async def execute(self, sampling_params, **kwargs):
        self.seeds.append(sampling_params.seed)
        return {"seed": sampling_params.seed, **kwargs}


def make(llm=None, executor=None):
    actor = object.__new__(OrzRolloutActor)  # its process would be Ray's
    actor.llm, actor.executor, actor._mm_pad_token_ids, actor.born = llm or Llm(), executor, None, "first"
    return actor


def test_vllm_is_asked_for_the_last_output_alone():
    llm, params = Llm(["early", "last"]), SamplingParams(temperature=0.5, max_tokens=7)
    kind = params.output_kind
    assert asyncio.run(make(llm).generate([1, 2], params)) == "last"
    ((ids, asked),) = llm.params
    assert ids == [1, 2] and asked.output_kind == RequestOutputKind.FINAL_ONLY
    assert (asked.temperature, asked.max_tokens) == (0.5, 7) and params.output_kind == kind


def responses(seed, num_samples):
    executor, params = Executor(), SamplingParams(seed=seed)
    found = asyncio.run(
        make(executor=executor).generate_responses(
            prompt="p", label="l", sampling_params=params, max_length=9, hf_tokenizer=None, num_samples=num_samples
        )
    )
    assert params.seed == seed and len(found) == num_samples
    assert all((each["prompt"], each["label"], each["max_length"]) == ("p", "l", 9) for each in found)
    return executor.seeds


def test_each_sample_of_a_prompt_has_its_seed():
    """The first that of the prompt; fixed numbers, as a resumed run must draw the same samples."""
    assert responses(5, 3) == [5, 5 + 0x9E3779B97F4A7C15 - 2**63, (5 + 2 * 0x9E3779B97F4A7C15) % 2**63]
    assert len(set(responses(7, 64))) == 64 and all(0 <= seed < 2**63 for seed in responses(2**48 - 1, 8))


def test_without_a_seed_samples_have_none():
    assert responses(None, 3) == [None] * 3


@pytest.mark.parametrize("check", [False, True])
def test_the_prefix_cache_is_dropped_after_the_last_bucket(check):
    llm = Llm()
    actor = make(llm)
    llm.answers["load_synced_weights"] = [[], []]  # of two workers: nothing is missing
    asyncio.run(actor.load_weights(("ipc", {}), ["a"], False, check))
    assert llm.calls == [("load_synced_weights", ("ipc", {}), ["a"], False, check)]
    asyncio.run(actor.load_weights(("ipc", {}), ["b"], True, check))
    assert llm.calls[1:] == [("load_synced_weights", ("ipc", {}), ["b"], True, check), ("reset_prefix_cache",)]


def test_a_parameter_that_a_sync_has_not_loaded_is_an_error():
    llm = Llm()
    llm.answers["load_synced_weights"] = [["l.0.w13", "l.0.w2"], ["l.0.w2", "a", "b", "c"]]
    with pytest.raises(SyncError, match="has not reached a, b, c, l.0.w13 and 1 more"):
        asyncio.run(make(llm).load_weights(("ipc", {}), ["a"], True))


def test_the_report_comes_from_all_workers():
    llm = Llm()
    assert asyncio.run(make(llm).weight_report(["w"], "bfloat16")) == ["report"]
    assert llm.calls == [("weight_report", ["w"], "bfloat16")]


def test_log_probs_of_given_sequences():
    """Of each token but the first, at temperature 1, by its own number and not the likeliest's."""
    step = [
        None,
        {8: SimpleNamespace(logprob=-1.0), 3: SimpleNamespace(logprob=-0.1)},
        {9: SimpleNamespace(logprob=-2.0)},
    ]
    llm = Llm([SimpleNamespace(prompt_logprobs=step)])
    assert asyncio.run(make(llm).sequence_log_probs([[7, 8, 9], [7, 3, 9]])) == [[-1.0, -2.0], [-0.1, -2.0]]
    assert [ids for ids, _ in llm.params] == [[7, 8, 9], [7, 3, 9]]
    assert {(p.max_tokens, p.prompt_logprobs, p.temperature) for _, p in llm.params} == {
        (1, 0, 0.0)
    }  # greedy takes no random number


def test_an_incarnation_is_told_only_by_a_healthy_engine():
    assert asyncio.run(make().incarnation()) == "first"
    with pytest.raises(RuntimeError, match="dead"):
        asyncio.run(make(Llm(healthy=False)).incarnation())


def args(device="cuda", determinism=False, own_agent=True, dtype="bf16"):
    return SimpleNamespace(
        ds=SimpleNamespace(param_dtype=dtype),
        train=SimpleNamespace(full_determinism_enable=determinism),
        orz=SimpleNamespace(
            trust_remote_code=False, own_agent=own_agent, stop=["a", "b"], grader_workers=3, plain_math_verify=True,
            verifier="letter", keep_cut_rewards=True, logprob_gap_every=5, device=device, cpu_kvcache_mib=2,
        ),
    )  # fmt: skip


def test_engine_arguments():
    base = {"worker_extension_cls": "openrlhf_orz.rollout.worker.OrzWorkerExtension", "trust_remote_code": False}
    orz = {"stop": ("a", "b"), "workers": 3, "plain": True, "gap_every": 5, "verifier": "letter", "keep_cut": True,
           "own": False, "agent": None, "reward": None}  # fmt: skip
    agent = {"orz": orz, "logprobs_mode": "processed_logprobs"}
    assert engine_args(args()) == {**base, **agent, "dtype": "bfloat16"}
    # stop strings and log-probs hold with a reward or an agent of the user's, too
    own = {**orz, "own": True, "agent": dict, "reward": list}
    assert engine_args(args(own_agent=False, dtype="fp32"), dict, list) == {
        **base, "orz": own, "logprobs_mode": "processed_logprobs", "dtype": "float32"
    }  # fmt: skip
    assert engine_args(args(determinism=True, dtype="fp16")) == {**base, **agent, "dtype": "float16"}
    on_cpu = {**base, **agent, "dtype": "bfloat16", "kv_cache_memory_bytes": 2 * 2**20}
    assert engine_args(args("cpu")) == on_cpu
    assert engine_args(args("cpu", determinism=True)) == {**on_cpu, "enable_chunked_prefill": False}


def test_engines_are_started_with_the_steps_seed_and_asked_to_end(monkeypatch):
    calls = []

    class Handle:
        shutdown = SimpleNamespace(remote=lambda: "ref")

    class Remote:
        def options(self, **options):
            calls.append(options)
            return self

        def remote(self, *args, **kwargs):
            calls.append((args, kwargs))
            return Handle()

    waited = []
    fake = SimpleNamespace(
        remote=lambda cls: Remote() if cls is OrzRolloutActor else None,
        wait=lambda refs, num_returns, timeout: waited.append((refs, num_returns, timeout)),
    )
    monkeypatch.setattr(engine, "ray", fake)
    engines = Engines(OrzRolloutActor, "scratch-", step=3, run_dir="runs/x")
    engines.shutdown()
    assert waited == [], "nothing is to end"
    handles = [engines.options(num_gpus=1).remote("model", seed=seed, x=1) for seed in (42, 43)]
    assert engines.handles == handles
    assert calls[0] == {"num_gpus": 1, "max_restarts": -1, "max_task_retries": 0}
    told = {"run_dir": "runs/x", "number": 1}
    assert calls[1] == (("model",), {"seed": 42 + 3 * 1_000_003, "scratch": "scratch-", "x": 1, **told})
    assert calls[3][1]["seed"] == 43 + 3 * 1_000_003 and calls[3][1]["number"] == 2
    engines.shutdown()
    assert waited == [(["ref", "ref"], 2, Engines.SHUTDOWN_S)]


@pytest.mark.parametrize("flags, cut", [((), None), (("--train.full_determinism_enable",), False)])
def test_training_cuts_no_prompts_where_requests_have_seeds_of_their_own(flags, cut):
    """Elsewhere vLLM's default is the faster one."""
    given = ["--actor.model_name_or_path", "none", "--data.prompt_dataset", "rows.jsonl", "--orz.device", "cpu"]
    args, _ = parse([*given, *flags])
    assert args.orz.own_agent and engine_args(args).get("enable_chunked_prefill") is cut


def test_a_user_whom_the_machine_does_not_know(monkeypatch):
    """As in a container that is given a number: the folder of what is compiled has a name all the same."""
    import pwd

    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert default_cache_dir()
