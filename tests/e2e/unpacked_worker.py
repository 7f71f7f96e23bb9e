"""A worker of vLLM's CPU build that keeps linear weights unpacked and renews them in place, as on CUDA."""

import torch
import vllm.model_executor.layers.utils as layers

from openrlhf_orz.rollout.worker import OrzWorkerExtension


def unpacked(layer, remove_weight):
    layer.cpu_linear = torch.nn.functional.linear


layers.dispatch_cpu_unquantized_gemm = unpacked  # vLLM imports the extension before it loads the model


class UnpackedWorker(OrzWorkerExtension):
    def skip_weight(self, name: str) -> None:
        """From now on the model's loader ignores this parameter."""
        model = self.model_runner.get_model()
        load = type(model).load_weights
        model.load_weights = lambda weights: load(model, [(n, w) for n, w in weights if n != name])
