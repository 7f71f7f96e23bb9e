"""Memory in each phase of a step, of each place (a GPU and the models that share it), by purpose; pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from openrlhf_orz.plan.costs import (
    ITEMSIZE,
    States,
    forward_activations,
    head_activations,
    reference_states,
    trained_states,
    training_activations,
    value_activations,
)
from openrlhf_orz.plan.hardware import GIB, Hardware
from openrlhf_orz.plan.layout import Batches, places
from openrlhf_orz.plan.shapes import Shape
from openrlhf_orz.settings.skip_plan import needs_old_log_probs

# Assumptions, printed with the plan
CUDA_PROCESS = 0.75 * GIB  # context, kernels and NCCL of one process on a GPU
VLLM_GRAPHS = 1 * GIB  # vLLM's CUDA graphs and workspaces; the KV cache is smaller by that and by a step's tensors
LOGIT_BYTES = 14  # of one logit while vLLM samples: as the product gives it, and three float32 copies
ASLEEP = 1 * GIB  # a sleeping vLLM still holds this
TRAINER_HOST = 0.65 * GIB  # a trainer's process before its model, CPU: benchmarks/plan.py
ENGINE_HOST = 1.3 * GIB  # an engine's processes without weights and cache, CPU: an assumption
VLLMS_SEQS, VLLMS_TOKENS = 128, 2048  # vLLM's own limits of a step, for engines like ours
GPU_PROCESS_HOST = 4 * GIB  # host memory of one process that uses CUDA


@dataclass(frozen=True)
class Phase:
    """One phase on one place: bytes on the device by purpose."""

    place: str
    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """``limit``: bytes of one device. ``host``: upper bounds for a node, bytes by purpose. ``host_limit``: bytes of a
    node's memory, None if that is not known.
    """

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
    """A policy, critic or reference: its states and its largest passes."""

    def __init__(self, role: str, shape: Shape, args: SimpleNamespace, cut: Batches, device: str):
        self.role, part = role, getattr(args, "actor" if role == "policy" else role)
        ranks = part.num_nodes * part.num_gpus_per_node
        b, tp = ITEMSIZE[args.ds.param_dtype], args.ds.tensor_parallel_size
        count = shape.critic_parameters() if role == "critic" else shape.policy_parameters()
        # tensor parallel ranks cut layers alone: each has the embedding, and the head, whole
        embedding = (tp - 1) * shape.vocabulary * shape.hidden
        count += embedding * (1 if role == "critic" or shape.tied else 2)
        if role == "ref":
            self.states: States = reference_states(count, args, ranks, args.ref.offload)
        else:
            frozen = shape.frozen_parameters(args.orz.freeze_critic) if role == "critic" else 0
            frozen += embedding if frozen and args.orz.freeze_critic != "attention" else 0
            self.states = trained_states(count, args, ranks, frozen)
        checkpointing = args.actor.gradient_checkpointing_enable
        self.train_pack = training_activations(shape, b, cut.longest_pack, checkpointing, tp)
        self.forward_pack = forward_activations(shape, b, cut.forward_pack, tp)
        self.train_head = self.forward_head = 0.0
        if role == "ref":  # OpenRLHF's own model: all logits of a pack, also in float32
            self.forward_head = cut.forward_pack * shape.vocabulary * (4 + (b if b < 4 else 0))
        elif role == "policy":
            fp32 = args.orz.fp32_head
            self.train_head = head_activations(shape, b, cut.longest_pack, device, gradient=True, fp32=fp32)
            self.forward_head = head_activations(shape, b, cut.forward_pack, device, gradient=False, fp32=fp32)
        else:
            self.train_head = value_activations(shape.value_outputs, cut.longest_pack, gradient=True)
            self.forward_head = value_activations(shape.value_outputs, cut.forward_pack, gradient=False)
        self.outputs = f"{role} {'outputs' if role == 'critic' else 'logits'}"
        self.sleeps = args.ds.enable_sleep and not args.ds.adam_offload and role != "ref"

    def resident(self) -> dict[str, float]:
        """Bytes between passes. A sleeping model's optimizer and gradients are on the host."""
        states = self.states
        return {
            f"{self.role} weights": states.weights,
            f"{self.role} optimizer": 0 if self.sleeps else states.optimizer,
        }

    def training(self) -> dict[str, float]:
        """Bytes in the backward of a micro-batch or in the optimizer's step, whichever is larger."""
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
            self.outputs: self.train_head,
        }
        step = {f"{self.role} float32 gradients": states.step}
        return parts | max(backward, step, key=lambda part: sum(part.values()))

    def forward(self) -> dict[str, float]:
        """Bytes in a forward without gradients."""
        return self.resident() | {
            f"{self.role} gathered weights": self.states.gathered,
            f"{self.role} activations": self.forward_pack,
            self.outputs: self.forward_head,
        }

    def host(self) -> float:
        """Bytes on the host: what is offloaded, and what sleeps."""
        asleep = self.states.optimizer + self.states.gradients if self.sleeps else 0
        return self.states.host + asleep


def engine_step_bytes(args: SimpleNamespace, shape: Shape) -> float:
    """Bytes of one GPU that an engine's largest step needs, which vLLM measures at its start and keeps free.

    A step computes --orz.max_num_batched_tokens tokens, or samples for --orz.max_num_seqs responses, which needs their
    whole logits.
    """
    b, tp = ITEMSIZE[args.ds.param_dtype], args.vllm.tensor_parallel_size
    tokens, seqs = args.orz.max_num_batched_tokens or VLLMS_TOKENS, args.orz.max_num_seqs or VLLMS_SEQS
    return max(forward_activations(shape, b, tokens, tp), seqs * shape.vocabulary * LOGIT_BYTES)


class _Engine:
    """vLLM on one of its devices: bytes of weights and KV cache, and the parts it holds awake, asleep, in a sync."""

    def __init__(self, args: SimpleNamespace, shape: Shape, hardware: Hardware):
        tp, b = args.vllm.tensor_parallel_size, ITEMSIZE[args.ds.param_dtype]
        self.weights = shape.policy_parameters() * b / tp
        if hardware.is_cpu:
            self.cache = args.orz.cpu_kvcache_mib * 2**20
        else:
            reserve = VLLM_GRAPHS + engine_step_bytes(args, shape)
            self.cache = args.vllm.gpu_memory_utilization * hardware.memory_gib * GIB - self.weights - reserve
        self.bytes_per_token = shape.kv_bytes_per_token(b) / min(tp, shape.kv_heads)
        self.awake = {"vLLM weights": self.weights, "vLLM KV cache": max(0, self.cache)}
        if not hardware.is_cpu:
            self.awake["vLLM graphs and step"] = reserve
        self.asleep = self.in_sync = self.awake
        if args.vllm.enable_sleep:
            self.asleep = {"vLLM asleep": ASLEEP}
            self.in_sync = {"vLLM weights": self.weights, "vLLM asleep": ASLEEP}

    def problems(self, args: SimpleNamespace) -> list[str]:
        if self.cache >= self.bytes_per_token * args.data.max_len:
            return []
        return [
            f"vLLM's KV cache of {max(0, self.cache) / GIB:.1f} GiB holds no sequence of --data.max_len"
            f" {args.data.max_len}: raise --vllm.gpu_memory_utilization or --vllm.tensor_parallel_size"
        ]


class _Place:
    """A GPU (on a CPU, a rank's part of the machine) and the roles that share it; ``engine`` is None without vLLM."""

    def __init__(self, name: str, roles: list[str], models: dict[str, _Model], engine: _Engine | None, on_cpu: bool):
        self.name, self.roles, self.models, self.engine, self.on_cpu = name, roles, models, engine, on_cpu

    def phase(self, name: str, active: dict[str, dict[str, float]], vllm: str) -> Phase:
        """``active``: the parts of roles that work in this phase; ``vllm``: awake, asleep or in_sync."""
        if self.on_cpu:
            parts = {"processes": TRAINER_HOST * len(self.models) + ENGINE_HOST * (self.engine is not None)}
        else:
            parts = {"CUDA contexts": CUDA_PROCESS * len(self.roles)}
        for role, model in self.models.items():
            parts |= active.get(role, model.resident())
            if self.on_cpu:  # host and device are one memory
                parts[f"{role} optimizer, offloaded"] = model.host()
        return Phase(self.name, name, parts | (getattr(self.engine, vllm) if self.engine else {}))

    def phases(self, args: SimpleNamespace, sync_bucket: float) -> list[Phase]:
        """The phases of a step on this place, in their order."""
        models = self.models
        found = [self.phase("generation", {}, "awake")] if self.engine else []
        forwards = []
        for role in models:
            if role == "critic" and not args.orz.cross_fit_values:
                forwards.append(("values", role))
            if role == "ref":
                forwards.append(("reference log-probs", role))
            if role == "policy" and needs_old_log_probs(args):
                forwards.append(("old log-probs", role))
        found += [self.phase(name, {role: models[role].forward()}, "asleep") for name, role in forwards]
        trained: list[str] = [role for role in ("critic", "policy") if role in models]
        one_by_one = args.ds.enable_sleep or args.orz.cross_fit_values
        for group in [[role] for role in trained] if one_by_one else [trained] if trained else []:
            active = {role: models[role].training() for role in group}
            found.append(self.phase(f"training of {' and '.join(group)}", active, "asleep"))
        if "policy" in models:
            policy = models["policy"]
            parts = {"policy gathered weights": policy.states.gathered, "sync bucket": sync_bucket}
            found.append(self.phase("weight sync", {"policy": policy.resident() | parts}, "in_sync"))
        return found

    def host(self, args: SimpleNamespace) -> dict[str, float]:
        """Host memory for one device of this place."""
        found = {f"{role} optimizer and gradients": model.host() for role, model in self.models.items()}
        if self.engine and args.vllm.enable_sleep:
            found["vLLM weights asleep"] = self.engine.weights
        if not self.on_cpu:
            found[f"processes ({self.name})"] = GPU_PROCESS_HOST * len(self.roles)
        return found


def plan_memory(
    args: SimpleNamespace, policy: Shape, critic: Shape | None, hardware: Hardware, cut: Batches
) -> Memory:
    """All phases on all places. ``hardware.per_node`` devices must be set."""
    device = "cpu" if hardware.is_cpu else "cuda"
    shapes = {"policy": policy, "ref": policy} | ({"critic": critic} if critic else {})
    engine = _Engine(args, policy, hardware)
    policy_bytes = policy.policy_parameters() * ITEMSIZE[args.ds.param_dtype]
    # a bucket's gathered parameters, and the flat buffer that they are copied to
    sync_bucket = 2 * min(args.orz.sync_bucket_mib * 2**20, policy_bytes)
    phases: list[Phase] = []
    host: dict[str, float] = {}
    for name, roles in places(args).items():
        models = {role: _Model(role, shapes[role], args, cut, device) for role in roles if role != "engine"}
        place = _Place(name, roles, models, engine if "engine" in roles else None, hardware.is_cpu)
        phases += place.phases(args, sync_bucket)
        host |= place.host(args)
    if args.train.enable_ema:
        shards = cut.data_parallel_ranks if args.ds.zero_stage == 3 else 1
        host["average of the policy's weights"] = policy_bytes / shards
    # an upper bound: as if each device of a node stood for one of every place
    per_node = hardware.per_node
    host = {name: value * per_node for name, value in host.items() if value}
    return Memory(
        phases=phases,
        limit=hardware.memory_gib * GIB / (per_node if hardware.is_cpu else 1),
        host={} if hardware.is_cpu else host,
        host_limit=None if hardware.host_gib is None else hardware.host_gib * GIB,
        kv_cache_tokens=max(0, engine.cache) / engine.bytes_per_token,
        problems=engine.problems(args),
    )
