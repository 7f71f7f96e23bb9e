"""How vLLM is asked, by stand-ins for it: sampling, batches, ends of responses, engines' settings, pass rates."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from openrlhf_orz.data.curate.config import PassRate
from openrlhf_orz.data.sources import DataError
from openrlhf_orz.evaluate import generate, pass_rates
from openrlhf_orz.evaluate.generate import (
    EngineSettings,
    Request,
    engine_devices,
    generate_responses,
    make_engine,
    sampling_params,
)
from openrlhf_orz.evaluate.pass_rates import pass_rate_sampler
from openrlhf_orz.settings.flags import STOP_STRINGS

SETTINGS = EngineSettings("m", 0.7, 0.9, 50, ("</answer>", "User:"), batch_size=2, device="cpu", dtype="float32")


def completion(text, finish="stop", stop=None):
    return SimpleNamespace(text=text, token_ids=(1, 2), finish_reason=finish, stop_reason=stop)


class Engine:
    """Ends the oldest request in each step; requests by name, as ``add_request`` got them."""

    model_config = SimpleNamespace(max_model_len=60)

    def __init__(self, ends):
        self.ends, self.waiting, self.asked, self.most = list(ends), [], {}, 0

    def add_request(self, name, prompt, params):
        self.waiting.append(name)
        self.asked[name] = prompt, params
        self.most = max(self.most, len(self.waiting))

    def step(self):
        name = self.waiting.pop(0)
        unfinished = [SimpleNamespace(request_id=other, finished=False) for other in self.waiting]
        return [*unfinished, SimpleNamespace(request_id=name, finished=True, outputs=[self.ends.pop(0)])]


@pytest.fixture
def vllm(monkeypatch):
    """The module, with classes that keep their arguments."""
    module, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    module.SamplingParams = module.EngineArgs = lambda **given: SimpleNamespace(**given)
    module.TokensPrompt = dict
    module.LLMEngine = SimpleNamespace(from_engine_args=lambda args: args)
    sampling.RequestOutputKind = SimpleNamespace(FINAL_ONLY="final")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    return module


def asked_for_tiles(monkeypatch):
    """A list that grows when the process asks for AMX's tiles."""
    torch, asked = pytest.importorskip("torch"), []
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: asked.append(True))
    return asked


def test_sampling_is_as_in_training(vllm):
    params = vars(sampling_params(0.7, 0.9, 50, seed=3))
    assert params == {
        "temperature": 0.7, "top_p": 0.9, "max_tokens": 50, "stop": list(STOP_STRINGS), "seed": 3,
        "include_stop_str_in_output": True, "skip_special_tokens": False,
    }  # fmt: skip
    assert sampling_params(1.0, 1.0, 5, ("x",)).stop == ["x"]


def test_responses_say_how_they_ended(vllm):
    requests = [Request(("b", str(i), i), [7] * length, 100 + i) for i, length in enumerate((5, 30, 59, 60))]
    engine = Engine([completion("a", stop="</answer>"), completion("b"), completion("c", "length")])
    rows = []
    generate_responses(engine, SETTINGS, requests, rows.append)
    # the last one leaves no room for a response
    too_long = {"key": ("b", "3", 3), "prompt_tokens": 60, "limit": 60}
    rows.remove(too_long)
    assert [(row["key"], row["response"], row["stop_reason"]) for row in rows] == [
        (("b", "0", 0), "a", "</answer>"), (("b", "1", 1), "b", "eos"), (("b", "2", 2), "c", "length"),
    ]  # fmt: skip
    assert rows[0]["token_ids"] == [1, 2] and rows[0]["seconds"] >= 0
    assert engine.most == SETTINGS.batch_size
    prompts, params = zip(*engine.asked.values())
    assert [len(prompt["prompt_token_ids"]) for prompt in prompts] == [5, 30, 59]
    assert [each.seed for each in params] == [100, 101, 102]
    # 50 tokens, or what the model's 60 leave beside the prompt
    assert [each.max_tokens for each in params] == [50, 30, 1]
    assert all((each.temperature, each.top_p, each.stop) == (0.7, 0.9, ["</answer>", "User:"]) for each in params)


def test_a_name_with_the_separator_is_kept(vllm):
    rows = []
    generate_responses(Engine([completion("a")]), SETTINGS, [Request(("b|c", "1|2", 0), [1], 0)], rows.append)
    assert rows[0]["key"] == ("b|c", "1|2", 0)


def test_engine_on_cpu_and_gpu(vllm, monkeypatch):
    tiles = asked_for_tiles(monkeypatch)
    cpu = make_engine(SETTINGS)
    assert tiles == [True]
    assert cpu.kv_cache_memory_bytes == 512 * 2**20 and cpu.enforce_eager and cpu.enable_chunked_prefill is False
    assert (cpu.model, cpu.dtype, cpu.max_num_seqs, cpu.max_model_len) == ("m", "float32", 2, None)
    assert not hasattr(cpu, "gpu_memory_utilization") and cpu.trust_remote_code is False
    more = {"engine_args": {"enforce_eager": False, "kv_cache_memory_bytes": 1}}
    assert make_engine(EngineSettings(**vars(SETTINGS) | more)).enforce_eager is False
    gpu = make_engine(EngineSettings(**vars(SETTINGS) | {"device": "cuda", "tensor_parallel": 2, "gpu_memory": 0.5}))
    assert gpu.gpu_memory_utilization == 0.5 and gpu.tensor_parallel_size == 2
    assert not hasattr(gpu, "enable_chunked_prefill") and not hasattr(gpu, "kv_cache_memory_bytes")


def test_each_engine_has_gpus_of_its_own():
    assert [engine_devices(i, 2, None) for i in range(2)] == [["0", "1"], ["2", "3"]]
    assert [engine_devices(i, 2, "4,5,6,7") for i in range(2)] == [["4", "5"], ["6", "7"]]


def boxed(answer):
    return f"</think> <answer>\\boxed{{{answer}}}</answer>"


def test_pass_rates_count_right_answers_that_ended(vllm, monkeypatch):
    asked = {}
    names = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE")
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in names})

    class LLM:
        def __init__(self, model, **given):
            asked.update(given, model=model, env=[os.environ.get(name) for name in names])

        def generate(self, prompts, params, use_tqdm):
            asked["params"] = params
            assert use_tqdm([1], desc="Adding requests") == [1]
            bar = use_tqdm(total=len(prompts), desc="Processed prompts")  # as vLLM does
            for _ in prompts:
                assert bar.format_dict["elapsed"] > 0
                bar.postfix = "so many tokens/s"
                bar.update(3)
            bar.close()
            answers = {
                "a": [completion(boxed(4)), completion(boxed(5)), completion(boxed(4), "length")],
                "b": [completion(boxed("10")), completion(boxed("10")), completion("none")],
            }
            assert all(prompt.keys() == {"prompt_token_ids"} for prompt in prompts)
            return [SimpleNamespace(outputs=answers[chr(prompt["prompt_token_ids"][0])]) for prompt in prompts]

        def get_tokenizer(self):
            # Llama's and its like put a token in front of a text
            return lambda text, add_special_tokens=True: {"input_ids": [1] * add_special_tokens + [*map(ord, text)]}

    vllm.LLM = LLM
    options = PassRate(model="M", n=3, temperature=0.5, top_p=0.8, max_new_tokens=9)
    told = []
    monkeypatch.setattr(generate, "PROGRESS_S", 0)
    monkeypatch.setattr(generate, "cpu_dtype", lambda: "fp32")
    monkeypatch.setattr(pass_rates, "detect_device", lambda: "cpu")
    tiles = asked_for_tiles(monkeypatch)
    sample = pass_rate_sampler(options, 3, told.append)
    assert tiles == [True]
    assert sample(["a", "b"], ["4", "10"], ["math", "math"]) == [1, 2]
    assert sample(["b"], ["10"], ["math"]) == [2]
    assert [line.split(",")[0] for line in told] == [f"{n} of 3 questions" for n in (1, 2, 3)]
    assert told[0].endswith(" left") and "left" not in told[2]
    assert asked["model"] == "M" and asked["seed"] == 0 and asked["dtype"] == "float32"
    assert asked["env"] == ["0", "nobind", "4"]  # no step is too slow for it, no core idle, no answer computed twice
    params = asked["params"]
    assert (params.n, params.temperature, params.top_p, params.max_tokens) == (3, 0.5, 0.8, 9)
    assert params.stop == list(STOP_STRINGS) and params.include_stop_str_in_output and not params.skip_special_tokens
    assert not hasattr(params, "seed")


def test_on_a_gpu_pass_rates_are_taken_in_the_models_dtype(vllm, monkeypatch):
    asked = {}
    vllm.LLM = lambda model, **given: asked.update(given) or SimpleNamespace(get_tokenizer=lambda: None)
    monkeypatch.setattr(pass_rates, "detect_device", lambda: "cuda")
    pass_rate_sampler(PassRate(model="M"))
    assert asked["dtype"] == "auto"


def test_a_model_that_does_not_load(vllm):
    def fail(*args, **given):
        raise RuntimeError("no such model")

    vllm.LLM = fail
    with pytest.raises(DataError, match="pass_rate.model M: vLLM did not load it: no such model"):
        pass_rate_sampler(PassRate(model="M"))
