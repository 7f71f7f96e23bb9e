"""The two sides of a comparison, stock OpenRLHF and ours: model actors with a stopwatch, and the trainer that drives
them from this process on recorded rollouts.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path

import common
import torch
from openrlhf.trainer.ppo_trainer import PPOTrainer
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor
from openrlhf.trainer.ray.ppo_critic import CriticModelActor
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor

from openrlhf_orz.runtime.private import new_scratch
from openrlhf_orz.runtime.ray_session import rank_env, ray_session
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.finished import RunFacts, changed, for_openrlhf
from openrlhf_orz.settings.upstream import allow_remote_code
from openrlhf_orz.trainer.actor import OrzPolicyModelActor
from openrlhf_orz.trainer.critic import OrzCriticModelActor
from openrlhf_orz.trainer.ppo_trainer import OrzPPOTrainer


class Timed:
    """Mixed into a model actor: seconds by phase, peak memory, and for stock its threads in each phase."""

    threads, profiling, table = None, False, None

    def set_threads(self, forward, fit):
        self.threads = {"forward": forward, "fit": fit}

    def timed(self, phase, call, *args, **kwargs):
        if self.threads:
            torch.set_num_threads(self.threads[phase])
        start = time.perf_counter()
        if self.profiling and phase == "fit":
            with torch.profiler.profile() as recorded:
                result = call(*args, **kwargs)
            averages = recorded.key_averages()
            self.table = averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48)
        else:
            result = call(*args, **kwargs)
        self.seconds[phase] += time.perf_counter() - start
        return result

    def execute_batch(self, method, *args):
        call = super().execute_batch
        return self.timed(method, call, method, *args) if method == "forward" else call(method, *args)

    def fit(self, *args, **kwargs):
        return self.timed("fit", super().fit, *args, **kwargs)

    def start(self):
        self.seconds = {"forward": 0.0, "fit": 0.0}

    def profile(self, on):
        self.profiling = on

    def profiled(self):
        """The operations of the last training that was profiled, by their own time."""
        return self.table

    def reset_memory(self):
        common.reset_peak()
        if hasattr(self, "rank"):  # ours counts by phase, too
            self.rank.memory.whole.clear()

    def report(self):
        """Seconds since ``start``, and the largest resident memory so far."""
        by_phase = self.rank.memory.whole.values() if hasattr(self, "rank") else ()
        return {**self.seconds, "memory_mib": max([common.peak_rss_mib(), *by_phase])}


class StockPolicy(Timed, PolicyModelActor):
    pass


class StockCritic(Timed, CriticModelActor):
    pass


class OurPolicy(Timed, OrzPolicyModelActor):
    pass


class OurCritic(Timed, OrzCriticModelActor):
    pass


STEPS = 1000  # of the schedule; a benchmark takes fewer


def prompts_of(strategy, tokenizer):
    """A list in place of OpenRLHF's data loader: the trainers read prompts only to generate."""
    args = strategy.args
    rows = [(["bench"], [f"{i}{args.bench_prompt}"], ["1"], [None]) for i in range(args.rollout.batch_size)]
    return rows, None, STEPS


class StockTrainer(PPOTrainer):
    prepare_datasets = staticmethod(prompts_of)


class OurTrainer(OrzPPOTrainer):
    prepare_datasets = staticmethod(prompts_of)


CLASSES = {
    "stock": (StockTrainer, StockPolicy, StockCritic),
    "ours": (OurTrainer, OurPolicy, OurCritic),
}


def common_flags(model: Path, samples: int, dtype: str, ranks: int = 1) -> list[str]:
    """The same work for both sides: the paper's settings with as many samples. ZeRO stage as our default on a CPU,
    which spares a lone rank copies; stock has the same flags for it.
    """
    zero = {"fp32": ["0"], "bf16": ["1", "--ds.grad_accum_dtype", "fp32"]}.get(dtype, ["2"]) if ranks == 1 else ["2"]
    return [
        "--actor.model_name_or_path", str(model), "--data.prompt_dataset", "none", "--ds.param_dtype", dtype,
        "--ds.zero_stage", *zero,
        "--rollout.batch_size", str(samples // common.GROUP), "--rollout.n_samples_per_prompt", str(common.GROUP),
        "--actor.num_gpus_per_node", str(ranks), "--critic.num_gpus_per_node", str(ranks),
        "--vllm.num_engines", str(ranks), "--train.colocate_all", "--data.max_len", "4096",
    ]  # fmt: skip


def our_args(flags: list[str], run_dir: Path, prompt: str = "1+1="):
    args, _ = parse([*flags, "--orz.device", "cpu", "--ckpt.output_dir", str(run_dir), "--orz.warmup_steps", "0"])
    allow_remote_code(args.orz.trust_remote_code)
    return changed(args, {"bench_prompt": prompt, "logger.tensorboard_dir": None})


def stock_flags(how: str) -> list[str]:
    """``padded:N``: micro-batches of N samples; ``packed:N``: OpenRLHF's dynamic batches of N tokens, packed, by SDPA.
    With a further ``:zero2`` at that stage, OpenRLHF's default.
    """
    kind, number, *stage = how.split(":")
    if kind == "padded":
        flags = ["--train.micro_batch_size", number, "--rollout.micro_batch_size", number]
    else:
        flags = ["--train.dynamic_batch_enable", "--ds.packing_samples", "--train.max_tokens_per_gpu", number]
    return flags + (["--ds.zero_stage", "2"] if stage == ["zero2"] else [])


def stock_args(flags: list[str], how: str, samples: int, prompt: str = "1+1="):
    """Stock's own parser and checks; what the paper sets, stock gets too."""
    from openrlhf.cli.train_ppo_ray import build_parser, check_args

    paper = [
        "--train.batch_size", str(samples), "--algo.kl.init_coef", "0", "--algo.advantage.gamma", "1",
        "--algo.advantage.lambd", "1", "--actor.adam.lr", "1e-6", "--critic.adam.lr", "5e-6",
        "--actor.adam.betas", "0.9", "0.95", "--critic.adam.betas", "0.9", "0.95", "--actor.lr_scheduler", "constant",
        "--critic.lr_scheduler", "constant", "--ds.attn_implementation", "sdpa", "--reward.remote_url", "none",
        "--vllm.enforce_eager",
    ]  # fmt: skip
    args = check_args(build_parser().parse_args([*flags, *paper, *stock_flags(how)]))
    if how.endswith(":zero2"):
        args.ds.grad_accum_dtype = None
    args.bench_prompt = prompt
    return args


def recorded_rollouts(pairs: list[tuple[int, int]], vocabulary: int, seed: int = 0) -> list[Experience]:
    """Single-sample experiences as OpenRLHF's SamplesGenerator makes them: random tokens, rewards 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i, (prompt, response) in enumerate(pairs):
        total = prompt + response
        if i % common.GROUP == 0:
            question = torch.randint(1, min(vocabulary, 257), (1, prompt), generator=generator)
        answer = torch.randint(1, min(vocabulary, 257), (1, response), generator=generator)
        mask = torch.zeros(1, total - 1, dtype=torch.long)
        mask[:, prompt - 1 :] = 1
        reward = torch.randint(0, 2, (1,), generator=generator).float()
        samples.append(
            Experience(
                sequences=torch.cat([question, answer], 1),
                attention_mask=torch.ones(1, total, dtype=torch.long), action_mask=mask, prompts=["p"], labels=["1"],
                images=[None], mm_train_inputs=[None], rewards=reward, scores=reward.clone(),
                response_length=torch.tensor([response]), truncated=torch.tensor([False]),
                total_length=torch.tensor([float(total)]),
                info={"response_clip_ratio": torch.tensor([False]), "reward": reward.clone(), "score": reward.clone()},
            )
        )  # fmt: skip
    return samples


class Side:
    """A policy and a critic in processes of their own, and their trainer in this one."""

    def __init__(self, kind: str, args, pg, scratch: str, engines=None, keep_memory: bool = False):
        """``keep_memory``: stock's processes also keep freed memory, as ours do."""
        import ray
        from openrlhf.trainer.ray.launcher import RayActorGroup
        from openrlhf.utils import get_strategy

        if kind == "ours":
            run = RunFacts(checkpoints=args.ckpt.path, scratch=scratch, policy_steps=STEPS)
            args = for_openrlhf(args, run)
        self.kind, self.args, self.ray = kind, args, ray
        trainer_cls, policy_cls, critic_cls = CLASSES[kind]
        strategy, model = get_strategy(args), args.actor.model_name_or_path
        env = rank_env("cpu") if kind == "ours" or keep_memory else {}
        actor = ray.remote(num_gpus=1, runtime_env={"env_vars": env})
        self.groups = [
            RayActorGroup(1, role.num_gpus_per_node, actor(cls), pg=pg, num_gpus_per_actor=0.1)
            for role, cls in ((args.actor, policy_cls), (args.critic, critic_cls))
        ]
        policy, critic = self.groups
        self.trainer = trainer_cls(
            model, strategy, policy, critic, None, None, engines, do_sample=True, max_len=args.data.max_len,
            max_new_tokens=args.rollout.max_new_tokens, min_new_tokens=args.rollout.max_new_tokens or 1,
            temperature=1.0, top_p=1.0,
        )  # fmt: skip
        ray.get(policy.async_init_model_from_pretrained(strategy, model, self.trainer.max_steps, engines))
        ray.get(critic.async_init_model_from_pretrained(strategy, model, self.trainer.max_steps))
        self.steps = 0

    def call(self, method, *args):
        """Call a method on every process, the policy's first, then the critic's."""
        return [self.ray.get(group.async_run_method(method, *args)) for group in self.groups]

    def step(self, pairs, vocabulary, threads=None) -> dict:
        """One training step on fresh copies of the recorded rollouts; seconds of each phase."""
        samples = recorded_rollouts(pairs, vocabulary)
        if threads:
            self.call("set_threads", *threads)
            torch.set_num_threads(threads[0])
        self.call("start")
        start = time.perf_counter()
        status, _ = self.trainer.train_step(samples, self.steps + 1)
        whole = time.perf_counter() - start
        self.steps += 1
        policy, critic = (reports[0] for reports in self.call("report"))
        return {
            "training": whole - status["timing/broadcast"],
            "make_experience": status["timing/make_experience"],
            "train": status["timing/ppo_train"],
            "sync": status["timing/broadcast"],
            "policy_forward": policy["forward"], "critic_forward": critic["forward"],
            "policy_train": policy["fit"], "critic_train": critic["fit"],
            "policy_memory_mib": policy["memory_mib"], "critic_memory_mib": critic["memory_mib"],
        }  # fmt: skip

    def close(self):
        for group in self.groups:
            for actor in group._actor_handlers:
                self.ray.kill(actor)


class StockEngine(RolloutRayActor):
    """OpenRLHF's engine, which leaves nothing behind."""

    def _configure_vllm_env(self, *args, **kwargs):
        super()._configure_vllm_env(*args, **kwargs)
        os.makedirs(os.environ["VLLM_RPC_BASE_PATH"], exist_ok=True)  # ours makes it itself, and may start later

    async def shutdown(self):
        """Killed with Ray, its processes would leave their shared memory behind."""
        self.llm.shutdown()


def start_engine(kind: str, args, pg, extra: dict):
    """A vLLM engine as the side starts it. Stock's grades nothing: it has no grader but the user's."""
    from openrlhf.trainer.ray import create_vllm_engines

    from openrlhf_orz.rollout.engine import Engines, OrzRolloutActor

    return create_vllm_engines(
        1, 1, args.actor.model_name_or_path, args.train.seed, False, args.vllm.enable_prefix_caching, True,
        args.data.max_len, pg, args.vllm.gpu_memory_utilization,
        engine_cls=Engines(OrzRolloutActor, "") if kind == "ours" else StockEngine, extra_engine_args=extra,
    )  # fmt: skip


def generate(args, engines) -> float:
    """Seconds of generating one rollout, all responses of the same length."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    from openrlhf.utils import get_strategy

    strategy, tokens = get_strategy(args), args.rollout.max_new_tokens
    generator = SamplesGenerator(strategy, prompts_of(strategy, None)[0], None, common.byte_tokenizer(), engines)
    start = time.perf_counter()
    samples, *_ = generator.generate_samples(
        max_len=args.data.max_len, max_new_tokens=tokens, min_new_tokens=tokens, temperature=1.0, top_p=1.0
    )
    seconds = time.perf_counter() - start
    assert sum(int(s.response_length) for s in samples) == tokens * args.train.batch_size
    return seconds


@contextmanager
def session(args, ranks: int = 1):
    """Ray on loopback, as our command starts it, and one placement group. Yields (placement group, scratch folder)."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # as this process, which measures the matrix product for MFU
    os.environ.setdefault("RAY_worker_niceness", "0")
    from openrlhf_orz.runtime.stopping import StopHandler

    run = RunFacts(checkpoints=args.ckpt.path, scratch=new_scratch())
    with ray_session(args, run, StopHandler(args)) as ray:
        from ray.util.placement_group import placement_group

        pg = placement_group([{"GPU": 1, "CPU": 1}] * ranks, strategy="PACK")
        ray.get(pg.ready())
        yield pg, run.scratch
