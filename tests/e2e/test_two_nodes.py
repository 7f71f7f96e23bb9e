"""A Ray of two nodes on this machine; the second has mounts of its own, so other folders and other shared memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from runs import ENV

pytestmark = pytest.mark.e2e

# the driver, in a process of its own: Ray keeps settings for a process's life
DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
home, private = Path(sys.argv[1]), Path(sys.argv[2])
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, num_gpus=1))
print("address", cluster.address, flush=True)
sys.stdin.readline()  # the second node is asked to join
import ray
from openrlhf_orz.runtime import nodes
from openrlhf_orz.runtime.private import new_scratch, private_folder
from openrlhf_orz.settings.checks import ConfigError

ray.init(address=cluster.address, log_to_driver=False)
end = time.monotonic() + 120
while ray.cluster_resources().get("second", 0) < 1 and time.monotonic() < end:
    time.sleep(0.2)
scratch = new_scratch()

def forget_agents():
    nodes.ask_agents("finish")  # one that is killed alone may remove its folder late, when the next one has it
    for name in ray.util.list_named_actors():
        ray.kill(ray.get_actor(name))
    while ray.util.list_named_actors():
        time.sleep(0.1)

with private_folder(scratch):
    try:
        agents = nodes.start_agents(ray, scratch, nodes.mark_shared([str(private)]), needed=2)
    except ConfigError as error:
        print("refused:", error)
    forget_agents()
    agents = nodes.start_agents(ray, scratch, nodes.mark_shared([str(private)]), needed=1)
    forget_agents()
    agents = nodes.start_agents(ray, scratch, nodes.mark_shared([str(home)]), needed=2)

    @ray.remote(num_cpus=0, num_gpus=1, resources={"second": 1})
    class OrzActor:
        def look(self):
            print("a line of the second node", flush=True)
            return os.path.isdir(scratch), [path for path in sys.argv[1:] if os.path.isdir(path)]

    actor = OrzActor.remote()
    there = ray.get(actor.look.remote())[0]
    nodes.ask_agents("write_stacks", home / "logs" / "hang-training-1.txt", named=True)
    nodes.ask_agents("keep_logs", str(home / "logs"), ray.get_runtime_context().get_job_id())
    nodes.ask_agents("finish")
    print("folder there:", there, "after the end:", ray.get(actor.look.remote())[0])
ray.shutdown()
cluster.shutdown()
"""
OWN_MOUNTS = """
mount -t tmpfs tmpfs "$1" && mount -t tmpfs tmpfs /dev/shm && mkdir -m 700 "$2" && touch "$2/.lock"
shift 2
exec "$@"
"""


def test_what_another_node_sees_writes_and_leaves(tmp_path):
    from openrlhf_orz.runtime.private import host_key

    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mounts of one's own need root")
    home, private = tmp_path / "home", tmp_path / "private"
    private.mkdir()
    (home / "logs").mkdir(parents=True)
    ray_tmp = Path(tempfile.mkdtemp(prefix="orz-two-"))  # else runs of this user would find this Ray, and join it
    env = {**ENV, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TMPDIR": str(ray_tmp)}
    del env["CUDA_VISIBLE_DEVICES"]  # empty, Ray would refuse GPUs, logical ones too
    options = dict(env=env, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(home), str(private)],
        stdin=subprocess.PIPE,
        **options,
    )
    address = next(line.split()[1] for line in driver.stdout if line.startswith("address "))
    left = f"/dev/shm/orz-{host_key()}-{os.urandom(4).hex()}"  # of a run that was killed there
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", address, "--num-cpus", "1", "--num-gpus",
           "1", "--resources", json.dumps({"second": 1}), "--object-store-memory", "80000000", "--block"]  # fmt: skip
    second = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", OWN_MOUNTS, "sh", str(private), left, *ray],
        **options,
    )
    try:
        seen = subprocess.run(["ls", f"/proc/{second.pid}/root/dev/shm"], capture_output=True, text=True).stdout
        output = driver.communicate("go\n", timeout=300)[0]
        after = subprocess.run(["ls", f"/proc/{second.pid}/root/dev/shm"], capture_output=True, text=True).stdout
    finally:
        for process in (driver, second):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        shutil.rmtree(ray_tmp, ignore_errors=True)
    assert driver.returncode == 0, output
    assert "refused: --ckpt.output_dir, --ckpt.path: the machine" in output and f"does not see {private}" in output
    assert "warning: the machine" in output, "enough GPUs are on the machine that sees it"
    assert "folder there: True after the end: False" in output
    assert os.path.basename(left) not in after, (seen, after)
    logs = "".join(path.read_text() for path in (home / "logs").glob("worker-*.out"))
    assert "a line of the second node" in logs
    stacks = [path.read_text() for path in (home / "logs").glob("hang-training-1-*.txt")]
    assert len(stacks) == 2 and any("OrzActor" in text for text in stacks)
