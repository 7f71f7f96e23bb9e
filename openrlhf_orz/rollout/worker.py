"""The extension of vLLM's worker (``worker_extension_cls``): OpenRLHF's weight sync, ours in buckets, its proof."""

import weakref
from collections.abc import Callable

import torch
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

from openrlhf_orz.rollout.sync.buckets import views
from openrlhf_orz.rollout.sync.checksums import EngineReport, checksum, find_sources
from openrlhf_orz.rollout.sync.transport import open_source, read_slots


def tied_heads(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Output heads that use an embedding's weight as theirs."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    modules = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    embeddings = {id(module.weight) for module in modules if not isinstance(module, ParallelLMHead)}
    return [module for module in modules if isinstance(module, ParallelLMHead) and id(module.weight) in embeddings]


def packed_copies(model: torch.nn.Module) -> dict[str, Callable]:
    """By module, the functions that hold weights as vLLM's CPU build has packed them; each repack makes a new one."""
    return {
        name: module.cpu_linear
        for name, module in model.named_modules()
        if getattr(module, "cpu_linear", None) not in (None, torch.nn.functional.linear)
    }


class OrzWorkerExtension(WorkerWrap):
    def load_synced_weights(self, source: tuple, slots: list, check: bool = False) -> None:
        """Load the named tensors, in checkpoint format, that lie in a buffer of the trainer's.

        Args:
            source: where the buffer is: ("file", path), which must hold all of the model's weights, or
                ("ipc", {device: handle}).
            slots: where each tensor lies in it.
            check: keep the tensors' checksums for ``weight_report``.
        """
        weights = views(open_source(source, self.device), read_slots(slots))
        if check:
            self.orz_handed = getattr(self, "orz_handed", {}) | {name: checksum(weight) for name, weight in weights}
        if source[0] == "file":
            self._reload(weights)
        else:
            self.model_runner.get_model().load_weights(weights)
        if self.device.type == "cuda":
            # the trainer may free the buffer as soon as this call is over
            torch.cuda.synchronize(self.device)

    def _reload(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Load all weights into a model whose linear layers keep packed copies only (the CPU build)."""
        model = self.model_runner.get_model()
        # weak: a reference would keep the old copies in memory beside the new ones
        self.orz_packed = {name: weakref.ref(packed) for name, packed in packed_copies(model).items()}
        self.model_runner.reload_weights(weights_iterator=iter(weights))
        # A reload renews the embedding, but not the copy that is packed of a head tied to it.
        for head in tied_heads(model):
            head.quant_method.process_weights_after_loading(head)

    def weight_report(self, names: list[str], dtype: str) -> tuple:
        """An EngineReport, for the trainer's parameters ``names``, which were sent as ``dtype``."""
        model = self.model_runner.get_model()
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        params = dict(model.named_parameters())
        sources, absent = find_sources(
            names,
            params,
            rename=lambda name: next(iter(mapper.apply_list([name])), None) if mapper else name,
            fused=getattr(model, "packed_modules_mapping", {}),
        )
        # vLLM keeps some in a wider dtype (biases of packed layers), from which theirs comes back unchanged
        held = {name: checksum(param.to(getattr(torch, dtype))) for name, param in params.items()}
        packed, before = packed_copies(model), getattr(self, "orz_packed", {})
        stale = [name for name, copy in before.items() if copy() is not None and copy() is packed.get(name)]
        handed, self.orz_handed = getattr(self, "orz_handed", {}), {}
        return tuple(EngineReport(handed, held, sources, absent, stale))
