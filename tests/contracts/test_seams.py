"""Every upstream symbol that we build on, and that the seams change nothing for whoever does not use them."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF is not installed: bash tools/setup.sh")


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_installed_build_is_ours():
    from openrlhf_orz.settings.upstream import check_openrlhf

    check_openrlhf()


def test_other_builds_are_refused(monkeypatch):
    from openrlhf_orz.settings import upstream

    series = (Path(__file__).parents[2] / "patches" / "series").read_text().split()
    assert upstream.needed_build() == f"0.11.2+orz.{len(series)}"
    for version in ("0.11.2", f"0.11.3+orz.{len(series)}", f"0.11.2+orz.{len(series) - 1}"):
        monkeypatch.setattr(upstream, "version", lambda name, found=version: found)
        with pytest.raises(RuntimeError, match="bash tools/setup.sh"):
            upstream.check_openrlhf()


def test_cli_is_importable_without_ray_or_torch():
    code = (
        "import sys; from openrlhf.cli.train_ppo_ray import build_parser, check_args; "
        "args = check_args(build_parser().parse_args(['--reward.remote_url', 'u', '--vllm.num_engines', '1'])); "
        "assert args.rollout.batch_size == 1024 and args.train.batch_size == 128, args; "
        "print(sorted({'ray', 'vllm', 'torch'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_train_takes_its_classes():
    from openrlhf.cli.train_ppo_ray import train

    assert parameters(train) == [
        "args", "policy_cls", "critic_cls", "reference_cls", "reward_cls", "trainer_cls", "engine_cls",
        "extra_engine_args",
    ]  # fmt: skip


def test_trainers_are_plain_classes_with_their_collaborators():
    from openrlhf.trainer import ppo_trainer, ppo_trainer_async
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    for cls in (ppo_trainer.PPOTrainer, ppo_trainer_async.PPOTrainerAsync, ppo_trainer_async.TrainingActor,
                ppo_trainer_async.GenerateSamplesActor):  # fmt: skip
        assert inspect.isclass(cls) and not hasattr(cls, "remote")
    assert ppo_trainer.PPOTrainer.experience_maker_cls is RemoteExperienceMaker
    assert ppo_trainer.PPOTrainer.prepare_datasets is ppo_trainer.prepare_datasets
    for cls in (ppo_trainer.PPOTrainer, ppo_trainer_async.GenerateSamplesActor):
        assert cls.compute_eval_metrics is ppo_trainer.compute_eval_metrics
    assert parameters(ppo_trainer_async.TrainingActor.broadcast_weights) == ["self"]
    for method, names in {
        "train_step": ["self", "rollout_samples", "global_step"],
        "ppo_train": ["self", "global_steps"],
        "broadcast_to_vllm": ["self"],
        "save_logs_and_checkpoints": ["self", "global_step", "logs_dict", "client_states"],
        "_compute_rollout_stats": ["self", "experiences"],
    }.items():
        assert parameters(getattr(ppo_trainer.BasePPOTrainer, method)) == names


def test_experience_maker():
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker as maker

    assert parameters(maker._dispatch_forward) == ["self", "group", "sync_condition", "kwargs"]
    assert parameters(maker.get_advantages_and_returns)[1:] == ["values", "rewards", "action_mask", "gamma", "lambd"]
    assert parameters(maker.get_cumulative_returns)[1:] == ["rewards", "action_mask", "gamma"]
    assert parameters(maker.split_rollout_samples)[1:] == ["rollout_samples"]


def test_samples_generator():
    from openrlhf.trainer.ppo_trainer import PPOTrainer
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator as generator

    assert PPOTrainer.samples_generator_cls is generator
    assert parameters(generator._wait_for_responses) == ["self", "pending_refs"]
    assert parameters(generator._prompt_sampling_params) == ["self", "sampling_params"]
    assert parameters(generator._dispatch_prompts_to_vllm) == [
        "self",
        "prompts",
        "labels",
        "images",
        "generate_kwargs",
    ]


def test_the_actor_is_frozen_for_as_many_steps_as_the_flag_says(monkeypatch):
    """0012: the steps in which OpenRLHF trains the actor, counted from 0."""
    from types import SimpleNamespace as Plain

    from openrlhf.trainer import ppo_trainer

    monkeypatch.setattr(ppo_trainer.ray, "get", lambda refs: refs)
    trainer = object.__new__(ppo_trainer.BasePPOTrainer)
    trainer.critic_model_group, trainer.kl_ctl = None, Plain(value=0.0)
    trainer.actor_model_group = Plain(async_run_method=lambda method_name, **_: [{method_name: True}])
    for frozen, trains in ((-1, [0, 1, 2]), (0, [0, 1, 2]), (1, [1, 2]), (2, [2])):
        trainer.args = Plain(critic=Plain(freezing_steps=frozen), ds=Plain(enable_sleep=False))
        assert [step for step in range(3) if trainer.ppo_train(step)] == trains, frozen


def test_the_filters_pass_rate_is_one_of_prompts():
    """0013: 3 of 4 prompts with 8 responses each."""
    from types import SimpleNamespace as Plain

    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    args = Plain(
        rollout=Plain(batch_size=3, n_samples_per_prompt=8, vllm_generate_batch_size=3),
        algo=Plain(dynamic_filtering_enable=True), vllm=Plain(enable_sleep=False),
    )  # fmt: skip
    generator = SamplesGenerator(Plain(args=args), [1, 2, 3, 4], None, None, [])
    generator._generate_vllm = lambda **_: (["sample"] * 24, 4, False)
    assert generator.generate_samples()[1] == 75


def test_a_model_that_is_not_trained_takes_any_batch():
    """0014: 8,192 samples on 6 ranks, which micro-batches of 8 do not fill evenly."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    strategy = object.__new__(DeepspeedStrategy)
    vars(strategy).update(stage=1, param_dtype="bf16", deepcompile=False, ds_tensor_parallel_size=1,
                          ring_attn_size=1, micro_train_batch_size=8, train_batch_size=8192)  # fmt: skip
    config = strategy.get_ds_eval_config()
    found = object.__new__(DeepSpeedConfig)
    found.world_size = 6
    found._initialize_params(config)
    found._configure_train_batch_size()
    assert (found.train_batch_size, found.train_micro_batch_size_per_gpu) == (48, 8)


def test_checkpoints():
    from openrlhf.trainer import ppo_trainer
    from openrlhf.trainer.ray.ppo_actor import PolicyModelActor
    from openrlhf.trainer.ray.ppo_critic import CriticModelActor

    base = ppo_trainer.BasePPOTrainer
    assert parameters(base.save_best_checkpoint) == ["self", "eval_metrics", "global_step", "client_states"]
    assert parameters(base.init_checkpoint_states) == ["self"]
    assert parameters(base._detect_eval_metric_key) == ["self", "eval_metrics"]
    assert parameters(base.restore_best_checkpoint_state) == ["self", "checkpoint_states"]
    source = Path(sys.modules["openrlhf"].__path__[0], "cli", "train_ppo_ray.py").read_text()
    assert source.index(".get_max_steps.") < source.index(".async_init_model_from_pretrained(")  # before models load
    for method in (PolicyModelActor.save_checkpoint, CriticModelActor.save_checkpoint):
        assert parameters(method)[1] == "tag"
        assert "self.checkpoint_path(tag)" in inspect.getsource(method)  # where they write is ours to say
    for cls in (PolicyModelActor, CriticModelActor):
        assert "os.path.join(args.ckpt.path, " in inspect.getsource(cls.init_model_from_pretrained)


def test_model_actors():
    from openrlhf.models import Actor, PolicyLoss
    from openrlhf.trainer.ppo_utils import NaiveReplayBuffer
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer, PolicyModelActor
    from openrlhf.trainer.ray.ppo_critic import CriticModelActor, CriticPPOTrainer

    assert not hasattr(PolicyModelActor, "remote") and not hasattr(CriticModelActor, "remote")
    assert PolicyModelActor.model_cls is Actor and PolicyModelActor.trainer_cls is ActorPPOTrainer
    assert ActorPPOTrainer.policy_loss_cls is PolicyLoss and ActorPPOTrainer.replay_buffer_cls is NaiveReplayBuffer
    assert CriticModelActor.trainer_cls is CriticPPOTrainer
    assert parameters(Actor.forward_tokens) == [
        "self", "sequences", "attention_mask", "position_ids", "labels", "needed", "return_entropy", "mm_inputs"
    ]  # fmt: skip
    assert CriticPPOTrainer.replay_buffer_cls is NaiveReplayBuffer
    assert parameters(CriticModelActor.build_model) == ["self", "strategy", "pretrain"]
    batch = ["self", "method_name", "all_data", "start_idx", "end_idx"]
    assert parameters(CriticModelActor.execute_batch) == batch
    assert parameters(NaiveReplayBuffer.partition_micro_batches) == ["self", "strategy"]


def test_engines():
    from openrlhf.trainer.ray.vllm_engine import RolloutRayActor, create_vllm_engines
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

    from openrlhf_orz.rollout.worker import OrzWorkerExtension

    assert not hasattr(RolloutRayActor, "remote")
    assert parameters(create_vllm_engines)[-2:] == ["engine_cls", "extra_engine_args"]
    assert issubclass(OrzWorkerExtension, WorkerWrap)


def test_generation_asks_for_the_last_output_alone():
    import asyncio

    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from openrlhf_orz.rollout.engine import OrzRolloutActor

    class Recorder:
        async def generate(self, prompt, params, request_id):
            self.asked = params
            yield "all"

    engine, given = object.__new__(OrzRolloutActor), SamplingParams(max_tokens=7, stop=["x"])
    engine.llm, engine._mm_pad_token_ids = Recorder(), None
    engine.first_start = asyncio.Event()
    engine.first_start.set()
    assert asyncio.run(engine.generate([1, 2], given)) == "all"
    asked = engine.llm.asked
    assert (asked.output_kind, asked.max_tokens, asked.stop) == (RequestOutputKind.FINAL_ONLY, 7, ["x"])
    assert given.output_kind == RequestOutputKind.CUMULATIVE  # the caller's stay as they are


def test_environment_of_workers_on_a_cpu(monkeypatch):
    """Trainers, and they alone, keep freed memory; an engine is one process; what the user has set wins; on a GPU
    nothing is set."""
    from openrlhf_orz.runtime.ray_session import rank_env, worker_env
    from openrlhf_orz.settings.command_line import parse
    from openrlhf_orz.settings.finished import RunFacts

    engine = "VLLM_ENABLE_V1_MULTIPROCESSING"
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_ARENA_MAX", engine):
        monkeypatch.delenv(name, raising=False)

    def env(device):
        args, _ = parse(["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", "--orz.device", device])
        return worker_env(args, RunFacts(checkpoints="", scratch="/dev/shm/orz-0-")), rank_env(device)

    workers, trainers = env("cpu")
    assert workers[engine] == "0" and not any(name.startswith("MALLOC_") for name in workers)
    heaps = str(1 + len(os.sched_getaffinity(0)))
    assert trainers == {"MALLOC_TRIM_THRESHOLD_": str(2**60), "MALLOC_MMAP_MAX_": "0", "MALLOC_ARENA_MAX": heaps}
    workers, trainers = env("cuda")
    assert engine not in workers and not trainers
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    monkeypatch.setenv(engine, "1")
    workers, trainers = env("cpu")
    assert workers[engine] == "1" and trainers["MALLOC_MMAP_MAX_"] == "65536"


def test_metrics_are_one_tensor_on_their_way_to_the_ranks():
    """And come out as they went in."""
    import torch
    from openrlhf.trainer.ppo_utils.experience import Experience, split_experience_batch

    from openrlhf_orz.trainer.batches import regroup

    infos = [
        {"reward": torch.tensor([0.1 * i]), "clipped": torch.tensor([i == 1]), "tokens": torch.tensor([i])}
        for i in range(3)
    ]
    items = [Experience(sequences=torch.arange(i + 1)[None], info=info) for i, info in enumerate(infos)]
    (batch,) = regroup(items, [[0, 1, 2]])
    for key in ("reward", "clipped", "tokens"):
        assert isinstance(batch.info[key], torch.Tensor) and batch.info[key].shape == (3,)
    for item, info in zip(split_experience_batch(batch), infos):
        for key in ("reward", "clipped", "tokens"):
            assert item.info[key].dtype == info[key].dtype and torch.equal(item.info[key], info[key][0])


def test_flash_attention_is_optional():
    import torch
    from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor

    sequences = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    packed, positions, rolled, pad, indices = unpad_and_slice_tensor(sequences, mask, None)
    assert packed.tolist() == [[1, 2, 3, 4, 5]] and positions.tolist() == [[0, 1, 2, 0, 1]]
    assert rolled.tolist() == [[2, 3, 0, 5, 0]]
    assert gather_and_pad_tensor(packed, None, pad, indices, 2, 4).tolist() == sequences.tolist()


def test_flash_attention_takes_no_other_attention_s_place(monkeypatch):
    """Where flash-attn is installed, packs go to it from those that know no packs, and from no other."""
    from openrlhf.cli import train_ppo_ray

    from openrlhf_orz.settings.command_line import parse

    monkeypatch.setattr(train_ppo_ray, "find_spec", lambda name: name)
    for given, used in (("orz_packed", "orz_packed"), ("sdpa", "flash_attention_2"), ("flash_attention_3",) * 2):
        flags = ["--actor.model_name_or_path", "m/m", "--data.prompt_dataset", "d", "--orz.device", "cuda"]
        args, _ = parse([*flags, "--ds.packing_samples", "--ds.attn_implementation", given])
        assert args.ds.attn_implementation == used


def test_fp32_parameters():
    import torch
    from openrlhf.utils.utils import convert_to_torch_dtype

    assert [convert_to_torch_dtype(name) for name in ("bf16", "fp16", "fp32")] == [
        torch.bfloat16, torch.float16, torch.float32]  # fmt: skip


def test_what_a_lone_rank_is_spared():
    """Methods of DeepSpeed's optimizer that trainer/live_objects.py overrides, and what it reads and sets."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    assert parameters(BF16_Optimizer.get_grads_for_norm) == ["self", "for_clipping"]
    assert parameters(BF16_Optimizer._update_hp_grad) == ["self", "lp", "group_idx", "param_idx", "clear_lp_grads"]
    assert parameters(BF16_Optimizer.clear_hp_grads) == ["self"] == parameters(BF16_Optimizer.backward_prologue)
    assert not hasattr(BF16_Optimizer, "engine"), "LoneRankOptimizer keeps the engine under this name"


def test_remote_code_as_upstream_unless_switched_off(monkeypatch):
    from openrlhf.utils.config import trust_remote_code

    monkeypatch.delenv("OPENRLHF_TRUST_REMOTE_CODE", raising=False)
    assert trust_remote_code()
    monkeypatch.setenv("OPENRLHF_TRUST_REMOTE_CODE", "0")
    assert not trust_remote_code()


def test_remote_code_is_not_run(tmp_path):
    """A model whose config names a module of its own is refused, and the module never runs."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}'
    )
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    code = f"from openrlhf.models import Actor; Actor({str(tmp_path)!r}, attn_implementation='sdpa')"
    env = os.environ | {"OPENRLHF_TRUST_REMOTE_CODE": "0", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, input="y\n")
    assert result.returncode != 0 and not marker.exists()


def test_zero3_gathers_wait_where_the_device_has_no_streams():
    """DeepSpeed waits for the last of several gathers alone, and gloo finishes them in any order."""
    from deepspeed.accelerator import get_accelerator
    from openrlhf.utils.deepspeed.deepspeed_utils import get_eval_ds_config, get_train_ds_config

    for make in (get_train_ds_config, get_eval_ds_config):
        zero = make(offload=False, stage=3)["zero_optimization"]
        assert zero["stage3_allgather_sequential"] == get_accelerator().is_synchronized_device()


def test_vllm_does_not_ask_for_tiles():
    """In bfloat16 on a processor with AMX it would be killed at a prompt of one token, did we not ask for it."""
    code = """
from openrlhf_orz.evaluate.generate import EngineSettings, Request, default_dtype, generate_responses, make_engine
settings = EngineSettings(
    model="examples/tiny_base", temperature=1.0, top_p=1.0, max_new_tokens=2, stop=(), batch_size=1, device="cpu",
    dtype=default_dtype("cpu"), kvcache_mib=64, max_len=96,
)
generate_responses(make_engine(settings), settings, [Request(("a", "b", 0), [5], 0)], print)
"""
    root = Path(__file__).parents[2]
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "'response'" in done.stdout, done.stdout + done.stderr
    import torch
    import vllm  # once it asks itself, allow_tiles() goes

    found = [path for path in Path(vllm.__file__).parent.rglob("*.py") if "_init_amx" in path.read_text()]
    assert not found and callable(torch.cpu._init_amx)


def test_compiled_headers_outlive_a_run(tmp_path):
    """Inductor keeps them below TMPDIR, which is the run's own in an engine: seconds of a compiler at each start."""
    (tmp_path / "machine").mkdir()
    code = """
import os, subprocess, sys
import vllm
from packaging import version
from openrlhf_orz.rollout.engine import OrzRolloutActor
for _ in range(2):  # a second engine on the node finds it done
    OrzRolloutActor._configure_vllm_env(object.__new__(OrzRolloutActor), version, vllm, False)
core = (
    "import os; from torch._inductor import codecache; "
    "print(os.path.realpath(codecache._HEADER_DIR), os.environ['TMPDIR'])"
)
subprocess.run([sys.executable, "-c", core], check=True)
"""
    run = tmp_path / "run"
    env = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "TMPDIR": str(tmp_path / "machine"),
        "VLLM_RPC_BASE_PATH": str(run),
        "RAY_ADDRESS": "none",
    }
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    headers, temporary = result.stdout.splitlines()[-1].split()
    assert Path(headers).is_relative_to(tmp_path / "machine") and temporary == str(run)
