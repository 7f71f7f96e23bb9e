"""A response as a line of rollouts/step_N.jsonl: text, verdict, token ids, and of some values and advantages."""

from openrlhf_orz.algo.text_stats import reflects
from openrlhf_orz.reward.extract import extract_answer
from openrlhf_orz.reward.rules import RULES
from openrlhf_orz.reward.verdict import Verdict
from openrlhf_orz.reward.verifiers import unpack_label
from openrlhf_orz.rollout.agent import stop_reason
from openrlhf_orz.trainer.metrics import response_tokens


def token_record(sample) -> dict:
    """The tokens of a single-sample experience as a rollout's line has them: after ``prompt_tokens`` of the prompt.

    ``token_ids`` reach from the first action token to the last. Where an agent has put tokens between them that are no
    actions, ``between`` has their [start, stop) in ``token_ids``.
    """
    mask = sample.action_mask[0].bool()
    places = mask.nonzero().flatten().tolist()
    if not places:
        return {"prompt_tokens": int(sample.attention_mask.sum()), "token_ids": []}
    first, last = places[0], places[-1]
    gaps = [[a + 1 - first, b - first] for a, b in zip(places, places[1:]) if b > a + 1]
    ids = sample.sequences[0][first + 1 : last + 2].tolist()
    return {"prompt_tokens": first + 1, "token_ids": ids, **({"between": gaps} if gaps else {})}


def token_texts(tokenizer, ids: list[int]) -> list[str]:
    """The part of the decoded text that each token adds; "" where a character is complete with a later token only."""
    texts, start, shown = [], 0, 0  # decoded from start on, so that blanks at a token's edge stay
    for place in range(len(ids)):
        before = tokenizer.decode(ids[start:shown], skip_special_tokens=False)
        now = tokenizer.decode(ids[start : place + 1], skip_special_tokens=False)
        if (now.endswith("\ufffd") or len(now) <= len(before)) and place + 1 < len(ids):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, shown = shown, place + 1
    return texts


def spread_places(count: int, wanted: int) -> list[int]:
    """``wanted`` of the places 0 to ``count`` - 1, at equal distances; all of them if there are not more."""
    return [i * count // wanted for i in range(wanted)] if wanted < count else list(range(count))


def token_numbers(experiences: list, places: list[int]) -> dict[int, dict]:
    """``values`` and ``advantages`` of the responses at ``places`` of the rollout, for each of their ``token_ids``.

    None at a token that is no action. Five significant digits.
    """
    wanted, found = set(places), {}
    for experience in experiences:
        for row, place in enumerate(experience.index):
            mask = experience.action_mask[row].bool()
            if place not in wanted or not mask.any():
                continue
            ends = mask.nonzero().flatten()
            span = slice(int(ends[0]), int(ends[-1]) + 1)
            found[place] = {
                name: [float(f"{x:.5g}") if act else None for x, act in zip(given[row, span].tolist(), mask[span])]
                for name, given in (("values", experience.values), ("advantages", experience.advantages))
            }
    return found


def rollout_row(
    sample,
    tokenizer,
    stop: list[str],
    trained: float | None = None,
    right_reward: float = 1.0,
    numbers_by_token: dict | None = None,
) -> dict:
    """One response as a line of rollouts/step_N.jsonl.

    ``stop`` are the run's stop strings, ``trained`` is the reward that was trained on, where it is another one,
    ``numbers_by_token`` are of ``token_numbers``. What was not measured, as an agent or reward of the user's does not
    say it, is None.
    """
    response, record = tokenizer.decode(response_tokens(sample), skip_special_tokens=False), token_record(sample)
    texts = {}
    if numbers_by_token:
        texts = {"token_texts": token_texts(tokenizer, record["token_ids"]), **numbers_by_token}
    numbers = {key: int(sample.info[key]) for key in ("verdict", "rule", "ended") if key in sample.info}
    label, verifier = unpack_label(sample.labels[0])
    cut = "length" if bool(sample.truncated) else None
    return {
        "prompt": sample.prompts[0],
        "response": response,
        "extracted": extract_answer(response),
        "reference": label,
        "reward": float(sample.rewards),
        "right": float(sample.rewards) >= right_reward,
        "tokens": int(sample.action_mask.sum()),
        **record,
        "reflection": reflects(response),
        "verdict": Verdict(numbers["verdict"]).label if "verdict" in numbers else None,
        "rule": RULES[numbers["rule"]] if "rule" in numbers else None,
        "stop_reason": stop_reason(numbers["ended"], stop) if "ended" in numbers else cut,
        **({} if trained is None else {"reward_trained": trained}),
        **({"verifier": verifier} if verifier else {}),
        **texts,
    }
