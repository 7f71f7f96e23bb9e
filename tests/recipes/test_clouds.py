"""The manifests for Kubernetes and SkyPilot: their fields, and that what they start is a run whose flags are right."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from recorded import ROOT, printed

from openrlhf_orz.settings.command_line import parse

TRAIN = "openrlhf_orz.cli.train_ppo_ray"
CRD = os.environ.get("KUBERAY_CRD")  # KubeRay's ray-operator/config/crd/bases/ray.io_rayjobs.yaml
# The manifests' fields, which are right by the schemas of KubeRay 1.5.1, 1.6.2 and 1.7.0 (KUBERAY_CRD; 1.5.0 knows no
# authOptions) and by SkyPilot's sky/utils/schemas.py (00052dfe). A new one has to be looked up there.
RAYJOB = {
    "": "apiVersion kind metadata spec",
    "metadata": "name",
    "spec": "backoffLimit entrypoint rayClusterSpec shutdownAfterJobFinishes submissionMode",
    "rayClusterSpec": "authOptions headGroupSpec rayVersion workerGroupSpecs",
    "authOptions": "mode",
    "headGroupSpec": "rayStartParams template",
    "workerGroupSpecs": "groupName maxReplicas minReplicas rayStartParams replicas template",
    "rayStartParams": "dashboard-host num-gpus",
    "template": "spec",
    "template.spec": "containers terminationGracePeriodSeconds volumes",
    "containers": "env image name resources volumeMounts",
    "env": "name value",
    "resources": "limits requests",
    "limits": "cpu memory nvidia.com/gpu",
    "requests": "cpu memory nvidia.com/gpu",
    "volumeMounts": "mountPath name",
    "volumes": "emptyDir name persistentVolumeClaim",
    "emptyDir": "medium sizeLimit",
    "persistentVolumeClaim": "claimName",
}
SKYPILOT = {
    "": "envs name num_nodes resources run setup volumes workdir",
    "resources": "accelerators cpus image_id infra memory",
}


def manifest(name):
    return yaml.safe_load((ROOT / "examples" / "launch" / name).read_text())


def flags_of(command):
    return command[command.index(TRAIN) + 1 :]


def checked(argv, nodes):
    """A run that goes on with its checkpoints in the shared folder, on all GPUs; its flags are right."""
    args, _ = parse(argv, gpus=(nodes, 8))
    assert args.ckpt.load_enable and args.orz.max_restarts == 3 and args.ckpt.save_steps == 10
    assert args.orz.run_dir.startswith("/shared/") and args.data.prompt_dataset.startswith("/shared/")
    assert (args.actor.num_nodes, args.actor.num_gpus_per_node) == (nodes, 8)


def fields(node, name=""):
    """The fields of each mapping in a manifest, by the name of the mapping."""
    found: dict[str, set[str]] = {}
    if isinstance(node, dict):
        found[name] = set(node)
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        below = name if isinstance(node, list) else f"{name}.{key}" if name == "template" else key
        for place, names in fields(value, below).items():
            found.setdefault(place, set()).update(names)
    return found


def strict(schema):
    """A schema of Kubernetes' in which a field that it does not name is an error."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(part) for key, part in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


def test_no_field_that_was_not_looked_up():
    assert fields(manifest("kuberay.yaml")) == {place: set(names.split()) for place, names in RAYJOB.items()}
    task = fields(manifest("skypilot.yaml"))
    assert {place: task[place] for place in SKYPILOT} == {p: set(names.split()) for p, names in SKYPILOT.items()}


@pytest.mark.skipif(CRD is None, reason="KUBERAY_CRD names KubeRay's schema, 1.4 MB, which is not kept here")
def test_the_rayjob_by_the_schema():
    import jsonschema

    versions = yaml.safe_load(Path(CRD).read_text())["spec"]["versions"]
    (schema,) = (strict(v["schema"]["openAPIV3Schema"]) for v in versions if v["name"] == "v1")
    assert [
        error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest("kuberay.yaml"))
    ] == []


@pytest.fixture
def shared(monkeypatch):
    """/shared, which is not there in a test, can be written."""
    monkeypatch.setattr("openrlhf_orz.settings.checks._cannot_be_made", lambda path: None)
    monkeypatch.chdir(ROOT)


def test_the_rayjob(project, shared):
    job = manifest("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["metadata"]["name"]
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["backoffLimit"] > 0
    pins = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-gpu.txt").read_text()
    assert f"ray[default]=={cluster['rayVersion']}" in pins or f"ray=={cluster['rayVersion']}" in pins
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == group["rayStartParams"]["num-gpus"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    words = shlex.split(spec["entrypoint"])
    assert f"NODES={1 + workers['replicas']}" in words, "the head trains, too"
    script = next(word for word in words if word.endswith(".sh"))
    given = dict(word.split("=", 1) for word in words[1 : words.index("bash")])
    after = words[words.index(script) + 1 :]
    shown = project.run(script.removeprefix("/orz/"), *after, DRY_RUN="1", **given)
    checked(flags_of(printed(shown)[-1]), 4)


def test_the_skypilot_task(project, shared):
    task = manifest("skypilot.yaml")
    assert task["resources"]["accelerators"].endswith(":8") and task["volumes"] == {"/shared": "orz-shared"}
    base = next(line for line in (ROOT / "docker/Dockerfile").read_text().splitlines() if line.startswith("ARG"))
    assert task["resources"]["image_id"] == f"docker:{base.split('=')[1]}", "nvcc is of torch's CUDA"
    assert all(isinstance(value, str) for value in task["envs"].values())
    (volume,) = re.findall(r"#\s+(\{name: .*\})$", (ROOT / "examples/launch/skypilot.yaml").read_text(), re.MULTILINE)
    volume = yaml.safe_load(volume)
    assert (volume["name"], volume["config"]) == ("orz-shared", {"access_mode": "ReadWriteMany"})
    port = int(task["envs"]["PORT"])
    assert not set(range(port, port + 8)) & {6380, 8266}, "SkyPilot's own Ray"
    (project.folder / "run.sh").write_text(task["run"])
    given = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "4", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    outputs = [
        project.run("run.sh", DRY_RUN="1", SKYPILOT_NODE_RANK=rank, **task["envs"], **given) for rank in ("0", "1")
    ]
    head, worker = map(printed, outputs)
    assert "--head" in head[0] and "10.0.0.1" in head[0] and str(port) in head[0]
    assert "--address" in worker[0] and f"10.0.0.1:{port}" in worker[0]
    checked(flags_of(head[-1]), 4)


def test_the_recipe_of_the_page_on_extending(project, shared):
    page = (ROOT / "docs" / "extending.md").read_text()
    (script,) = re.findall(r"```bash\n(source .*?)```", page, re.DOTALL)
    (project.folder / "examples" / "mine.sh").write_text(script)
    argv = flags_of(printed(project.run("examples/mine.sh", "--train.seed", "3", DRY_RUN="1"))[-1])
    args, _ = parse(argv, gpus=(1, 8))
    assert args.orz.critic_updates == 12 and args.train.seed == 3 and args.orz.run_dir.startswith(f"{ROOT}/runs/mine-")
