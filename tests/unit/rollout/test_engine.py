"""What the engine actor asks of vLLM and its executor, without vLLM's engine; its arguments; how engines start."""

import asyncio
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from ray.exceptions import RayActorError, RayTaskError
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind

from openrlhf_orz.rollout import engine
from openrlhf_orz.rollout.engine import EngineNotStarted, Engines, OrzRolloutActor, engine_args, logged_cause
from openrlhf_orz.rollout.sync.checksums import SyncError
from openrlhf_orz.runtime.fork_server import SPARE
from openrlhf_orz.runtime.stopping import STOP_SIGNALS
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

    async def reset_prefix_cache(self, reset_running_requests=False):
        self.calls.append(("reset_prefix_cache", reset_running_requests))

    async def check_health(self):
        if not self.healthy:
            raise RuntimeError("dead")


class Executor:
    def __init__(self):
        self.seeds = []

    async def execute(self, sampling_params, **kwargs):
        self.seeds.append(sampling_params.seed)
        tokens = {"observation_tokens": [1, 2], "rollout_log_probs": [0.0, -0.5]}
        return {"seed": sampling_params.seed, **tokens, **kwargs}


def make(llm=None, executor=None):
    actor = object.__new__(OrzRolloutActor)  # its process would be Ray's
    actor.llm, actor.executor, actor._mm_pad_token_ids, actor.born = llm or Llm(), executor, None, "first"
    actor.lock, actor.first_start, actor.failure = asyncio.Lock(), asyncio.Event(), None
    actor.first_start.set()
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
    arrays = [each[name] for each in found for name in ("observation_tokens", "rollout_log_probs")]
    assert {array.dtype for array in arrays} == {np.dtype("int32"), np.dtype("float32")}
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
    llm.answers["load_synced_weights"] = [["gpu-a", []], ["gpu-b", []]]  # of two workers: nothing is missing
    assert asyncio.run(actor.load_weights(("ipc", {}), ["a"], False, check)) == ["gpu-a", "gpu-b"]
    assert llm.calls == [("load_synced_weights", ("ipc", {}), ["a"], False, check)]
    asyncio.run(actor.load_weights(("ipc", {}), ["b"], True, check))
    assert llm.calls[1:] == [("load_synced_weights", ("ipc", {}), ["b"], True, check), ("reset_prefix_cache", True)]


def test_a_parameter_that_a_sync_has_not_loaded_is_an_error():
    llm = Llm()
    llm.answers["load_synced_weights"] = [["gpu-a", ["l.0.w13", "l.0.w2"]], ["gpu-b", ["l.0.w2", "a", "b", "c"]]]
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


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Builds an engine's process without Ray. ``restarted``: Ray has started it again."""

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def build(restarted=False):
        context = SimpleNamespace(was_current_actor_reconstructed=restarted, get_actor_id=lambda: "id")
        monkeypatch.setattr(engine, "ray", SimpleNamespace(get_runtime_context=lambda: context))
        return OrzRolloutActor("model", scratch=f"{tmp_path}/run-", num_gpus=1)

    yield build
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def starts(monkeypatch, error=None):
    """OpenRLHF's constructor of the engine, which starts vLLM, notes its arguments instead."""
    given = []

    async def start(self, *args, **kwargs):
        given.append((args, kwargs))
        await asyncio.sleep(0)
        if error is not None:
            raise error
        self.executor, self.llm = Executor(), Llm()

    monkeypatch.setattr(RolloutRayActor, "__init__", start)
    return given


def test_the_process_comes_before_vllm(process, monkeypatch):
    """Whoever asks too early waits for the first start, and all starts are one."""
    given = starts(monkeypatch)

    async def run():
        actor = process()
        early = asyncio.ensure_future(actor.incarnation())
        await asyncio.sleep(0.01)
        assert given == [] and not early.done()
        first, second = await asyncio.gather(actor.start(), actor.start())
        assert first == second == await early and given == [(("model",), {"num_gpus": 1})]

    asyncio.run(run())


def test_vllms_processes_have_the_signals_blocked_that_stop_a_run(process, monkeypatch):
    """Also those that Python's multiprocessing starts, which unblocks them first."""
    seen = []

    async def start(self, *args, **kwargs):
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        child.start()
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("SigBlk"))
        seen.extend(signum for signum in STOP_SIGNALS if int(line.split()[1], 16) & (1 << (signum - 1)))
        child.kill()
        child.join()
        self.executor, self.llm = Executor(), Llm()

    monkeypatch.setattr(RolloutRayActor, "__init__", start)
    asyncio.run(process().start())
    assert seen == list(STOP_SIGNALS)


def test_the_end_of_an_engine_is_not_waited_for_long():
    actor, waits, deleted = make(), [], []
    actor.llm.shutdown = lambda timeout: waits.append(timeout)
    actor.record = SimpleNamespace(delete=lambda: deleted.append(True))
    asyncio.run(actor.shutdown())
    assert waits == [0.5] and deleted


def test_a_process_that_ray_has_started_again_waits(process, monkeypatch):
    given = starts(monkeypatch)

    async def run():
        actor = process(restarted=True)
        for call in (actor.incarnation(), actor.load_weights(("ipc", {}), [], True), actor.sleep(), actor.wake_up(),
                     actor.generate_responses(prompt="p", label="l", sampling_params=SamplingParams(), max_length=9,
                                              hf_tokenizer=None)):  # fmt: skip
            with pytest.raises(EngineNotStarted, match="waits to be started again"):
                await call
        assert given == []
        assert await actor.start() == await actor.incarnation()

    asyncio.run(run())


def test_a_start_that_fails_says_why_to_all_who_ask(process, monkeypatch):
    given = starts(monkeypatch, AttributeError("module 'mine' has no attribute 'reward_func'"))
    cause = "AttributeError: module 'mine' has no attribute 'reward_func'"

    async def run():
        actor = process()
        for call in (actor.start, actor.incarnation, actor.start, actor.sleep):
            with pytest.raises(EngineNotStarted, match=cause):
                await call()
        assert len(given) == 1

    asyncio.run(run())


def test_the_cause_is_found_in_the_log_of_vllms_own_process():
    log = """INFO 11-29 starting
(EngineCore pid=7) ERROR 11-29 00:00:00 [core.py:900] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-29 00:00:00 [core.py:900] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-29 00:00:00 [core.py:900]     raise ValueError("free")
(EngineCore pid=7) ERROR 11-29 00:00:00 [core.py:900] ValueError: Free memory on device (1/79 GiB) is too small.
Process EngineCore:
Traceback (most recent call last):
torch.cuda.OutOfMemoryError: CUDA out of memory.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
    assert logged_cause(log) == "torch.cuda.OutOfMemoryError: CUDA out of memory."
    assert (
        logged_cause(log.replace("torch.cuda.OutOf", "-"))
        == "ValueError: Free memory on device (1/79 GiB) is too small."
    )
    assert logged_cause("all is well") == ""


def failing(error):
    def call():
        raise error

    return call


def started(monkeypatch, results):
    """Engines of which each has made its first start: ``results`` are callables, None for one that takes for ever."""
    fake = SimpleNamespace(
        remote=lambda cls: cls, get=lambda ref: ref(),
        wait=lambda refs, num_returns, timeout: ([ref for ref in refs if ref in ready], []),
    )  # fmt: skip
    ready = [result for result in results if result is not None]
    monkeypatch.setattr(engine, "ray", fake)
    engines = Engines(OrzRolloutActor, "scratch-")
    engines.LOOK_S, engines.starts = 0.01, [result or (lambda: None) for result in results]
    return engines


def test_a_first_start_that_fails_or_is_slow_is_an_error(monkeypatch):
    fine = lambda: "born"  # noqa: E731  a call's result, as in fake_ray.py
    cause = RayTaskError("f", "a long trace", EngineNotStarted("ValueError: no such architecture"))
    error = started(monkeypatch, [fine, None, failing(cause)]).failed_start(threading.Event(), 100)
    assert str(error) == "engine 2 cannot start: ValueError: no such architecture"
    error = started(monkeypatch, [failing(RayActorError())]).failed_start(threading.Event(), 100)
    assert str(error).startswith("engine 0 cannot start: The actor ")
    error = started(monkeypatch, [None, fine, None]).failed_start(threading.Event(), 0.05)
    assert str(error) == "engine 0, 2 has not started within 0.05 s (--orz.start_timeout_s)"
    done = threading.Event()
    threading.Timer(0.1, done.set).start()
    assert started(monkeypatch, [fine, None]).failed_start(done, 0) is None


def args(device="cuda", determinism=False, graded=True, dtype="bf16", seqs=None, tokens=None, fp32_head=False):
    return SimpleNamespace(
        ds=SimpleNamespace(param_dtype=dtype),
        train=SimpleNamespace(full_determinism_enable=determinism),
        orz=SimpleNamespace(
            trust_remote_code=False, verifier_grades=graded, stop=["a", "b"], grader_workers=3,
            plain_math_verify=True, verifier="letter", keep_cut_rewards=True, logprob_gap_every=5,
            device=device, cpu_kvcache_mib=2, max_num_seqs=seqs, max_num_batched_tokens=tokens, fp32_head=fp32_head,
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
    assert engine_args(args(graded=False, dtype="fp32"), dict, list) == {
        **base, "orz": own, "logprobs_mode": "processed_logprobs", "dtype": "float32"
    }  # fmt: skip
    assert engine_args(args(determinism=True, dtype="fp16")) == {**base, **agent, "dtype": "float16"}
    on_cpu = {**base, **agent, "dtype": "bfloat16", "kv_cache_memory_bytes": 2 * 2**20}
    assert engine_args(args("cpu")) == on_cpu
    assert engine_args(args("cpu", determinism=True)) == {**on_cpu, "enable_chunked_prefill": False}


def test_sequences_and_tokens_of_a_step_reach_vllms_scheduler():
    """Its own defaults for an AsyncLLM are 128 and 2048; only what is set is passed on."""
    given = {
        name: value for name, value in engine_args(args(seqs=300, tokens=5000)).items() if name.startswith("max_num")
    }
    assert given == {"max_num_seqs": 300, "max_num_batched_tokens": 5000}
    model = str(Path(__file__).parents[3] / "examples" / "tiny_base")
    scheduler = AsyncEngineArgs(model, max_model_len=64, **given).create_engine_config().scheduler_config
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (300, 5000)


def test_a_float32_head_reaches_vllm():
    given = engine_args(args(fp32_head=True))["hf_overrides"]
    model = str(Path(__file__).parents[3] / "examples" / "tiny_base")
    heads = [
        AsyncEngineArgs(model, dtype="bfloat16", max_model_len=64, **more)
        .create_engine_config()
        .model_config.head_dtype
        for more in ({}, {"hf_overrides": given})
    ]
    assert heads == [torch.bfloat16, torch.float32]


def test_engines_are_started_with_the_steps_seed_and_asked_to_end(monkeypatch):
    calls = []

    class Handle:
        shutdown = SimpleNamespace(remote=lambda: "ref")
        start = SimpleNamespace(remote=lambda: "started")

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
    assert engines.handles == handles and engines.starts == ["started"] * 2
    spare = {"env_vars": {SPARE: "1"}}
    assert calls[0] == {"num_gpus": 1, "max_restarts": -1, "max_task_retries": 0, "runtime_env": spare}
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
    assert args.orz.verifier_grades and engine_args(args).get("enable_chunked_prefill") is cut


def test_a_user_whom_the_machine_does_not_know(monkeypatch, tmp_path):
    """As in a container that is given a number: the folder of what is compiled has a name all the same."""
    import pwd

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "VLLM_RPC_BASE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "removed at the end")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(RolloutRayActor, "_configure_vllm_env", lambda self: None)
    monkeypatch.setattr(engine, "compile_cache", lambda wanted: str(tmp_path / os.path.basename(wanted)))
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    make()._configure_vllm_env()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path / "torchinductor_"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpus_compilers_do_not_write_into_memory(monkeypatch, tmp_path, device):
    """On a GPU vLLM's sockets alone lie in the run's folder, which is in memory and perhaps may not be executed."""
    base = tmp_path / "run" / "ipc"
    monkeypatch.setattr(RolloutRayActor, "_configure_vllm_env", lambda self: None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name, value in (
        ("TMPDIR", str(tmp_path)), ("VLLM_RPC_BASE_PATH", str(base)), ("DS_ACCELERATOR", device),
        ("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled")), ("VLLM_NO_USAGE_STATS", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    make()._configure_vllm_env()
    assert base.is_dir() and os.environ["TMPDIR"] == str(base if device == "cpu" else tmp_path)


@pytest.mark.parametrize("workers, expected", [([3.0, 8.0], 8.0), ([None], None)])
def test_the_memory_of_an_engines_gpus_is_the_largest(workers, expected):
    async def asked(method):
        assert method == "gpu_memory_mib"
        return workers

    assert asyncio.run(make(SimpleNamespace(collective_rpc=asked)).gpu_memory_mib()) == expected
