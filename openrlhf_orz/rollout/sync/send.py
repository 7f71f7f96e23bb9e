"""Weight sync in buckets: a bucket is gathered, turned into the tensors of a checkpoint, copied into one buffer, and
handed to every engine.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist

from openrlhf_orz.models.adapters import adapters, plain_names, without_adapters
from openrlhf_orz.rollout.sync.checksums import Checksum, EngineReport, SyncError, checksum, compare
from openrlhf_orz.rollout.sync.transport import (
    BroadcastTransport,
    FileTransport,
    IpcTransport,
    cut_into_buckets,
    on_first_rank,
)

NAMED = 8  # problems that an error lists


def sync_to_engines(trainer, engines: list) -> dict[str, float]:
    """Bring the policy's weights to ``engines`` and, with --orz.check_sync, verify them. All ranks must call it.

    Args:
        trainer: an ActorPPOTrainer.
        engines: all of the run's, or, where they share GPUs or the machine with the trainer, those started again.

    Returns the metrics ``sync_bytes`` and, with --orz.check_sync, ``sync_verified``.
    """
    import ray
    from deepspeed.accelerator import get_accelerator
    from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync
    from openrlhf.utils.utils import convert_to_torch_dtype

    args, report = trainer.args, {}
    dtype = convert_to_torch_dtype(args.ds.param_dtype)
    weights = Weights(
        trainer.actor.model.module,
        dtype,
        args.orz.sync_bucket_mib * 2**20,
        args.ds.zero_stage,
        args.ds.tensor_parallel_size,
        trainable_only=getattr(trainer.actor, "is_vlm", False),
    )

    def load(source, places, last, meanwhile):
        refs = [engine.load_weights.remote(source, places, last, args.orz.check_sync) for engine in engines]
        meanwhile()
        if source[0] != "broadcast":  # in which the others would wait for an engine that is lost
            ray.wait(refs, num_returns=len(refs))
        return [device for devices in ray.get(refs) for device in devices]

    device = torch.device(get_accelerator().current_device_name())
    transport: FileTransport | IpcTransport | BroadcastTransport
    if args.orz.device == "cpu":
        transport = FileTransport(f"{args.run.scratch}weights", dtype, load)
    elif trainer.use_cuda_ipc:
        transport = IpcTransport(device, dtype, load)
    else:
        transport = BroadcastTransport(getattr(trainer, "_model_update_group", None), device, dtype, load)
    get_accelerator().empty_cache()
    report["sync_bytes"] = float(weights.send(transport))
    get_accelerator().empty_cache()
    torch_dist_barrier_and_cuda_sync()
    if args.orz.check_sync:
        report["sync_verified"] = verify_sync(
            weights,
            lambda *which: ray.get([engine.weight_report.remote(*which) for engine in engines]),
            trainer.rearranged,
        )
    return report


class Weights:
    """The policy's parameters as a checkpoint has them, adapters merged into them, bucket by bucket.

    transformers holds some in another form (the experts of a layer in one tensor) and turns them back when it saves a
    model; vLLM reads checkpoints. What becomes one tensor there is in one bucket: it never is of two layers.

    Args:
        model: the module inside DeepSpeed's engine.
        dtype: of the engines.
        limit: bytes of a bucket, once gathered.
        zero_stage, tensor_parallel_size: how DeepSpeed partitions the parameters.
        trainable_only: leave out frozen parameters (a vision encoder).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        dtype: torch.dtype,
        limit: int,
        zero_stage: int = 0,
        tensor_parallel_size: int = 1,
        trainable_only: bool = False,
    ):
        self.model, self.dtype, self.limit = without_adapters(model), dtype, limit
        self.zero_stage, self.tensor_parallel_size = zero_stage, tensor_parallel_size
        self.adapters = adapters(model)
        every = plain_names(list(self.model.named_parameters()))
        self.params = [(n, p) for n, p in every if p.requires_grad or not trainable_only]
        if not trainable_only:  # buffers of a checkpoint, too: a router's correction
            saved = set(self.model.state_dict())
            self.params += [(name, buffer) for name, buffer in self.model.named_buffers() if name in saved]
        shapes = [(n, torch.empty(getattr(p, "ds_shape", p.shape), device="meta")) for n, p in self.params]
        self.converted = {n for n, _ in as_in_checkpoint(self.model, shapes)} != {n for n, _ in shapes}

    def buckets(self) -> list[list[tuple[str, torch.Tensor]]]:
        """Return (name, parameter) in the model's order, cut by the sizes of whole parameters or an upper bound."""
        units: dict[str, list[int]] = {}  # what must be in one bucket
        for i, (name, _) in enumerate(self.params):
            layer = re.match(r".*?\.\d+\.", name) if self.converted else None
            units.setdefault(layer[0] if layer else name, []).append(i)
        sizes = [
            getattr(p, "ds_numel", p.numel() * self.tensor_parallel_size) * self.dtype.itemsize for _, p in self.params
        ]
        whole = list(units.values())
        cut = cut_into_buckets([sum(sizes[i] for i in unit) for unit in whole], self.limit)
        return [[self.params[i] for unit in bucket for i in whole[unit]] for bucket in cut]

    @contextmanager
    def whole(self, bucket: list[tuple[str, torch.Tensor]]) -> Iterator[None]:
        """Make the bucket's parameters whole on every rank inside the ``with`` block, which all ranks must enter."""
        if self.tensor_parallel_size == 1 and self.zero_stage != 3:  # they are whole already
            yield
            return
        import deepspeed

        params = [tensor for _, tensor in bucket if isinstance(tensor, torch.nn.Parameter)]
        params += [part for name, _ in bucket if name in self.adapters for part in self.adapters[name][:2]]
        with ExitStack() as stack:
            if self.tensor_parallel_size > 1:
                # one by one: DeepSpeed takes a list for the weight and bias of one layer
                for param in params:
                    gathered = deepspeed.module_inject.layers.GatherReplacedLayerParams([param], self.model)
                    stack.enter_context(gathered)
            else:
                stack.enter_context(deepspeed.zero.GatheredParameters(params))
            yield

    def value(self, name: str, param: torch.Tensor) -> torch.Tensor:
        """The weight that the engines get for a whole parameter."""
        adapter = self.adapters.get(name)
        return adapter.merged(param.detach()) if adapter else param.detach()

    def send(self, transport: FileTransport | IpcTransport | BroadcastTransport) -> int:
        """Bring all parameters to the engines. All ranks must call it. Returns the weights' bytes, without padding."""
        buckets, nbytes = self.buckets(), 0
        try:
            for i, bucket in enumerate(buckets):
                with self.whole(bucket):
                    tensors = as_in_checkpoint(self.model, [(name, self.value(name, param)) for name, param in bucket])
                    transport.put(tensors)
                    nbytes += sum(tensor.numel() for _, tensor in tensors) * self.dtype.itemsize
                transport.send(last=i == len(buckets) - 1)
        finally:
            transport.close()
        return nbytes

    def checksums(self) -> dict[str, Checksum]:
        """Return, on rank 0, the checksum of each tensor sent, in the engines' dtype. All ranks must call it."""
        sums: dict[str, Checksum] = {}
        for bucket in self.buckets():
            with self.whole(bucket):
                if dist.get_rank() == 0:
                    tensors = as_in_checkpoint(self.model, [(name, self.value(name, param)) for name, param in bucket])
                    sums.update((name, checksum(tensor.to(self.dtype))) for name, tensor in tensors)
        return sums


def as_in_checkpoint(
    model: torch.nn.Module, tensors: list[tuple[str, torch.Tensor]]
) -> list[tuple[str, torch.Tensor]]:
    """Return named parameters of a transformers model under the names and in the form that save_pretrained writes."""
    if not hasattr(model, "save_pretrained"):
        return tensors
    from transformers.core_model_loading import revert_weight_conversion

    return list(revert_weight_conversion(model, dict(tensors)).items())


def verify_sync(weights: Weights, ask: Callable[[list[str], str], list], rearranged: dict[str, bool]) -> float:
    """Compare the trainer's checksums with those of every engine. All ranks must call it.

    ``ask(names, dtype)`` is called on rank 0 and returns, for each engine, the EngineReport of each of its workers.
    ``rearranged`` keeps, between calls, whether the engines hold a parameter in another order. The first call that can
    tell fills it: vLLM has brought them into that order, and log-probs show whether it is the right one.
    Returns the share of the weights that was found in the parameters of every engine, and not only in what its loader
    received. Raises SyncError on rank 0, with the names of the parameters that differ, and RuntimeError on the others.
    """
    sums = weights.checksums()

    def compare_all() -> float:
        found, problems = set(sums), []
        dtype = str(weights.dtype).removeprefix("torch.")
        for i, engine in enumerate(ask(list(sums), dtype)):
            wrong, at_home, moved = compare(sums, [EngineReport.read(worker) for worker in engine])
            changed = [param for param in sorted(moved) if rearranged.setdefault(param, moved[param]) != moved[param]]
            wrong += [f"{param}: its elements are in another order than before" for param in changed]
            problems += [f"engine {i}: {problem}" for problem in wrong]
            found &= at_home
        if problems:
            more = [f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
            raise SyncError("after a weight sync:\n" + "\n".join(problems[:NAMED] + more))
        return sum(sums[name].count for name in found) / max(1, sum(each.count for each in sums.values()))

    return on_first_rank(compare_all)
