"""The policy's model: common beginnings once, log-probs of action tokens only, in chunks."""

from openrlhf.models import Actor

from openrlhf_orz.models import log_prob_head, shared_prefixes
from openrlhf_orz.models.cpu import rms_norm


class OrzActor(Actor):
    def __init__(self, *args, share=True, on_cpu=False, **kwargs):
        super().__init__(*args, **kwargs)
        # in a list: a second name for the head's parameters would be saved and synced twice
        self._head = [log_prob_head.install(self.model)]
        if share:
            shared_prefixes.install(self.model)
        if on_cpu:
            rms_norm.install(self.model)

    def forward_tokens(
        self, sequences, attention_mask, position_ids, labels=None, needed=None, return_entropy=False, **mm_inputs
    ):
        (head,) = self._head
        if head is None or labels is None or needed is None or mm_inputs:
            return super().forward_tokens(
                sequences, attention_mask, position_ids, labels, needed, return_entropy, **mm_inputs
            )
        columns = needed.any(0).nonzero()[
            :, 0
        ]  # in a pack: just those needed; in a padded batch: those that any row needs
        if not len(columns):  # the head takes part all the same: under ZeRO-3 all ranks gather it
            columns = columns.new_zeros(1)
        head.labels, head.temperature, head.with_entropy = labels[:, columns], self.temperature, return_entropy
        try:
            output = self.model(
                sequences, attention_mask=attention_mask, position_ids=position_ids, logits_to_keep=columns
            )
        finally:
            head.labels = None
        log_probs, entropy = (
            values.new_zeros(sequences.shape).index_copy(1, columns, values) for values in output["logits"].unbind(-1)
        )
        return output, log_probs, entropy if return_entropy else None
