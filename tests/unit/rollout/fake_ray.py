"""Ray and its engine actors, as far as the samples generator and the sync check use them, in this process."""

from collections.abc import Callable
from types import SimpleNamespace

import ray.exceptions
from ray.exceptions import RayActorError


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
        engine.start()

    # as the module ``time``
    def monotonic(self):
        return self.clock

    def sleep(self, seconds):
        self.clock += seconds


class FakeEngine:
    """Answers prompts by ``answer(engine, prompt, params)``, which returns a Callable or None as in ``Ref``."""

    def __init__(self, number, answer):
        self._actor_id, self.number, self.answer = f"actor-{number}", number, answer
        self.starts, self.asked, self.dead = 0, [], False
        self.start()
        for name in ("incarnation", "get_num_unfinished_requests", "generate_responses"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def start(self):
        self.starts, self.dead = self.starts + 1, False

    def die(self):
        """Ray starts the actor again by itself."""
        self.start()
        raise RayActorError()

    def _incarnation(self):
        name = f"{self.number}-{self.starts}"
        return Ref(self._actor_id, lambda: name)

    def _get_num_unfinished_requests(self):
        return Ref(self._actor_id, lambda: 0)

    def _generate_responses(self, *, prompt, label, sampling_params, num_samples, **kwargs):
        if self.dead:
            self.die()
        self.asked.append((prompt, sampling_params.seed))
        return Ref(self._actor_id, self.answer(self, prompt, sampling_params))
