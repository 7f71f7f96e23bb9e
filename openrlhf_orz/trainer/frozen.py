"""Models that never train: the reference model and a reward model, where a run asks for them."""

from openrlhf.trainer.ray.launcher import ReferenceModelActor, RewardModelActor

import openrlhf_orz.models.packed_attention  # noqa: F401  registers --ds.attn_implementation orz_packed
from openrlhf_orz.runtime.cores import RendezvousByFile, at_work


class OrzReferenceModelActor(RendezvousByFile, ReferenceModelActor):
    def forward(self, *args, **kwargs):
        with at_work(self.strategy.args):
            return super().forward(*args, **kwargs)


class OrzRewardModelActor(RendezvousByFile, RewardModelActor):
    def forward(self, *args, **kwargs):
        with at_work(self.strategy.args):
            return super().forward(*args, **kwargs)
