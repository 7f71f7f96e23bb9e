"""The data of a run, before Ray starts: its prompts, written for OpenRLHF."""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Set
from itertools import accumulate
from pathlib import Path

from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.settings.checks import ConfigError, check_rollouts
from openrlhf_orz.settings.derive import prompt_budget
from openrlhf_orz.settings.finished import rollouts_of
from openrlhf_orz.settings.redact import printable

SHOWN = 60  # characters of a question, or of an answer


def template_of(args) -> str:
    """The template of the run's prompts, by whichever of the two flags names it."""
    return args.orz.prompt_template if args.data.input_template is None else args.data.input_template


@contextlib.contextmanager
def data_kept(args) -> Iterator[None]:
    """For a run that goes on: one that the body refuses leaves the data of the steps that are there as they were."""
    from openrlhf_orz.data.sources import DataError

    folder = Path(args.orz.run_dir) / "data"
    aside = folder.with_name(f"{checkpoints.PARTIAL}data")
    shutil.rmtree(aside, ignore_errors=True)
    if args.ckpt.load_enable and folder.is_dir():
        shutil.copytree(folder, aside)
    try:
        yield
    except (ConfigError, DataError) as error:
        for file in aside.iterdir() if aside.is_dir() else ():
            if isinstance(error, ConfigError) or not file.name.startswith("bad_rows"):  # the error names these
                os.replace(file, folder / file.name)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def prepare_data(args, explicit: Set[str]) -> tuple[dict, int]:
    """Write the run's prompts; returns the settings that point OpenRLHF at them, and how many there are to train on.

    Raises DataError, naming flag, file and line, if there is nothing to train on.
    """
    from openrlhf_orz.data.prepare import prepare_prompts
    from openrlhf_orz.reward.verifiers import VerifierSet
    from openrlhf_orz.settings.models import check_models

    tokenizer = check_models(args)
    data_dir = Path(args.orz.run_dir) / "data"
    with VerifierSet(args.orz.verifier, plain=args.orz.plain_math_verify) as verifiers:
        rules = prompt_rules(args, tokenizer, answer_rules(args, explicit, verifiers))
        train = prepare_prompts(
            args.data.prompt_dataset,
            data_dir,
            "train",
            rules,
            split=args.data.prompt_split,
            max_rows=args.data.max_samples,
        )
        prepared = {
            "data.prompt_dataset": ",".join(map(str, train.paths)),
            "data.prompt_split": "train",
            "data.input_key": "prompt",
            "data.label_key": "label",
            "data.input_template": None,
            "data.apply_chat_template": False,  # the prompts are rendered
        }
        if args.eval.dataset:
            held_out = prepare_prompts(args.eval.dataset, data_dir, "eval", rules, split=args.eval.split)
            prepared |= {"eval.dataset": ",".join(map(str, held_out.paths)), "eval.split": "train"}
    prompts = drawn_prompts(args, train.counts)
    check_rollouts(args, prompts)
    return prepared, prompts


def prompt_rules(args, tokenizer, answers):
    """How the run's rows become prompts."""
    from openrlhf_orz.data.prepare import PromptRules

    return PromptRules(
        tokenizer=tokenizer,
        template=template_of(args),
        input_key=args.data.input_key,
        label_key=args.data.label_key,
        max_prompt_len=prompt_budget(args),
        answers=answers,
        apply_chat_template=args.data.apply_chat_template,
    )


def replayed_steps(args, prompts: list[str], start_step: int) -> int:
    """The last step of ``--orz.replay``, whose first rollout must be to some of the prepared ``prompts`` (files).

    Says on the console that what follows is not on-policy. Raises ConfigError.
    """
    from openrlhf_orz.rollout.replay_rows import OTHER, last_replayable, read_rollout

    first = start_step + 1
    try:
        last = last_replayable(args.orz.replay, first)
        texts = (Path(file).read_text(encoding="utf-8") for file in prompts)
        known = {json.loads(line)["prompt"] for text in texts for line in text.splitlines()}
        for place, row in read_rollout(args.orz.replay, first):
            if row["prompt"] not in known:
                raise ConfigError(f"{place} answers a prompt that is not among this run's: {OTHER}")
    except ConfigError as error:
        raise ConfigError(f"--orz.replay: {error}") from None
    print(
        f"[orz] --orz.replay: trains on what {args.orz.replay} has dumped, steps {first} to {last}; another policy has"
        " sampled it, so this is NOT on-policy. No engine starts, and nothing is generated",
        flush=True,
    )
    return last


def drawn_prompts(args, counts: list[int]) -> int:
    """Prompts of an episode, of training sets with so many rows. Raises ConfigError if one has no room."""
    most, names = args.data.max_samples, args.data.prompt_dataset.split(",")
    left = [name for name, before in zip(names, accumulate(counts, initial=0)) if before >= most]
    if left and args.data.prompt_probs is None:
        raise ConfigError(
            f"--data.max_samples {most} takes the first rows of all sets of --data.prompt_dataset together, and none"
            f" of {', '.join(left)}: raise it, leave those out, or mix all by --data.prompt_probs"
        )
    return min(blended(counts, args.data.prompt_probs, args.train.seed), most)


def blended(counts: list[int], probabilities: str | None, seed: int) -> int:
    """Prompts of an episode that OpenRLHF draws from data sets of these sizes, in ``prepare_datasets``.

    With ``--data.prompt_probs`` it draws until the last one is exhausted, and repeats those that end earlier.
    """
    if probabilities is None:
        return sum(counts)
    from datasets import Dataset, interleave_datasets
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    sets = [Dataset.from_dict({"row": range(count)}) for count in counts]
    chances = [float(chance) for chance in probabilities.split(",")]
    return len(interleave_datasets(sets, probabilities=chances, seed=seed, stopping_strategy="all_exhausted"))


def answer_rules(args, explicit: Set[str], verifiers):
    """Which answers rows may have."""
    from openrlhf_orz.data.rows import AnswerRules

    own = not args.orz.verifier_grades
    return AnswerRules(None if own else verifiers, own, "data.label_key" in explicit)


def _short(value) -> str:
    """A question or an answer on one line, to be recognised."""
    text = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return json.dumps(text if len(text) <= SHOWN else f"{text[:SHOWN]}...", ensure_ascii=False)


def short_run(args, steps: int) -> list[str]:
    """A remark on a run whose learning rates rise for half of it or more, or that writes no checkpoint on its way."""
    found, warmup = [], args.orz.actor_warmup_steps
    if warmup is not None and steps <= 2 * warmup:
        found.append(
            f"in {min(warmup, steps)} of {steps} steps the learning rates still rise (--orz.warmup_steps {warmup}):"
            " it learns little. --train.num_episodes N goes through the prompts N times"
        )
    if args.ckpt.save_steps > steps:
        found.append(
            f"no checkpoint before its end: it has {steps} steps, and --ckpt.save_steps is {args.ckpt.save_steps}"
        )
    elif args.ckpt.save_steps < 1:
        found.append(
            "no checkpoint before its end, unless you stop it: --ckpt.save_steps N writes one every N steps, from"
            " which --ckpt.load_enable goes on"
        )
    return found


def short_rollout(args, prompts: int) -> str | None:
    """A remark on a last rollout with fewer prompts than the others."""
    batch, last = args.rollout.batch_size, prompts % args.rollout.batch_size
    if args.algo.dynamic_filtering_enable:
        return (
            "the last rollout of an episode has what the filter leaves when the prompts end, as few as one, and takes"
            " as many optimizer steps"
        )
    if not last:
        return None
    whole = f"; --data.max_samples {prompts - last} leaves it out" if prompts > batch else ""
    return f"the last rollout of an episode has {last} of {batch} prompts and takes as many optimizer steps{whole}"


def look_at_data(args, explicit: Set[str], tokenizer=None) -> tuple[list[str], float | None]:
    """A line for each of the run's data sets that is here, with its good and bad rows; one on the hub is not fetched.

    With a tokenizer also the mean tokens of a prompt to train on, or None where one of these data sets is not here.
    Raises DataError, as training does, where there is no such file or no good row in it, and for a template without a
    place for the question.
    """
    from openrlhf_orz.data.prepare import mean_tokens
    from openrlhf_orz.data.prompts import render
    from openrlhf_orz.data.rows import AnswerRules, Row, read_dataset
    from openrlhf_orz.data.sources import EVAL_FLAGS, TRAIN_FLAGS, DataError, is_here
    from openrlhf_orz.reward.verifiers import VerifierSet

    if not args.data.apply_chat_template:
        render(template_of(args), "")
    lines: list[str] = []
    counts: list[int] = []  # of each training set
    rows: list[Row] = []  # of all of them
    unknown = False
    for flags, names, split in (
        (TRAIN_FLAGS, args.data.prompt_dataset, args.data.prompt_split),
        (EVAL_FLAGS, args.eval.dataset, args.eval.split),
    ):
        for name in filter(None, (names or "").split(",")):
            if not is_here(name, flags):
                lines.append(f"data: {name} is on the hub, and not looked at")
                unknown |= flags is TRAIN_FLAGS
                continue
            keys = args.data.input_key, args.data.label_key
            most = args.data.max_samples
            with VerifierSet(args.orz.verifier, plain=args.orz.plain_math_verify) as verifiers:
                answers = answer_rules(args, explicit, verifiers)
                good, bad = read_dataset(name, *keys, split, most, flags=flags, answers=answers, log=lines.append)
            reasons = ", ".join(f"{why} {count}" for why, count in Counter(row.reason for row in bad).most_common())
            if not good:
                first = f"; the first: {bad[0].file}:{bad[0].row}: {bad[0].detail}" if bad else ""
                raise DataError(f"{flags.dataset}: no row of {name} can be used ({reasons or 'no rows'}{first})")
            lines.append(f"data: {name}: {len(good)} rows, {len(bad)} bad" + (f" ({reasons})" if bad else ""))
            lines.append(f"data: its first question: {_short(good[0].question)}; answer: {_short(good[0].answer)}")
            if flags is TRAIN_FLAGS:
                counts.append(len(good))
                rows += good
    if unknown:
        return lines, None
    prompts = drawn_prompts(args, counts)
    said = short_rollout(args, prompts)
    try:
        check_rollouts(args, prompts)
    except ConfigError as error:
        said = f"the run will be refused: {error}"
    if said:
        lines.append(f"data: if no prompt is too long, {said}")
    steps = rollouts_of(args, prompts)
    lines.append(f"run: {steps} steps ({prompts} prompts, --train.num_episodes {args.train.num_episodes})")
    lines += short_run(args, steps)
    return lines, None if tokenizer is None else mean_tokens(prompt_rules(args, tokenizer, AnswerRules()), rows)
