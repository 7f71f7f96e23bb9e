"""Weight sync without CUDA: one file in shared memory, one call to each engine, for all weights."""

import os

import torch


def sync_through_file(model: torch.nn.Module, engines: list, args) -> None:
    """Bring the trainer's weights to every vLLM engine of this machine; all ranks call it.

    ``model`` is the module inside DeepSpeed's engine; under ZeRO-3 each parameter is gathered in turn. The file,
    under the run's prefix ``args.orz.scratch``, is removed also if an engine fails.
    """
    import deepspeed
    import ray
    import torch.distributed as dist
    from openrlhf.utils.utils import convert_to_torch_dtype
    from safetensors.torch import save_file

    dtype = convert_to_torch_dtype(args.ds.param_dtype)
    first = dist.get_rank() == 0
    weights = {}
    for name, param in model.named_parameters():
        with deepspeed.zero.GatheredParameters([param], enabled=args.ds.zero_stage == 3):
            if first:
                weights[name] = param.detach().to(dtype, copy=True)
    if first:
        path = f"{args.orz.scratch}weights.safetensors"
        try:
            save_file(weights, path)
            ray.get([engine.load_weights.remote(path) for engine in engines])
        finally:
            if os.path.exists(path):
                os.unlink(path)
    dist.barrier()


class WeightFileLoader:
    """Mixed into vLLM's worker (``worker_extension_cls``)."""

    def load_weights_file(self, path: str) -> int:
        """Load all weights, in checkpoint format, from a safetensors file; returns how many there were."""
        from safetensors.torch import load_file
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{path} is not on this machine: without CUDA, engines and rank 0 of the policy must share one"
            )
        weights = load_file(path)
        self.model_runner.reload_weights(weights_iterator=iter(weights.items()))
        # The CPU build packs a copy of a head that is tied to the embedding, and a reload does not renew that copy.
        for module in self.model_runner.get_model().modules():
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)
        return len(weights)
