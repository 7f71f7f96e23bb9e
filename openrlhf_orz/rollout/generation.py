"""Generation that survives the death of an engine, ends when the run is asked to stop, and can be repeated exactly.

``OrzSamplesGenerator`` stands in the order in which things happen: a call begins, its prompts are numbered and sent,
responses are awaited, lost ones are asked for again, and dead engines come back.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ray
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.utils.logging_utils import init_logger
from ray.exceptions import RayActorError, RayError, RayTaskError
from vllm import SamplingParams

from openrlhf_orz.runtime.console import Countdown
from openrlhf_orz.runtime.stopping import stop_if_asked

logger = init_logger(__name__)

POLL_S = 1.0
HEALTH_S = 30.0
GAP_ROLLOUTS = 2  # the first ones, of which every response comes with vLLM's log-probs
DEATHS_IN_A_ROW = 5  # of one engine, without an answer in between; the next one ends the run


class EngineLost(RuntimeError):
    """An engine cannot be brought back; the message says which and why."""


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


def engine_died(error: Exception) -> bool:
    """Whether the error means that an engine is dead, and not that a request was wrong."""
    if isinstance(error, RayActorError):
        return True
    cause = getattr(error, "cause", None)
    names = {cls.__name__ for cls in type(cause).__mro__} | {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, RayTaskError) and bool(names & {"EngineDeadError", "EngineGenerateError"})


class OrzSamplesGenerator(SamplesGenerator):
    """Returns responses in the order of their prompts, whichever engine is done first."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sync_engine: Callable[[int], None] | None = None
        self.training_prompts = Numbering("train")
        self.rollouts = 0  # that were begun
        self.sending: Iterator[Sent] = iter(())  # the prompts that OpenRLHF is about to send, in their order
        self.incarnations: dict[int, str] = {}  # by engine: which start of it has the current weights
        self.faults = {"engines_restarted": 0, "prompts_redone": 0}
        self.countdown = Countdown(self.args.orz.run_dir)
        self._begin()

    def set_sync(self, sync_engine: Callable[[int], None]) -> None:
        """Set the function that gives engine ``index`` the current weights. The synchronous trainer has one.

        Without it (asynchronous training) the death of an engine ends the run, and a rollout is finished before the
        run stops.
        """
        self.sync_engine = sync_engine

    def _begin(self) -> None:
        """Forget the call before: nothing is sent, every engine counts as just heard from."""
        self.sent: dict[ray.ObjectRef, Sent] = {}
        self.ready: dict[ray.ObjectRef, list] = {}  # responses that wait for those before them
        self.deaths_in_a_row = [0] * len(self.vllm_engines)
        self.last_answer_at = [time.monotonic()] * len(self.vllm_engines)

    # ---- a call

    def generate_eval_samples(self, **generate_kwargs):
        # OpenRLHF hands all keyword arguments on, to _generate_vllm and _dispatch_prompts_to_vllm
        return super().generate_eval_samples(numbering=Numbering("eval"), **generate_kwargs)

    def _generate_vllm(self, *args, numbering: Numbering | None = None, **kwargs):
        self.revive_dead_engines()
        self._begin()
        if numbering is None:
            self.rollouts += 1
            numbering = self.training_prompts
            numbering.next = getattr(self.prompts_dataloader, "drawn", numbering.next)
        return super()._generate_vllm(*args, numbering=numbering, **kwargs)

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
        except RayActorError:  # an engine has died since it last had a request
            self.revive_dead_engines()
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
        if self.sync_engine:
            stop_if_asked(self.args)
        ready_refs, pending_refs = ray.wait(pending_refs, num_returns=1, timeout=POLL_S)
        for ref in ready_refs:
            engine = self._engine_of(ref)
            try:
                self.ready[ref] = ray.get(ref)
            except (RayActorError, RayTaskError) as error:
                if not engine_died(error):
                    raise
                pending_refs = self._redo(engine, [ref, *pending_refs], error)
                break
            self.last_answer_at[engine], self.deaths_in_a_row[engine] = time.monotonic(), 0
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

    def _redo_overdue(self, pending_refs: list) -> list:
        """Restart engines that have not answered for --orz.generation_timeout_s (0: no limit)."""
        limit = self.args.orz.generation_timeout_s
        for engine in {self._engine_of(ref) for ref in pending_refs} if limit else ():
            if time.monotonic() - self.last_answer_at[engine] > limit:
                reason = f"nothing for {limit:g} s (--orz.generation_timeout_s)"
                pending_refs = self._redo(engine, pending_refs, reason)
        return pending_refs

    # ---- the death of an engine

    def _redo(self, engine: int, pending_refs: list, reason: Exception | str) -> list:
        """Restart ``engine`` and send its unfinished prompts again. Returns what is pending now. Raises EngineLost."""
        text = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        lost = [ref for ref in pending_refs if self._engine_of(ref) == engine]
        rest = [ref for ref in pending_refs if self._engine_of(ref) != engine]
        logger.warning(f"engine {engine} is lost, {len(lost)} prompts to be done again: {text}")
        self.faults["engines_restarted"] += 1
        self.faults["prompts_redone"] += len(lost)
        self.deaths_in_a_row[engine] += 1
        if self.deaths_in_a_row[engine] > DEATHS_IN_A_ROW:
            raise EngineLost(f"engine {engine} was lost {DEATHS_IN_A_ROW + 1} times in a row; the last time: {text}")
        self.revive(engine, kill=not isinstance(reason, RayActorError))
        self.last_answer_at = [time.monotonic()] * len(self.vllm_engines)
        return rest + self._send(sorted((self.sent.pop(ref) for ref in lost), key=lambda each: each.number))

    def revive_dead_engines(self) -> int:
        """Make sure that every engine answers and has the current weights. Returns how many had to be revived.

        If an engine dies without a request, Ray starts it again with the first weights, and it answers. Its
        incarnation then differs.
        """
        revived = 0
        for i, engine in enumerate(self.vllm_engines):
            reason: Exception | str = "started again by Ray"
            try:
                found = ray.get(engine.incarnation.remote(), timeout=HEALTH_S)
                if self.incarnations.setdefault(i, found) == found:
                    continue
            except (RayError, TimeoutError) as error:
                reason = error
            logger.warning(f"engine {i} is lost: {(str(reason).splitlines() or [repr(reason)])[0]}")
            self.faults["engines_restarted"] += 1
            self.revive(i, kill=not isinstance(reason, (str, RayActorError)))
            revived += 1
        return revived

    def revive(self, engine: int, kill: bool) -> None:
        """Have Ray start the engine again in its place, and give it the current weights. Raises EngineLost.

        ``kill``: the actor is alive, but it or its vLLM no longer works. A dead actor is started again by Ray itself.
        """
        if self.sync_engine is None:
            raise EngineLost(f"engine {engine} is lost, and in asynchronous training cannot be given current weights")
        handle, before = self.vllm_engines[engine], self.incarnations.get(engine) if kill else None
        if kill:
            ray.kill(handle, no_restart=False)
        deadline = time.monotonic() + (self.args.orz.start_timeout_s or float("inf"))
        while True:
            try:
                found = ray.get(handle.incarnation.remote(), timeout=HEALTH_S)
                if found != before:  # one that is being killed may still answer
                    self.sync_engine(engine)
                    break
                error: object = "it is still the one that was to be killed"
            except (RayError, TimeoutError) as caught:
                error = caught
            stop_if_asked(self.args)
            if time.monotonic() > deadline:
                raise EngineLost(f"engine {engine} has not started again: {error}")
            time.sleep(POLL_S)
        self.incarnations[engine] = found
