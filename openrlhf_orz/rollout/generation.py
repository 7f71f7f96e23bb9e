"""Generation that survives the loss of an engine, stops when asked to, and can be repeated exactly."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.utils.logging_utils import init_logger
from ray.exceptions import RayActorError, RayError, RayTaskError

from openrlhf_orz.runtime.stopping import stop_if_asked

logger = init_logger(__name__)

POLL_S = 1.0
HEALTH_S = 30.0
LOSSES = 5  # of one engine in a row, without an answer in between


class EngineLost(RuntimeError):
    """An engine cannot be brought back; the message says which and why."""


@dataclass
class Sent:
    """A prompt on its way, as it was sent."""

    prompt: str
    label: str
    images: object
    kwargs: dict
    number: int  # of the prompt in the run, for its seed


def request_seed(seed: int, kind: str, number: int) -> int:
    """The sampling seed of the ``number``-th prompt of a ``kind`` ("train", "eval"), 0 <= s < 2^48."""
    return int.from_bytes(hashlib.sha256(f"{seed}-{kind}-{number}".encode()).digest()[:6], "big")


def engine_died(error: Exception) -> bool:
    """Whether the error says that an engine has gone, and not that a request was wrong."""
    if isinstance(error, RayActorError):
        return True
    cause = getattr(error, "cause", None)
    names = {cls.__name__ for cls in type(cause).__mro__} | {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, RayTaskError) and bool(names & {"EngineDeadError", "EngineGenerateError"})


class OrzSamplesGenerator(SamplesGenerator):
    """As OpenRLHF's; responses come in the order of their prompts, whichever engine is done first."""

    # The synchronous trainer's: give engine ``index`` the current weights. Without it (asynchronous training) the loss
    # of an engine ends the run, and a rollout in hand is not given up when the run is to stop.
    sync_engine: Callable[[int], None] | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sent: dict = {}  # by request
        self.faults = {"engines_restarted": 0, "prompts_redone": 0}
        self.kind, self.number = "train", 0
        self.known: dict[int, str] = {}  # the incarnation of each engine that has the current weights

    def generate_eval_samples(self, **generate_kwargs):
        self.kind, kept, self.number = "eval", self.number, 0
        try:
            return super().generate_eval_samples(**generate_kwargs)
        finally:
            self.kind, self.number = "train", kept

    def _generate_vllm(self, *args, **kwargs):
        self.attend()
        self.sent.clear()
        self.ready: dict = {}  # responses by request, kept until those before them are there
        self.losses = [0] * len(self.vllm_engines)
        self.heard = [time.monotonic()] * len(self.vllm_engines)
        if self.kind == "train":
            self.number = getattr(self.prompts_dataloader, "drawn", self.number)
        return super()._generate_vllm(*args, **kwargs)

    # ---- sending

    def _dispatch_prompts_to_vllm(self, prompts, labels, *, images=None, **generate_kwargs):
        first = self.number
        try:
            refs = super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)
        except RayActorError:  # one has died while nobody asked it for anything
            self.attend()
            self.number = first
            refs = super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)
        for i, ref in enumerate(refs):
            image = images[i] if images is not None else None
            self.sent[ref] = Sent(prompts[i], labels[i], image, generate_kwargs, first + i)
        return refs

    def _prompt_sampling_params(self, sampling_params):
        number, self.number = self.number, self.number + 1
        if not self.args.train.full_determinism_enable:
            return sampling_params
        params = sampling_params.clone()
        params.seed = request_seed(self.args.train.seed, self.kind, number)
        return params

    def _engine_of(self, ref) -> int:
        actor = ref.task_id().actor_id()
        return next(i for i, engine in enumerate(self.vllm_engines) if engine._actor_id == actor)

    # ---- waiting

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
            self.heard[engine], self.losses[engine] = time.monotonic(), 0
        limit = self.args.orz.generation_timeout_s
        for engine in {self._engine_of(ref) for ref in pending_refs} if limit else ():
            if time.monotonic() - self.heard[engine] > limit:
                reason = f"nothing for {limit:g} s (--orz.generation_timeout_s)"
                pending_refs = self._redo(engine, pending_refs, reason)
        if self.args.algo.dynamic_filtering_enable:  # a prompt that is filtered out is replaced at once
            ready = [self.ready.pop(ref) for ref in list(self.ready)]
            return ready, pending_refs
        if pending_refs:
            return [], pending_refs
        # the order in which they were sent: what follows must not depend on who was quicker
        ready = [self.ready.pop(ref) for ref in sorted(self.ready, key=lambda ref: self.sent[ref].number)]
        return ready, []

    # ---- the loss of an engine

    def _redo(self, engine: int, pending_refs: list, reason) -> list:
        """Restart ``engine`` and send its unfinished prompts again. Returns what is pending now."""
        text = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        lost = [ref for ref in pending_refs if self._engine_of(ref) == engine]
        rest = [ref for ref in pending_refs if self._engine_of(ref) != engine]
        logger.warning(f"engine {engine} is lost, {len(lost)} prompts to be done again: {text}")
        self.faults["engines_restarted"] += 1
        self.faults["prompts_redone"] += len(lost)
        self.losses[engine] += 1
        if self.losses[engine] > LOSSES:
            raise EngineLost(f"engine {engine} was lost {LOSSES + 1} times in a row; the last time: {text}")
        self.revive(engine, kill=not isinstance(reason, RayActorError))
        self.heard = [time.monotonic()] * len(self.vllm_engines)
        again = []
        for ref in sorted(lost, key=lambda ref: self.sent[ref].number):
            sent = self.sent.pop(ref)
            kept, self.number = self.number, sent.number
            again += self._dispatch_prompts_to_vllm([sent.prompt], [sent.label], images=[sent.images], **sent.kwargs)
            self.number = kept
        return rest + again

    def attend(self) -> int:
        """See that every engine answers and has the current weights; returns how many had to be brought back.

        One that died while nobody asked it for anything has been started again by Ray, and answers, with the weights
        of the beginning: it is known by its incarnation.
        """
        revived = 0
        for i, engine in enumerate(self.vllm_engines):
            reason = "started again by Ray"
            try:
                found = ray.get(engine.incarnation.remote(), timeout=HEALTH_S)
                if self.known.setdefault(i, found) == found:
                    continue
            except (RayError, TimeoutError) as error:
                reason = error
            logger.warning(f"engine {i} is lost: {(str(reason).splitlines() or [repr(reason)])[0]}")
            self.faults["engines_restarted"] += 1
            self.revive(i, kill=not isinstance(reason, (str, RayActorError)))
            revived += 1
        return revived

    def revive(self, engine: int, kill: bool) -> None:
        """Have Ray start the engine again, in its place, and give it the current weights. Raises EngineLost.

        ``kill``: its actor still lives, though it or its vLLM is of no use; one that has died Ray starts by itself.
        """
        if self.sync_engine is None:
            raise EngineLost(f"engine {engine} is lost, and in asynchronous training cannot be given current weights")
        handle, before = self.vllm_engines[engine], self.known.get(engine) if kill else None
        if kill:
            ray.kill(handle, no_restart=False)
        deadline = time.monotonic() + (self.args.orz.start_timeout_s or float("inf"))
        while True:
            try:
                found = ray.get(handle.incarnation.remote(), timeout=HEALTH_S)
                if found != before:  # one that is being killed may still answer
                    self.sync_engine(engine)
                    break
                error = "it is still the one that was to be killed"
            except (RayError, TimeoutError) as caught:
                error = caught
            stop_if_asked(self.args)
            if time.monotonic() > deadline:
                raise EngineLost(f"engine {engine} has not started again: {error}")
            time.sleep(POLL_S)
        self.known[engine] = found
