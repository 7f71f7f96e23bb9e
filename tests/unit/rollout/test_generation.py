"""Seeds of requests, and which errors mean that an engine has gone."""

from ray.exceptions import RayActorError, RayTaskError

from openrlhf_orz.rollout.generation import engine_died, request_seed


def test_seeds_differ_by_run_kind_and_number_and_stay():
    seeds = {request_seed(s, kind, n) for s in (1, 2) for kind in ("train", "eval") for n in range(100)}
    assert len(seeds) == 400 and all(0 <= seed < 2**48 for seed in seeds)
    assert request_seed(42, "train", 7) == request_seed(42, "train", 7)


def test_the_death_of_an_engine_is_told_from_a_wrong_request():
    from vllm.v1.engine.exceptions import EngineDeadError

    assert engine_died(RayActorError())
    assert engine_died(RayTaskError("f", "trace", EngineDeadError()))
    assert not engine_died(RayTaskError("f", "trace", ValueError("too long")))
    assert not engine_died(ValueError())
