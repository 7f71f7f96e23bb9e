"""``--orz.replay``: responses that an earlier run has dumped stand in for generation, and no engine starts.

For debugging a critic, a loss or a resumption: what trains has not sampled them, so this is not on-policy.
"""

from openrlhf.trainer.ppo_utils.samples_generator import _collect_prompt_batch

from openrlhf_orz.reward.extract import has_format
from openrlhf_orz.reward.rules import rule_number
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.verifiers import unpack_label
from openrlhf_orz.rollout.agent import CUT_BY_LENGTH, STOPPED_AT_EOS
from openrlhf_orz.rollout.generation import OrzSamplesGenerator
from openrlhf_orz.rollout.replay_rows import ReplayedRow, check_prompts, read_rollout, read_tokens
from openrlhf_orz.runtime.stopping import stop_if_asked
from openrlhf_orz.settings.checks import ConfigError


def ended_number(place: str, reason: str, stop: list[str]) -> int:
    """How a response ended, as the agent says it. Raises ConfigError for a stop string that this run has not."""
    known = {"eos": STOPPED_AT_EOS, "length": CUT_BY_LENGTH, **{text: i for i, text in enumerate(stop)}}
    if reason not in known:
        raise ConfigError(f"{place} stopped at {reason!r}: give the --orz.stop of that run")
    return known[reason]


def as_response(replayed: ReplayedRow, prompt: str, label: str, stop: list[str], max_len: int) -> dict:
    """What an engine returns for a response, of a row. Raises ConfigError for one that does not fit this run."""
    row, place = replayed.row, replayed.place
    if row.get("reference") != unpack_label(label)[0]:
        raise ConfigError(
            f"{place} was graded against another answer than its row has here: give the data of that run"
        )
    if len(replayed.token_ids) > max_len:
        raise ConfigError(f"{place} has {len(replayed.token_ids)} tokens: give --data.max_len at least that")
    logs = {"format": float(has_format(row["response"]))}
    if row.get("verdict") is not None:
        logs |= {"verdict": float(Verdict[row["verdict"].upper()]), "rule": float(rule_number(row.get("rule")))}
    if row.get("stop_reason") is not None:
        logs["ended"] = float(ended_number(place, row["stop_reason"], stop))
    return {
        "prompt": prompt,
        "label": label,
        "observation_tokens": replayed.token_ids,
        "action_ranges": replayed.actions,
        "rollout_log_probs": None,
        "truncated": row.get("stop_reason") == "length",
        "reward": float(row["reward"]),
        "scores": float(row["reward"]),
        "extra_logs": logs,
    }


class ReplayedSamples(OrzSamplesGenerator):
    """Returns the rollout of the step that an earlier run has dumped, to the prompts that this run draws."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.step = self.args.run.start_step
        self.last = self.args.run.last_step

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _generate_vllm(self, dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs):
        """As OpenRLHF's: (experiences, prompts drawn, whether these are the last). Raises ConfigError."""
        stop_if_asked(self.args)
        if self.step == self.last:
            return [], 0, True
        self.step += 1
        prompts, labels, _, exhausted = _collect_prompt_batch(dataloader_iter, self.args.rollout.batch_size)
        n, stop, longest = self.args.rollout.n_samples_per_prompt, list(self.args.orz.stop), self.args.data.max_len
        try:
            rows = read_rollout(self.args.orz.replay, self.step)
            check_prompts(rows, prompts, n)
            responses = [
                as_response(
                    read_tokens(place, row, self._encode, self.tokenizer.decode), prompts[i // n], labels[i // n],
                    stop, longest,
                )
                for i, (place, row) in enumerate(rows)
            ]  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"--orz.replay: {error}") from None
        experiences = [self._process_response_into_experience(each, **generate_kwargs) for each in responses]
        return experiences, len(prompts), exhausted or self.step == self.last


def samples_generator(strategy, **parts) -> OrzSamplesGenerator:
    """What draws the rollouts of a run."""
    return (ReplayedSamples if strategy.args.orz.replay else OrzSamplesGenerator)(strategy=strategy, **parts)
