"""The extension of vLLM's worker (``worker_extension_cls``): weight sync in buckets, and the report that proves it."""

import weakref
from collections.abc import Callable

import torch
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

from openrlhf_orz.rollout.sync.checksums import EngineReport, checksum, find_sources
from openrlhf_orz.rollout.sync.transport import open_source, read_places, views


def tied_heads(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the output heads that share an embedding's weight."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    modules = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    embeddings = {id(module.weight) for module in modules if not isinstance(module, ParallelLMHead)}
    return [module for module in modules if isinstance(module, ParallelLMHead) and id(module.weight) in embeddings]


def packed_copies(model: torch.nn.Module) -> dict[str, Callable]:
    """Return, by module, the functions that hold weights packed by vLLM's CPU build. Packing again makes new ones."""
    return {
        name: module.cpu_linear
        for name, module in model.named_modules()
        if getattr(module, "cpu_linear", None) not in (None, torch.nn.functional.linear)
    }


class OrzWorkerExtension(WorkerWrap):
    """Methods that vLLM adds to its worker. ``device`` and ``model_runner`` are the worker's."""

    def load_synced_weights(self, source: tuple, places: list, check: bool = False) -> None:
        """Load named tensors, in checkpoint format, from a buffer of the trainer.

        Args:
            source: where the buffer is: ("file", path), which must hold all of the model's weights, or
                ("ipc", {device: handle}).
            places: the TensorPlace of each tensor in it.
            check: keep the tensors' checksums for ``weight_report``.
        """
        weights = views(open_source(source, self.device), read_places(places))
        if check:
            self.orz_handed = getattr(self, "orz_handed", {}) | {name: checksum(weight) for name, weight in weights}
        if source[0] == "file":
            self._reload(weights)
        else:
            self.model_runner.get_model().load_weights(weights)
        if self.device.type == "cuda":
            # the trainer may free the buffer as soon as this call returns
            torch.cuda.synchronize(self.device)

    def _reload(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Load all weights into a model whose linear layers keep only packed copies (vLLM's CPU build)."""
        model = self.model_runner.get_model()
        # weak references: the old copies must be freed while the new ones are made
        self.orz_packed = {name: weakref.ref(packed) for name, packed in packed_copies(model).items()}
        self.model_runner.reload_weights(weights_iterator=iter(weights))
        # A reload packs no new copy for a head that is tied to the embedding.
        for head in tied_heads(model):
            head.quant_method.process_weights_after_loading(head)

    def weight_report(self, names: list[str], dtype: str) -> tuple:
        """Return an EngineReport for the trainer's parameters ``names``, sent as ``dtype``; then forget checksums."""
        model = self.model_runner.get_model()
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        params = dict(model.named_parameters())
        sources, absent = find_sources(
            names,
            params,
            rename=lambda name: next(iter(mapper.apply_list([name])), None) if mapper else name,
            fused=getattr(model, "packed_modules_mapping", {}),
        )
        # vLLM keeps some (biases of packed layers) in a wider dtype; casting back gives the same bits
        held = {name: checksum(param.to(getattr(torch, dtype))) for name, param in params.items()}
        packed, before = packed_copies(model), getattr(self, "orz_packed", {})
        stale = [name for name, copy in before.items() if copy() is not None and copy() is packed.get(name)]
        handed, self.orz_handed = getattr(self, "orz_handed", {}), {}
        return tuple(EngineReport(handed, held, sources, absent, stale))
