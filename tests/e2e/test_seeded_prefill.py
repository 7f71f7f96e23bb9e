"""Seeded requests on CPU whose prompts come at once and are more tokens than vLLM takes in a step."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
BASE = Path(__file__).parents[2] / "examples" / "tiny_base"

SCRIPT = f"""
import os
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_HOST_IP="127.0.0.1")
from openrlhf_orz.evaluate.generate import EngineSettings, Request, generate_responses, make_engine
if __name__ == "__main__":
    settings = EngineSettings({str(BASE)!r}, 1.0, 1.0, 2, (), 256, "cpu", "float32", kvcache_mib=64)
    requests = [Request(("bench", str(i), 0), [5 + i] * 40, i) for i in range(60)]
    engine, rows = make_engine(settings), []
    # a multiple of 40 would end a step with a whole prompt
    assert engine.vllm_config.scheduler_config.max_num_batched_tokens % 40, "the test tests nothing"
    assert engine.vllm_config.scheduler_config.max_num_batched_tokens < 60 * 40, "the test tests nothing"
    generate_responses(engine, settings, requests, rows.append)
    print("finished", len(rows))
"""


def test_prompts_are_not_cut_into_parts(tmp_path):
    script = tmp_path / "generate.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("finished 60\n"), done.stderr[-2000:]


@pytest.mark.parametrize("flags, cut", [((), None), (("--train.full_determinism_enable",), False)])
def test_training_does_not_cut_them_either(flags, cut):
    """With seeds of its own for each request, that is: vLLM's default is the faster one elsewhere."""
    from openrlhf_orz.rollout.engine import engine_args
    from openrlhf_orz.settings.command_line import parse

    given = ["--actor.model_name_or_path", str(BASE), "--data.prompt_dataset", "rows.jsonl", "--orz.device", "cpu"]
    args, _ = parse([*given, *flags])
    assert args.orz.verifier_grades
    assert engine_args(args).get("enable_chunked_prefill") is cut
