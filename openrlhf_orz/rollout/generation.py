"""Generation that survives the death of an engine, ends when the run is asked to stop, and can be repeated exactly.

``OrzSamplesGenerator`` stands in the order in which things happen: a call begins, engines wake, its prompts are
numbered and sent, responses are awaited, lost ones are asked for again, and dead engines come back.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.utils.logging_utils import init_logger
from openrlhf.utils.utils import get_tokenizer
from ray.exceptions import RayActorError, RayError, RayTaskError
from vllm import SamplingParams

from openrlhf_orz.rollout.engine import EngineLost
from openrlhf_orz.rollout.recovery import DEATHS_IN_A_ROW, POLL_S, EngineRecovery, engine_died, has_process
from openrlhf_orz.runtime.console import Countdown
from openrlhf_orz.runtime.stopping import stop_if_asked
from openrlhf_orz.settings.finished import changed

logger = init_logger(__name__)

GAP_ROLLOUTS = 2  # the first ones, of which every response comes with vLLM's log-probs


@dataclass
class Numbering:
    """Counts the prompts of one kind ("train", "eval") in the order in which they are sent."""

    kind: str
    next: int = 0

    def take(self, count: int) -> range:
        """The numbers of the next ``count`` prompts."""
        first, self.next = self.next, self.next + count
        return range(first, self.next)


@dataclass
class Sent:
    """A prompt, with all that is needed to send it again."""

    prompt: str
    label: str
    image: object
    kind: str
    number: int  # among the prompts of its kind in the run: for its seed
    generate_kwargs: dict


def request_seed(seed: int, kind: str, number: int) -> int:
    """The sampling seed of the ``number``-th prompt of a ``kind`` ("train", "eval"), 0 <= s < 2^48."""
    return int.from_bytes(hashlib.sha256(f"{seed}-{kind}-{number}".encode()).digest()[:6], "big")


@functools.cache
def load_tokenizer(name: str, fast: bool):
    """The run's tokenizer, as OpenRLHF loads it; once in each process."""
    return get_tokenizer(name, None, "left", None, use_fast=fast)


class TokenizerByName:
    """The run's tokenizer, which travels to another process as its name: OpenRLHF sends it with every prompt.

    With a vocabulary of 150,000 it has megabytes, and takes the engine half a second to unpickle.
    """

    def __init__(self, tokenizer, args):
        self.tokenizer, self.name = tokenizer, (args.actor.model_name_or_path, not args.data.disable_fast_tokenizer)

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def __reduce__(self):
        return load_tokenizer, self.name


class OrzSamplesGenerator(SamplesGenerator):
    """Returns responses in the order of their prompts, whichever engine is done first."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # engines wake and sleep here: OpenRLHF's calls do not survive the death of one
        self.sleeps, self.awake = self.args.vllm.enable_sleep, False
        self.args = changed(self.args, {"vllm.enable_sleep": False})
        self.tokenizer = TokenizerByName(self.tokenizer, self.args)
        self.engines = EngineRecovery(self.args, self.vllm_engines)
        self.faults = self.engines.faults
        self.training_prompts = Numbering("train")
        self.rollouts = 0  # that were begun
        self.first = 0  # number of the rollout's first prompt
        # called with this, the prompt's number and its responses while others are still generated
        self.on_responses: Callable[[int, int, list[Experience]], None] = lambda *given: None
        self.sending: Iterator[Sent] = iter(())  # the prompts that OpenRLHF is about to send, in their order
        self.answered = False  # whether an engine has ever answered
        self.countdown = Countdown(self.args.orz.run_dir)
        self._begin()

    def _begin(self) -> None:
        """Forget the call before: nothing is sent, every engine counts as just heard from."""
        self.sent: dict[ray.ObjectRef, Sent] = {}
        self.ready: dict[ray.ObjectRef, list[Experience]] = {}  # responses that wait for those before them
        self.deaths_in_a_row = [0] * len(self.vllm_engines)
        self.last_answer_at = [time.monotonic()] * len(self.vllm_engines)

    # ---- a call

    def generate_samples(self, **generate_kwargs):
        with self._then_asleep():
            return super().generate_samples(**generate_kwargs)

    def generate_eval_samples(self, **generate_kwargs):
        # OpenRLHF hands all keyword arguments on, to _generate_vllm and _dispatch_prompts_to_vllm
        with self._then_asleep():
            return super().generate_eval_samples(numbering=Numbering("eval"), **generate_kwargs)

    def _generate_vllm(self, *args, numbering: Numbering | None = None, **kwargs):
        if self.sleeps and not self.awake:
            self.engines.wake()
            self.awake = True
        self.engines.revive_dead()
        self._begin()
        if numbering is not None:
            self.countdown = Countdown(self.args.orz.run_dir, what="evaluation")
        elif not self.rollouts:
            self.countdown = Countdown(self.args.orz.run_dir)
        if numbering is None:
            self.rollouts += 1
            numbering = self.training_prompts
            numbering.next = getattr(self.prompts_dataloader, "drawn", numbering.next)
            self.first = numbering.next
        return super()._generate_vllm(*args, numbering=numbering, **kwargs)

    # ---- engines that sleep while the trainers train (--vllm.enable_sleep)

    @contextmanager
    def _then_asleep(self) -> Iterator[None]:
        """Engines that the body wakes sleep when it has ended, before trainers take the GPUs."""
        yield
        if self.awake:
            self.awake = False
            self.engines.sleep()

    # ---- sending

    def _dispatch_prompts_to_vllm(self, prompts, labels, *, images=None, numbering: Numbering, **generate_kwargs):
        numbers = numbering.take(len(prompts))
        images = images or [None] * len(prompts)
        return self._send(
            [
                Sent(prompt, label, image, numbering.kind, number, generate_kwargs)
                for prompt, label, image, number in zip(prompts, labels, images, numbers, strict=True)
            ]
        )

    def _send(self, prompts: list[Sent]) -> list:
        """Send the prompts, of one call, and return their references."""
        try:
            refs = self._send_once(prompts)
        except RayError as error:  # an engine has died since it last had a request
            if not engine_died(error):
                raise
            self.engines.revive_dead()
            refs = self._send_once(prompts)
        self.sent.update(zip(refs, prompts, strict=True))
        return refs

    def _send_once(self, prompts: list[Sent]) -> list:
        self.sending = iter(prompts)
        return super()._dispatch_prompts_to_vllm(
            [each.prompt for each in prompts],
            [each.label for each in prompts],
            images=[each.image for each in prompts],
            **prompts[0].generate_kwargs,
        )

    def _prompt_sampling_params(self, sampling_params: SamplingParams) -> SamplingParams:
        """OpenRLHF calls this for one prompt after the other, as it sends them."""
        each = next(self.sending)
        params = sampling_params.clone()
        if each.kind == "train" and params.logprobs is None and self.wants_all_log_probs:
            params.logprobs = 0  # only those of the sampled tokens
        if self.args.train.full_determinism_enable:
            params.seed = request_seed(self.args.train.seed, each.kind, each.number)
        return params

    @property
    def wants_all_log_probs(self) -> bool:
        """Whether vLLM's log-probs of every response of this rollout are wanted, whoever the agent is."""
        orz = self.args.orz
        return orz.on_logprob_gap == "mask" or (orz.logprob_gap_every > 0 and self.rollouts <= GAP_ROLLOUTS)

    # ---- waiting

    def _engine_of(self, ref) -> int:
        actor = ref.task_id().actor_id()
        return next(i for i, engine in enumerate(self.vllm_engines) if engine._actor_id == actor)

    def _wait_for_responses(self, pending_refs):
        if self.engines.sync_engine:
            stop_if_asked(self.args)
        ready_refs, pending_refs = ray.wait(pending_refs, num_returns=1, timeout=POLL_S)
        for ref in ready_refs:
            engine = self._engine_of(ref)
            try:
                responses = ray.get(ref)
            except (RayActorError, RayTaskError) as error:
                if not engine_died(error):
                    raise
                pending_refs = self._redo(engine, [ref, *pending_refs], error)
                break
            self.last_answer_at[engine], self.deaths_in_a_row[engine] = time.monotonic(), 0
            self.answered = True
            # at once, while others are still being generated: all GPUs would wait for it at the end
            kwargs = self.sent[ref].generate_kwargs
            self.ready[ref] = [self._process_response_into_experience(response, **kwargs) for response in responses]
            if self.sent[ref].kind == "train":
                self.on_responses(self.first, self.sent[ref].number, self.ready[ref])
        pending_refs = self._redo_overdue(pending_refs)
        self.countdown.add(len(ready_refs), len(pending_refs))
        if self.args.algo.dynamic_filtering_enable:  # a prompt that is filtered out is replaced at once
            ready = [self.ready.pop(ref) for ref in list(self.ready)]
            return ready, pending_refs
        if pending_refs:
            return [], pending_refs
        # in the order of the prompts: results must not depend on which engine was quicker
        ready = [self.ready.pop(ref) for ref in sorted(self.ready, key=lambda ref: self.sent[ref].number)]
        return ready, []

    def _process_response_into_experience(self, response, **generate_kwargs) -> Experience:
        """OpenRLHF calls it when all responses are there; they were converted when they came."""
        if isinstance(response, Experience):
            return response
        experience = super()._process_response_into_experience(response, **generate_kwargs)
        # bytes of a mask are copied twice while all GPUs wait. A response by itself has no padding: one 1 is kept
        experience.action_mask = experience.action_mask.to(torch.int8)
        experience.attention_mask = torch.ones(1, 1, dtype=torch.int8).expand_as(experience.sequences)
        return experience

    def _redo_overdue(self, pending_refs: list) -> list:
        """Restart engines that have not answered for --orz.generation_timeout_s (0: no limit)."""
        limit = self.args.orz.generation_timeout_s
        for engine in {self._engine_of(ref) for ref in pending_refs} if limit else ():
            if time.monotonic() - self.last_answer_at[engine] > limit:
                error = f"nothing for {limit:g} s (--orz.generation_timeout_s)"
                pending_refs = self._redo(engine, pending_refs, error)
        return pending_refs

    # ---- the death of an engine

    def _redo(self, engine: int, pending_refs: list, error: Exception | str) -> list:
        """Restart ``engine`` and send its unfinished prompts again. Returns what is pending now. Raises EngineLost."""
        lost = [ref for ref in pending_refs if self._engine_of(ref) == engine]
        rest = [ref for ref in pending_refs if self._engine_of(ref) != engine]
        text = self.engines.lost(engine, error, f", {len(lost)} prompts to be done again")
        self.faults["prompts_redone"] += len(lost)
        self.deaths_in_a_row[engine] += 1
        allowed = DEATHS_IN_A_ROW if self.answered else 1
        if self.deaths_in_a_row[engine] > allowed:
            raise EngineLost(f"engine {engine} was lost {allowed + 1} times in a row; the last time: {text}")
        self.engines.revive(engine, kill=has_process(error))
        self.last_answer_at = [time.monotonic()] * len(self.vllm_engines)
        return rest + self._send(sorted((self.sent.pop(ref) for ref in lost), key=lambda each: each.number))
