"""Memory of each place (a GPU and the models on it) in each phase of a step, by what it is for; pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field

from openrlhf_orz.plan import activations
from openrlhf_orz.plan.batches import Batches
from openrlhf_orz.plan.hardware import GIB, Hardware
from openrlhf_orz.plan.shapes import Shape
from openrlhf_orz.plan.states import ITEMSIZE, frozen, trained
from openrlhf_orz.settings.skip_plan import needs_old_log_probs

# Assumptions, printed with the plan
CUDA_PROCESS = 0.75 * GIB  # context, kernels and NCCL of one process on a GPU
VLLM_RESERVE = 2 * GIB  # what vLLM's profile run and CUDA graphs leave the KV cache less
ASLEEP = 1 * GIB  # what a sleeping vLLM keeps
TRAINER_HOST = 0.65 * GIB  # a trainer's process before its model, CPU: benchmarks/plan.py
ENGINE_HOST = 1.3 * GIB  # an engine's processes without weights and cache, CPU: docs/smollm2.md (1.7 GiB in all)
GPU_PROCESS_HOST = 4 * GIB  # host memory of one process that uses CUDA


@dataclass(frozen=True)
class Phase:
    """One phase on one place: bytes by what they are for, on the device."""

    place: str
    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """``limit`` is bytes of one device; ``host`` bytes of the node that holds most. None: not known."""

    phases: list[Phase]
    limit: float
    host: dict[str, float]
    host_limit: float | None
    kv_cache_tokens: float
    problems: list[str] = field(default_factory=list)

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def host_total(self) -> float:
        return sum(self.host.values())

    @property
    def fits(self) -> bool:
        host = self.host_limit is None or self.host_total <= self.host_limit
        return not self.problems and self.peak.total <= self.limit and host


class _Model:
    """A policy, critic or reference: its states and the largest of its passes."""

    def __init__(self, role, shape, args, cut: Batches, device):
        self.role, part = role, getattr(args, "actor" if role == "policy" else role)
        ranks = part.num_nodes * part.num_gpus_per_node
        b, tp = ITEMSIZE[args.ds.param_dtype], args.ds.tensor_parallel_size
        count = shape.critic_parameters() if role == "critic" else shape.policy_parameters()
        if role == "ref":
            self.states = frozen(count, args, ranks, args.ref.offload)
        else:
            self.states = trained(count, args, ranks)
        checkpointing = args.actor.gradient_checkpointing_enable
        self.train_pack = activations.training(shape, b, cut.longest_pack, checkpointing, tp)
        self.forward_pack = activations.forward(shape, b, cut.forward_pack, tp)
        self.train_head = self.forward_head = 0.0
        if role != "critic":
            self.train_head = activations.head(shape, b, cut.longest_pack, device, gradient=True)
            self.forward_head = activations.head(shape, b, cut.forward_pack, device, gradient=False)
        self.sleeps = args.ds.enable_sleep and not args.ds.adam_offload and role != "ref"

    def resident(self) -> dict[str, float]:
        """Between passes. Asleep, optimizer and gradients are on the host."""
        states = self.states
        return {
            f"{self.role} weights": states.weights,
            f"{self.role} optimizer": 0 if self.sleeps else states.optimizer,
        }

    def training(self) -> dict[str, float]:
        """Either the backward of a micro-batch or the optimizer's step, whichever is larger."""
        states = self.states
        parts = {
            f"{self.role} weights": states.weights,
            f"{self.role} optimizer": states.optimizer,
            f"{self.role} gradients": states.gradients,
        }
        backward = {
            f"{self.role} gathered weights": states.gathered,
            f"{self.role} gradient bucket": states.bucket,
            f"{self.role} activations": self.train_pack,
            f"{self.role} logits": self.train_head,
        }
        step = {f"{self.role} float32 gradients": states.step}
        return parts | max(backward, step, key=lambda part: sum(part.values()))

    def forward(self) -> dict[str, float]:
        return self.resident() | {
            f"{self.role} gathered weights": self.states.gathered,
            f"{self.role} activations": self.forward_pack,
            f"{self.role} logits": self.forward_head,
        }

    def host(self) -> float:
        asleep = self.states.optimizer + self.states.gradients if self.sleeps else 0
        return self.states.host + asleep


def places(args) -> dict[str, list[str]]:
    """Which roles share a GPU: {name: roles}."""
    roles = ["policy"]
    critic, reference = bool(args.critic.model_name_or_path), args.algo.kl.init_coef > 0
    if args.train.colocate_all:
        trainers = roles + ["critic"] * critic + ["ref"] * reference
        if args.train.async_enable:
            return {"trainers": trainers, "engines": ["engine"]}
        return {"all": [*trainers, "engine"]}
    found = {"policy": roles}
    if reference:
        if args.train.colocate_actor_ref:
            found["policy"] = ["policy", "ref"]
        else:
            found["reference"] = ["ref"]
    if critic:
        found["critic"] = ["critic"]
    return found | {"engines": ["engine"]}


def engine(args, shape: Shape, hardware: Hardware) -> tuple[float, float]:
    """(weights, KV cache) of one vLLM engine on one of its GPUs, bytes."""
    tp, b = args.vllm.tensor_parallel_size, ITEMSIZE[args.ds.param_dtype]
    weights = shape.policy_parameters() * b / tp
    if hardware.is_cpu:
        return weights, args.orz.cpu_kvcache_mib * 2**20
    return weights, args.vllm.gpu_memory_utilization * hardware.memory_gib * GIB - weights - VLLM_RESERVE


def memory(args, policy: Shape, critic: Shape | None, hardware: Hardware, cut: Batches) -> Memory:
    """All phases on all places. ``hardware.per_node`` devices must be set."""
    device = "cpu" if hardware.is_cpu else "cuda"
    b, tp = ITEMSIZE[args.ds.param_dtype], args.vllm.tensor_parallel_size
    shapes = {"policy": policy, "ref": policy, "critic": critic}
    weights, cache = engine(args, policy, hardware)
    per_token = policy.kv_bytes_per_token(b) / min(tp, policy.kv_heads)
    phases, host, problems = [], {}, []
    if cache < per_token * args.data.max_len:
        problems.append(
            f"vLLM's KV cache of {max(0, cache) / GIB:.1f} GiB holds no sequence of --data.max_len"
            f" {args.data.max_len}: raise --vllm.gpu_memory_utilization or --vllm.tensor_parallel_size"
        )
    awake = {"vLLM weights": weights, "vLLM KV cache": max(0, cache)}
    if not hardware.is_cpu:
        awake["vLLM graphs and profile"] = VLLM_RESERVE
    asleep = {"vLLM asleep": ASLEEP} if args.vllm.enable_sleep else awake
    bucket = 2 * min(args.orz.sync_bucket_mib * 2**20, policy.policy_parameters() * b)
    for place, roles in places(args).items():
        models = {r: _Model(r, shapes[r], args, cut, device) for r in roles if r != "engine"}
        engine_here, here = "engine" in roles, []
        processes = (
            {"processes": TRAINER_HOST * len(models) + ENGINE_HOST * engine_here}
            if hardware.is_cpu
            else {"CUDA contexts": CUDA_PROCESS * len(roles)}
        )

        def add(name, active: dict[str, dict], vllm):
            parts = dict(processes)
            for role, model in models.items():
                parts |= active.get(role, model.resident())
                if hardware.is_cpu:  # host and device are one
                    parts[f"{role} optimizer, offloaded"] = model.host()
            here.append(Phase(place, name, parts | (vllm if engine_here else {})))

        if engine_here:
            add("generation", {}, awake)
        for role, model in models.items():
            if role == "critic" and not args.orz.cross_fit_values:
                add("values", {role: model.forward()}, asleep)
            if role == "ref":
                add("reference log-probs", {role: model.forward()}, asleep)
            if role == "policy" and needs_old_log_probs(args):
                add("old log-probs", {role: model.forward()}, asleep)
        trains = [role for role in ("critic", "policy") if role in models]
        one_by_one = args.ds.enable_sleep or args.orz.cross_fit_values
        for group in [[role] for role in trains] if one_by_one else [trains] if trains else []:
            add(f"training of {' and '.join(group)}", {role: models[role].training() for role in group}, asleep)
        if "policy" in models:
            sync = models["policy"].resident() | {
                "policy gathered weights": models["policy"].states.gathered, "sync bucket": bucket,
            }  # fmt: skip
            during = {"vLLM weights": weights, "vLLM asleep": ASLEEP} if args.vllm.enable_sleep else awake
            add("weight sync", {"policy": sync}, during)
        phases += here
        for role, model in models.items():
            host[f"{role} optimizer and gradients"] = model.host()
        if engine_here and args.vllm.enable_sleep:
            host["vLLM weights asleep"] = weights
        if not hardware.is_cpu:
            host[f"processes ({place})"] = GPU_PROCESS_HOST * len(roles)
    if args.train.enable_ema:
        host["average of the policy's weights"] = (
            policy.policy_parameters() * b / (cut.data_parallel_ranks if args.ds.zero_stage == 3 else 1)
        )
    # places are laid out side by side; a node full of the greediest place is the worst
    per_node = hardware.per_node
    host = {name: value * per_node for name, value in host.items() if value}
    limit = hardware.memory_gib * GIB / (per_node if hardware.is_cpu else 1)
    return Memory(
        phases=phases,
        limit=limit,
        host={} if hardware.is_cpu else host,
        host_limit=None if hardware.host_gib is None else hardware.host_gib * GIB,
        kv_cache_tokens=max(0, cache) / per_token,
        problems=problems,
    )
