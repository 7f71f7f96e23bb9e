"""Dead engines come back: found, started in their place while their GPU is free, and given the current weights."""

import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import ray
from openrlhf.utils.logging_utils import init_logger
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from openrlhf_orz.rollout.engine import EngineLost, EngineNotStarted, reason
from openrlhf_orz.runtime.run_dir import RunDir
from openrlhf_orz.runtime.stopping import stop_if_asked

logger = init_logger(__name__)

POLL_S = 1.0
HEALTH_S = 30.0
GROWTH_MIB = 256.0  # of a sleeping engine's GPU; more is said
DEATHS_IN_A_ROW = 5  # of one engine, without an answer in between; the next one ends the run


def engine_died(error: Exception) -> bool:
    """Whether the error means that an engine is dead, and not that a request was wrong."""
    if isinstance(error, RayActorError):
        return True
    cause = getattr(error, "cause", None)
    names = {cls.__name__ for cls in type(cause).__mro__} | {cls.__name__ for cls in type(error).__mro__}
    dead = {"EngineDeadError", "EngineGenerateError", "EngineNotStarted"}
    return isinstance(error, RayTaskError) and bool(names & dead)


def has_process(error: Exception | str) -> bool:
    """Whether an engine that failed with ``error`` still has a vLLM, which must be killed before another can start."""
    return not isinstance(error, RayActorError) and not isinstance(getattr(error, "cause", None), EngineNotStarted)


class EngineRecovery:
    """The engines of a run, in whichever phase one of them dies.

    Args:
        args: the settings.
        engines: their handles.
    """

    def __init__(self, args: SimpleNamespace, engines: list):
        self.args, self.engines = args, engines
        self.sync_engine: Callable[[int], None] | None = None
        self.incarnations: dict[int, str] = {}  # by engine: its start that was last seen at work
        self.faults = {"engines_restarted": 0, "prompts_redone": 0}
        self.asleep: dict[str, float] = {}  # the metric gpu_memory_mib_asleep of the last sleep
        self.memory_bound: dict[int, float] = {}  # by engine: what its GPU may hold before the next warning, MiB

    def set_sync(self, sync_engine: Callable[[int], None]) -> None:
        """Set the function that gives engine ``index`` the current weights. The synchronous trainer has one.

        Without it (asynchronous training) the death of an engine ends the run, and a rollout is finished before the
        run stops.
        """
        self.sync_engine = sync_engine

    # ---- asleep while the trainers train (--vllm.enable_sleep)

    def sleep(self) -> None:
        """Put all engines to sleep. One that cannot has no vLLM from then on, and is revived when it is needed."""
        lost = self._ask_all("sleep")
        for engine, error in lost.items():
            logger.warning(f"engine {engine} is lost, while it is put to sleep: {reason(error)}")
            if has_process(error):
                ray.kill(self.engines[engine], no_restart=False)
        self._watch_memory([i for i in range(len(self.engines)) if i not in lost])

    def _watch_memory(self, engines: list[int]) -> None:
        """Note what the GPUs of the sleeping ``engines`` hold, the trainers asleep, too, and say that it grows.

        What vLLM does not give back is missing when the trainers wake: a run then ends for want of it, hours later.
        """
        found = {}
        for i, ref in [(i, self.engines[i].gpu_memory_mib.remote()) for i in engines]:
            with suppress(RayError, TimeoutError):  # it has just died: seen when it is to wake
                found[i] = ray.get(ref, timeout=self.args.orz.sync_timeout_s or None)
        found = {i: mib for i, mib in found.items() if mib is not None}
        self.asleep = {"gpu_memory_mib_asleep": max(found.values())} if found else {}
        for i, mib in found.items():
            bound = self.memory_bound.setdefault(i, mib + GROWTH_MIB)
            if mib > bound:
                text = (
                    f"the GPU of engine {i} holds {mib:.0f} MiB while it sleeps, {mib - bound + GROWTH_MIB:.0f} more"
                )
                logger.warning(f"{text} than before: it may run out of memory. A restart of the run gives it back")
                self.memory_bound[i] = mib + GROWTH_MIB

    def wake(self) -> None:
        """Wake all engines. Raises EngineLost."""
        for engine, error in self._ask_all("wake_up").items():
            self.lost(engine, error)
            self.revive(engine, kill=has_process(error))

    def _ask_all(self, method: str) -> dict[int, Exception]:
        """Call a method of all engines; returns the error of each that is dead or does not answer."""
        errors: dict[int, Exception] = {}
        refs = [getattr(engine, method).remote() for engine in self.engines]
        for i, ref in enumerate(refs):
            try:
                ray.get(ref, timeout=self.args.orz.sync_timeout_s or None)
            except (RayError, TimeoutError) as error:
                errors[i] = error
        return errors

    # ---- dead

    def lost(self, engine: int, error: Exception | str, more: str = "") -> str:
        """Count and report that an engine is lost; returns why."""
        text = error if isinstance(error, str) else reason(error)
        logger.warning(f"engine {engine} is lost{more}: {text}")
        RunDir(self.args.orz.run_dir).note(f"engine {engine} is lost and started again{more}: {text}")
        self.faults["engines_restarted"] += 1
        return text

    def revive_dead(self, between_steps: bool = True) -> int:
        """Make sure that every engine answers and has the current weights. Returns how many had to be revived.

        ``between_steps`` is as in ``revive``.
        """
        revived = 0
        for i, engine in enumerate(self.engines):
            try:
                limit = HEALTH_S if i in self.incarnations else self._start_limit()  # it may still load its model
                self.incarnations[i] = ray.get(engine.incarnation.remote(), timeout=limit)
            except (RayError, TimeoutError) as error:
                self.lost(i, error)
                self.revive(i, kill=has_process(error), between_steps=between_steps)
                revived += 1
        return revived

    def _start_limit(self) -> float | None:
        return self.args.orz.start_timeout_s or None

    def revive(self, engine: int, kill: bool, between_steps: bool = True) -> None:
        """Start the engine again in its place, and give it the current weights. Raises EngineLost with the cause.

        Its GPU must be free: trainers that share it sleep.

        Args:
            kill: its process is alive, but it or its vLLM no longer works. Ray starts a dead process again by itself.
            between_steps: the run may be asked to stop here: no optimizer step since the last finished step.
        """
        if self.sync_engine is None:
            raise EngineLost(f"engine {engine} is lost, and in asynchronous training cannot be given current weights")
        handle, before = self.engines[engine], self.incarnations.get(engine) if kill else None
        if kill:
            ray.kill(handle, no_restart=False)
        deadline = time.monotonic() + (self._start_limit() or float("inf"))
        start, deaths, state = None, 0, ""
        while True:
            start = handle.start.remote() if start is None else start
            try:
                found = ray.get(start, timeout=POLL_S)
                if found != before:
                    break
                start, state = None, "it is still the one that was to be killed"
            except RayError as error:
                if isinstance(error, GetTimeoutError):
                    state = "it is starting"
                elif isinstance(getattr(error, "cause", None), EngineNotStarted):
                    raise EngineLost(f"engine {engine} cannot start: {reason(error)}") from None
                else:  # the first may be that of its death before
                    start, state = None, reason(error)
                    deaths += not isinstance(error, ActorUnavailableError)  # Ray is starting its process again
                    if deaths > DEATHS_IN_A_ROW:
                        raise EngineLost(f"engine {engine} dies whenever it is started: {state}") from None
                    if isinstance(error, RayTaskError):
                        ray.kill(handle, no_restart=False)
            if between_steps:
                stop_if_asked(self.args)
            if time.monotonic() > deadline:
                raise EngineLost(
                    f"engine {engine} has not started again within {self.args.orz.start_timeout_s:g} s"
                    f" (--orz.start_timeout_s): {state}"
                )
            if start is None:
                time.sleep(POLL_S)
        self.sync_engine(engine)
        self.incarnations[engine] = found
