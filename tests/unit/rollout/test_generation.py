"""Responses come in the order of their prompts and with their seeds, whichever engine is quick, slow or dead."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_ray import FakeEngine, FakeRay, Ref
from openrlhf.trainer.ppo_utils import samples_generator
from openrlhf.trainer.ppo_utils.experience import Experience
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from vllm import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from openrlhf_orz.data.prompts import PromptLoader
from openrlhf_orz.rollout import generation, recovery
from openrlhf_orz.rollout.engine import EngineLost, EngineNotStarted, as_arrays
from openrlhf_orz.rollout.generation import OrzSamplesGenerator, request_seed
from openrlhf_orz.rollout.recovery import engine_died
from openrlhf_orz.runtime.stopping import StopRequested

BATCH = 6
TINY_BASE = Path(__file__).parents[3] / "examples" / "tiny_base"


def answered(engine, prompt, params):
    response = {"observation_tokens": [1, 2, 3], "action_ranges": [(1, 3)], "rollout_log_probs": None, "reward": 1.0,
                "scores": 1.0, "prompt": prompt, "label": "L" + prompt, "images": None}  # fmt: skip
    return lambda: [response]


def raises(error):
    def call():
        raise error

    return call


def items(prefix, count):
    return [f"{prefix}{i}" for i in range(count)]


def collate(prompts):
    return None, prompts, ["L" + p for p in prompts], [None] * len(prompts)


@pytest.fixture
def make(monkeypatch, tmp_path):
    def build(answer=answered, engines=2, sync=True, ready_last_first=True, **flags):
        fake = FakeRay(ready_last_first)
        for module in (generation, recovery):
            monkeypatch.setattr(module, "ray", fake)
            monkeypatch.setattr(module, "time", fake)
        monkeypatch.setattr(samples_generator, "ray", fake)
        args = SimpleNamespace(
            train=SimpleNamespace(full_determinism_enable=flags.get("determinism", True), seed=42),
            rollout=SimpleNamespace(batch_size=BATCH, n_samples_per_prompt=1),
            actor=SimpleNamespace(model_name_or_path=str(TINY_BASE)),
            data=SimpleNamespace(disable_fast_tokenizer=False),
            vllm=SimpleNamespace(enable_sleep=flags.get("sleep", False)),
            algo=SimpleNamespace(
                dynamic_filtering_enable=flags.get("filtering", False), dynamic_filtering_range=(0.0, 0.9),
                advantage=SimpleNamespace(is_correction_level="off"),
            ),
            orz=SimpleNamespace(
                run_dir=str(tmp_path), generation_timeout_s=flags.get("timeout", 0),
                start_timeout_s=flags.get("start", 0), sync_timeout_s=60, on_logprob_gap=flags.get("gap", "warn"),
                logprob_gap_every=flags.get("every", 16),
            ),
        )  # fmt: skip
        prompts = PromptLoader(items("p", 30), collate, seed=0)
        evals = [collate([p]) for p in items("e", 8)]
        engines = [FakeEngine(i, answer) for i in range(engines)]
        generator = OrzSamplesGenerator(SimpleNamespace(args=args), prompts, evals, "tokenizer", engines)
        generator.synced = []
        if sync:
            generator.engines.set_sync(generator.synced.append)
        generator.fake = fake
        return generator

    return build


@pytest.mark.parametrize("flags, asked", [
    ({}, [0, 0, None]), ({"every": 0}, [None, None, None]), ({"every": 0, "gap": "mask"}, [0, 0, 0]),
])  # fmt: skip
def test_vllms_log_probs_are_wanted_of_all_first_responses(make, flags, asked):
    generator = make(determinism=False, **flags)

    def params(kind, **given):
        generator.sending = iter([generation.Sent("p", "l", None, kind, 0, {})])
        return generator._prompt_sampling_params(SamplingParams(**given)).logprobs

    for rollout, expected in enumerate(asked, 1):
        generator.rollouts = rollout
        assert params("train") == expected and params("eval") is None and params("train", logprobs=3) == 3


def names(samples):
    return [sample.prompts[0] for sample in samples]


def order(count, first=0):
    loader = PromptLoader(items("p", 30), collate, seed=0)
    return [f"p{i}" for i in loader.order(0)][first : first + count]


def asked(generator):
    """(prompt, seed) of all requests, in no order."""
    return sorted(pair for engine in generator.vllm_engines for pair in engine.asked)


def test_no_tokenizer_travels_with_a_prompt(make):
    """A process that gets it loads it by its name, once; here it is still the one that was given."""
    generator = make()
    message = pickle.dumps(generator.tokenizer)
    assert len(message) < 300 and generator.tokenizer.upper() == "TOKENIZER"
    loaded = pickle.loads(message)
    assert loaded is pickle.loads(message) and loaded.pad_token is not None and loaded.padding_side == "left"
    assert loaded("1+1=", add_special_tokens=False)["input_ids"]
    generator.generate_samples()
    sent = generator.vllm_engines[0].sent[0]
    assert sent["hf_tokenizer"] is generator.tokenizer


def test_responses_are_converted_as_they_come(make):
    """While the first prompt's engine still generates, the responses of the others are experiences already."""
    generator = make(engines=1, timeout=0)
    slow = {}

    def answer(engine, prompt, params):
        first = not slow
        ref_result = answered(engine, prompt, params)
        slow.setdefault(prompt, ref_result)
        return None if first else ref_result

    generator.vllm_engines[0].answer = answer
    real = generator.fake.wait

    def wait(refs, **kwargs):
        if len(refs) == 1:
            assert [len(each) for each in generator.ready.values()] == [1] * (BATCH - 1)
            assert {type(response) for each in generator.ready.values() for response in each} == {Experience}
            refs[0].result = next(iter(slow.values()))
        return real(refs, **kwargs)

    generator.fake.wait = wait
    assert names(generator.generate_samples()[0]) == order(BATCH)


def test_responses_are_handed_on_as_they_come_with_their_prompts_number(make):
    generator, given = make(), []
    generator.on_responses = lambda first, number, samples: given.append((first, number, names(samples)))
    for first in (0, BATCH):
        rollout = names(generator.generate_samples()[0])
        assert sorted(given) == [(first, first + i, [name]) for i, name in enumerate(rollout)]
        given.clear()


@pytest.mark.parametrize("known", [False, True])
def test_arrays_become_what_lists_would(make, known):
    generator = make()
    (response,) = answered(None, "p0", None)()
    tokens, log_probs = [5, 7, 150_000], [0.0, -0.1, -2.5]
    lists = response | {"observation_tokens": tokens, "rollout_log_probs": log_probs if known else None}
    found = generator._process_response_into_experience(as_arrays(lists), max_len=9)
    expected = samples_generator.SamplesGenerator._process_response_into_experience(generator, lists, max_len=9)
    for name, value in vars(expected).items():
        theirs = getattr(found, name)
        if torch.is_tensor(value):
            assert theirs.dtype == (torch.int8 if name.endswith("mask") else value.dtype), name
            assert torch.equal(theirs, value), name
    assert as_arrays(lists)["observation_tokens"].dtype == np.int32
    assert (found.rollout_log_probs is not None) == known
    assert found.attention_mask.untyped_storage().nbytes() == 1, "ones for all tokens take no memory"


def seeds(prompts, kind="train", first=0):
    return sorted((prompt, request_seed(42, kind, first + i)) for i, prompt in enumerate(prompts))


def test_seeds_differ_by_run_kind_and_number_and_stay():
    found = {request_seed(s, kind, n) for s in (1, 2) for kind in ("train", "eval") for n in range(100)}
    assert len(found) == 400 and all(0 <= seed < 2**48 for seed in found)
    assert request_seed(42, "train", 7) == 105843804644462, "a run that goes on must draw the same numbers"


def test_the_death_of_an_engine_is_told_from_a_wrong_request():
    assert engine_died(RayActorError())
    assert engine_died(RayTaskError("f", "trace", EngineDeadError()))
    assert engine_died(RayTaskError("f", "trace", EngineNotStarted()))
    assert not engine_died(RayTaskError("f", "trace", ValueError("too long")))
    assert not engine_died(ValueError())


@pytest.mark.parametrize("ready_last_first", [False, True])
def test_responses_come_in_the_order_of_their_prompts(make, ready_last_first):
    generator = make(ready_last_first=ready_last_first)
    samples, _, consumed, exhausted = generator.generate_samples()
    assert names(samples) == order(BATCH) and consumed == BATCH and not exhausted
    assert all(len(engine.asked) == BATCH // 2 for engine in generator.vllm_engines)
    assert names(generator.generate_samples()[0]) == order(BATCH, first=BATCH)
    assert names(generator.generate_eval_samples()) == items("e", 8)


def test_seeds_are_those_of_the_prompts_numbers(make):
    generator = make()
    generator.generate_samples()
    for _ in range(2):  # each evaluation has the same seeds, and takes none from training
        generator.generate_eval_samples()
    generator.generate_samples()
    expected = seeds(order(2 * BATCH)) + 2 * seeds(items("e", 8), "eval")
    assert asked(generator) == sorted(expected)


def test_seeds_go_on_where_a_resumed_run_goes_on(make):
    generator = make()
    generator.prompts_dataloader.load_state_dict({"episode": 0, "position": 12})
    generator.generate_samples()
    assert asked(generator) == seeds(order(BATCH, first=12), first=12)


def test_without_determinism_the_engines_draw_their_seeds(make):
    generator = make(determinism=False)
    generator.generate_samples()
    assert {seed for _, seed in asked(generator)} == {None}


def dies_at_first(error):
    """Engine 0 fails all requests until it has been started again."""
    return lambda engine, prompt, params: (
        raises(error) if engine.number == 0 and engine.starts == 1 else answered(engine, prompt, params)
    )


@pytest.mark.parametrize("how", ["actor", "vllm"])
def test_prompts_of_a_dead_engine_are_done_again_with_their_seeds(make, how):
    error = RayActorError() if how == "actor" else RayTaskError("f", "trace", EngineDeadError())

    def answer(engine, prompt, params):
        if engine.number == 0 and engine.starts == 1:
            return engine.die if how == "actor" else raises(error)
        return answered(engine, prompt, params)

    generator = make(answer)
    samples, *_ = generator.generate_samples()
    assert names(samples) == order(BATCH)
    assert set(asked(generator)) == set(seeds(order(BATCH))) and len(asked(generator)) == BATCH + BATCH // 2
    assert generator.faults == {"engines_restarted": 1, "prompts_redone": BATCH // 2}
    assert generator.synced == [0], "it is given the current weights before it gets a prompt"
    assert generator.fake.killed == ([] if how == "actor" else [0]), "Ray starts a dead actor again by itself"
    assert names(generator.generate_samples()[0]) == order(BATCH, first=BATCH) and generator.synced == [0]


def test_the_sixth_death_in_a_row_ends_the_run(make):
    generator = make(lambda engine, prompt, params: engine.die, engines=1)
    generator.answered = True
    with pytest.raises(EngineLost, match="engine 0 was lost 6 times in a row"):
        generator.generate_samples()
    assert generator.synced == [0] * 5 and generator.faults["engines_restarted"] == 6


def test_engines_that_have_never_answered_are_not_tried_for_long(make, tmp_path):
    generator = make(lambda engine, prompt, params: engine.die, engines=1)
    with pytest.raises(EngineLost, match="engine 0 was lost 2 times in a row"):
        generator.generate_samples()
    assert (tmp_path / "warnings.log").read_text().count("engine 0 is lost and started again, 6 prompts") == 2


def test_an_answer_in_between_makes_deaths_start_anew(make):
    """One that dies before each of its answers is never dead six times in a row."""
    count = {"n": 0}

    def every_second(engine, prompt, params):
        def call():
            count["n"] += 1
            return engine.die() if count["n"] % 2 else answered(engine, prompt, params)()

        return call

    generator = make(every_second, engines=1)
    for _ in range(2):
        assert len(generator.generate_samples()[0]) == BATCH
    assert generator.faults["engines_restarted"] == 12 and generator.answered


def test_a_wrong_request_is_no_death(make):
    generator = make(lambda *_: raises(RayTaskError("f", "too long", ValueError())))
    with pytest.raises(RayTaskError, match="too long"):
        generator.generate_samples()
    assert generator.faults["engines_restarted"] == 0


def test_an_engine_that_answers_nothing_is_started_again(make):
    def answer(engine, prompt, params):
        return None if engine.number == 0 and engine.starts == 1 else answered(engine, prompt, params)

    generator = make(answer, timeout=20)
    assert names(generator.generate_samples()[0]) == order(BATCH)
    assert generator.fake.killed == [0] and generator.faults == {"engines_restarted": 1, "prompts_redone": 3}
    assert 20 < generator.fake.clock < 25
    assert set(asked(generator)) == set(seeds(order(BATCH)))


def test_without_a_limit_a_slow_engine_is_waited_for(make):
    generator = make(lambda *_: None, timeout=0)
    real = generator.fake.wait

    def wait(refs, **kwargs):
        for ref in refs if generator.fake.clock > 5000 else ():
            ref.result = answered(None, "p0", None)
        return real(refs, **kwargs)

    generator.fake.wait = wait
    assert len(generator.generate_samples()[0]) == BATCH and generator.fake.killed == []


def test_an_engine_that_died_without_a_request_is_given_the_weights(make):
    generator = make()
    generator.generate_samples()
    generator.vllm_engines[1].restart_process()  # by Ray
    generator.generate_samples()
    assert generator.synced == [1] and generator.faults == {"engines_restarted": 1, "prompts_redone": 0}
    assert generator.engines.revive_dead() == 0
    generator.vllm_engines[0].restart_process()
    assert generator.engines.revive_dead() == 1 and generator.synced == [1, 0]


@pytest.mark.parametrize("kind", ["samples", "eval_samples"])
@pytest.mark.parametrize("how", ["dies at", "dead before", "hangs at"])
@pytest.mark.parametrize("phase", ["wake_up", "sleep"])
def test_a_death_while_engines_wake_or_fall_asleep(make, phase, how, kind):
    """It is started again only while the trainers sleep: not when the engines are put to sleep, but when they wake."""
    generator = make(sleep=True, timeout=20)
    generator.generate_samples()
    victim = generator.vllm_engines[1]
    assert all(engine.asleep for engine in generator.vllm_engines)
    if how == "dies at":
        victim.dies_at.add(phase)
    elif how == "dead before":
        victim.dead = True
    else:
        real = getattr(victim, phase)
        setattr(victim, phase, SimpleNamespace(remote=lambda: Ref(victim._actor_id, None)))
        generator.fake.kill = lambda engine, no_restart: (
            generator.fake.killed.append(1), victim.restart_process(), setattr(victim, phase, real))  # fmt: skip
    getattr(generator, f"generate_{kind}")()
    if phase == "sleep" and how != "dead before":
        assert not victim.started and generator.synced == [], "the trainers have the GPU now"
        assert generator.vllm_engines[0].asleep
        generator.generate_samples()
    assert generator.synced == [1] and generator.faults["engines_restarted"] == 1 and victim.starts == 2
    assert all(engine.asleep for engine in generator.vllm_engines)
    assert generator.fake.killed == ([1] if how == "hangs at" else [])
    assert len(generator.generate_samples()[0]) == BATCH and generator.synced == [1]


def test_memory_that_grows_while_engines_sleep_is_said(make, monkeypatch):
    generator, warnings = make(sleep=True), []
    monkeypatch.setattr(recovery.logger, "warning", warnings.append)
    first, second = generator.vllm_engines
    second.gpu_mib = 500.0
    for mib, said in ((1000.0, 0), (1256.0, 0), (1257.0, 1), (1300.0, 1), (1600.0, 2), (900.0, 2)):
        first.gpu_mib = mib
        generator.generate_samples()
        assert generator.engines.asleep == {"gpu_memory_mib_asleep": max(mib, 500.0)} and len(warnings) == said
    assert "engine 0 holds 1257 MiB" in warnings[0] and "257 more" in warnings[0]
    first.dies_at.add("gpu_memory_mib")
    generator.generate_samples()
    assert generator.engines.asleep == {"gpu_memory_mib_asleep": 500.0}
    second.gpu_mib = None  # as on a CPU
    first.gpu_mib = None
    generator.generate_samples()
    assert generator.engines.asleep == {}


def test_engines_wake_once_for_an_evaluation(make):
    generator = make(sleep=True)
    generator.generate_eval_samples()  # two batches of prompts
    for engine in generator.vllm_engines:
        assert engine.calls.count("wake_up") == engine.calls.count("sleep") == 1


def test_a_start_that_fails_ends_the_run_with_the_cause(make):
    generator = make()
    victim = generator.vllm_engines[0]
    victim.dies_at.add("generate_responses")
    victim.start_error = "ValueError: no room for the KV cache"
    with pytest.raises(EngineLost, match="engine 0 cannot start: ValueError: no room for the KV cache"):
        generator.generate_samples()
    assert generator.fake.clock < 10


def test_an_engine_that_dies_whenever_it_is_started_ends_the_run(make):
    generator = make()
    victim = generator.vllm_engines[0]
    victim.dead = True
    victim.restart_process = lambda: None
    with pytest.raises(EngineLost, match="engine 0 dies whenever it is started"):
        generator.generate_samples()
    assert generator.fake.clock < 10


def test_a_process_that_ray_is_starting_again_has_not_died_anew(make):
    """A busy machine takes long for it, and Ray answers each call meanwhile that the actor is not available."""
    generator = make()
    victim = generator.vllm_engines[0]
    real, calls = victim.start, []

    def start():
        calls.append(1)
        if len(calls) <= 3 * recovery.DEATHS_IN_A_ROW:
            return Ref(victim._actor_id, raises(ActorUnavailableError("restarting", None)))
        return real.remote()

    victim.restart_process()
    victim.start = SimpleNamespace(remote=start)
    assert names(generator.generate_samples()[0]) == order(BATCH) and generator.synced == [0]


def test_in_the_weight_sync_nobody_stops(make, tmp_path):
    """A checkpoint would say that the step before was the last, and hold the weights of this one."""
    generator = make(start=20)
    generator.generate_samples()
    (tmp_path / ".stop").touch()
    generator.vllm_engines[0].restart_process()
    generator.vllm_engines[0].start.remote = lambda: Ref("actor-0", None)
    with pytest.raises(StopRequested):
        generator.engines.revive_dead()
    with pytest.raises(EngineLost, match="20 s"):
        generator.engines.revive_dead(between_steps=False)


def test_a_death_while_prompts_are_sent(make):
    """All prompts are sent again, with the same numbers; those after them have the next."""
    generator = make()
    generator.generate_samples()
    asked_before = len(asked(generator))
    real = generator.engines.revive_dead

    def dies_after_the_look():
        revived = real()
        if not generator.synced:
            generator.vllm_engines[1].dead = True
        return revived

    generator.engines.revive_dead = dies_after_the_look
    assert names(generator.generate_samples()[0]) == order(BATCH, first=BATCH)
    assert generator.synced == [1] and len(asked(generator)) == asked_before + BATCH
    assert set(asked(generator)) == set(seeds(order(2 * BATCH)))
    generator.generate_samples()
    assert set(asked(generator)) == set(seeds(order(3 * BATCH)))


def test_in_asynchronous_training_a_death_ends_the_run(make):
    generator = make(dies_at_first(RayActorError()), sync=False)
    with pytest.raises(EngineLost, match="in asynchronous training"):
        generator.generate_samples()


def test_an_engine_that_does_not_start_again_ends_the_run(make):
    generator = make(start=100)
    generator.vllm_engines[0].restart_process()
    generator.vllm_engines[0].start.remote = lambda: Ref("actor-0", None)
    with pytest.raises(EngineLost, match="engine 0 has not started again within 100 s .--orz.start_timeout_s."):
        generator.generate_samples()
    assert 100 < generator.fake.clock < 200 and generator.synced == []


def test_one_that_is_to_be_killed_is_not_taken_for_its_successor(make):
    generator = make(dies_at_first(RayTaskError("f", "trace", EngineDeadError())))
    engine, fake = generator.vllm_engines[0], generator.fake

    def kill_slowly(killed, no_restart):
        fake.killed.append(killed.number)

    fake.kill = kill_slowly
    real = fake.sleep

    def sleep(seconds):
        real(seconds)
        if fake.clock > 5 and engine.starts == 1:
            engine.restart_process()

    fake.sleep = sleep
    assert names(generator.generate_samples()[0]) == order(BATCH)
    assert fake.clock > 5 and generator.engines.incarnations[0] == "0-2" and generator.synced == [0]


def test_only_the_synchronous_trainer_stops_in_a_rollout(make, tmp_path):
    (tmp_path / ".stop").touch()
    with pytest.raises(StopRequested):
        make().generate_samples()
    assert len(make(sync=False).generate_samples()[0]) == BATCH


def test_a_filtered_prompt_is_replaced(make):
    """Half of the answers are all right, so they teach nothing; others take their place, with the next numbers."""

    def answer(engine, prompt, params):
        call = answered(engine, prompt, params)
        reward = 1.0 if int(prompt[1:]) % 2 else 0.5
        return lambda: [{**call()[0], "reward": reward, "scores": reward}]

    generator = make(answer, filtering=True)
    samples, rate, consumed, _ = generator.generate_samples()
    assert len(samples) == BATCH and {int(name[1:]) % 2 for name in names(samples)} == {0}
    assert consumed > BATCH and rate == pytest.approx(100 * BATCH / consumed)
    assert asked(generator) == seeds(order(consumed))
