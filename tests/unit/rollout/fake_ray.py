"""Ray and its engine actors, as far as the samples generator and the sync check use them, in this process."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import ray.exceptions
from ray.exceptions import RayActorError, RayTaskError

from openrlhf_orz.rollout.engine import EngineNotStarted


class Ref:
    """A call's result: a value, an error to raise, or nothing ever (``result`` is None)."""

    def __init__(self, actor_id, result: Callable | None):
        self.actor_id, self.result = actor_id, result

    def task_id(self):
        return SimpleNamespace(actor_id=lambda: self.actor_id)


class FakeRay:
    """``ready_last_first``: later calls are done before earlier ones. ``clock`` goes on while one waits."""

    exceptions = ray.exceptions

    def __init__(self, ready_last_first=True):
        self.ready_last_first, self.clock, self.killed = ready_last_first, 0.0, []

    def get(self, refs, timeout=None):
        if isinstance(refs, list):
            return [self.get(ref) for ref in refs]
        if refs.result is None:
            self.clock += timeout
            raise ray.exceptions.GetTimeoutError
        return refs.result()

    def wait(self, refs, num_returns=1, timeout=None):
        ready = [ref for ref in refs if ref.result is not None]
        chosen = ready[-1:] if self.ready_last_first else ready[:1]
        if not chosen:
            self.clock += timeout
        return chosen, [ref for ref in refs if ref not in chosen]

    def kill(self, engine, no_restart):
        assert not no_restart
        self.killed.append(engine.number)
        engine.restart_process()

    # as the module ``time``
    def monotonic(self):
        return self.clock

    def sleep(self, seconds):
        self.clock += seconds


class FakeEngine:
    """Answers prompts by ``answer(engine, prompt, params)``, which returns a Callable or None as in ``Ref``.

    ``calls`` are the methods called; with those of ``dies_at`` the process dies. ``start_error``: what a start raises.
    """

    def __init__(self, number, answer):
        self._actor_id, self.number, self.answer = f"actor-{number}", number, answer
        self.sent = []
        self.starts, self.asked, self.calls, self.dies_at, self.start_error = 0, [], [], set(), None
        self.dead, self.started, self.asleep = False, False, False
        self._start()
        self.gpu_mib = None
        for name in (
            "start", "incarnation", "wake_up", "sleep", "get_num_unfinished_requests", "generate_responses",
            "gpu_memory_mib",
        ):  # fmt: skip
            setattr(self, name, SimpleNamespace(remote=partial(self._call, name)))

    def restart_process(self):
        """What Ray does with a dead actor: a new process, without vLLM."""
        self.dead, self.started, self.asleep = False, False, False

    def die(self):
        self.restart_process()
        raise RayActorError()

    def _call(self, name, **kwargs):
        self.calls.append(name)
        if self.dead or name in self.dies_at:
            self.dies_at.discard(name)
            return Ref(self._actor_id, self.die)
        if not self.started and name != "start":
            return Ref(self._actor_id, self._raise(EngineNotStarted("it waits to be started again")))
        if name == "generate_responses":
            return self._generate_responses(**kwargs)
        result = getattr(self, f"_{name}")
        return Ref(self._actor_id, result)

    @staticmethod
    def _raise(cause):
        def call():
            raise RayTaskError("f", "trace", cause)

        return call

    def _start(self):
        if self.start_error is not None:
            self._raise(EngineNotStarted(self.start_error))()
        if not self.started:
            self.starts, self.started = self.starts + 1, True
        return self._incarnation()

    def _incarnation(self):
        return f"{self.number}-{self.starts}"

    def _wake_up(self):
        self.asleep = False

    def _sleep(self):
        self.asleep = True

    def _gpu_memory_mib(self):
        return self.gpu_mib

    def _get_num_unfinished_requests(self):
        return 0

    def _generate_responses(self, *, prompt, label, sampling_params, num_samples, **kwargs):
        assert not self.asleep
        self.asked.append((prompt, sampling_params.seed))
        self.sent.append(kwargs)
        return Ref(self._actor_id, self.answer(self, prompt, sampling_params))
