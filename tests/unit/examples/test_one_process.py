"""The recipes' warm-up, one process of OpenRLHF's SFT trainer, listens nowhere."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MODULE = """
import sys, deepspeed, psutil, torch.distributed as dist
deepspeed.init_distributed(dist_backend="gloo")
listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
print("ranks", dist.get_world_size(), "arguments", sys.argv[1:], "beyond loopback",
      [address for address in listening if address.ip not in ("127.0.0.1", "::1")])
"""


def test_one_process_listens_nowhere_beyond_loopback(tmp_path):
    (tmp_path / "module_of_the_test.py").write_text(MODULE)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "DS_ACCELERATOR": "cpu", "ORZ_VENV": sys.prefix}
    script = f'source {ROOT}/examples/lib/recipe.sh; "${{one_process[@]}}" module_of_the_test --a 1'
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert "ranks 1 arguments ['--a', '1'] beyond loopback []" in done.stdout, done.stdout + done.stderr
