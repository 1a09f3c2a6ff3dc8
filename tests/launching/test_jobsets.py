"""Manifests of JobSets, against the published schema and what Kubernetes Engine asks for."""

import copy

import pytest

from tests.jobset_schema import schema_problems
from transformer_jax.config import ConfigError
from transformer_jax.launching.jobsets import (
    GPUS,
    STOPPED_STATUS,
    Cluster,
    Hardware,
    gpu_hardware,
    jobset,
    tpu_hardware,
)
from transformer_jax.launching.tpu_slices import GENERATIONS, parse_slice

COMMAND = ("python", "-m", "transformer_jax.train", "--workdir=/mnt/runs/a")
PLAIN = Cluster("registry/image:1", bucket="my-bucket")
RICH = Cluster(
    "registry/image:1",
    claim="runs",
    namespace="team",
    service_account="trainer",
    priority_class="high",
    queue="tpus",
    spot=True,
    host_network=True,
    max_restarts=7,
    grace_seconds=20,
    env={"A": "true", "PRICE": "5$"},
)


def job_of(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


def container_of(manifest):
    (container,) = pod_of(manifest)["containers"]
    return container


def environment_of(manifest):
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container_of(manifest)["env"]
    }


MACHINES = {
    **{f"{name}": tpu_hardware(parse_slice(f"{name}:4x4" if g.flat else f"{name}:2x2x2"), 2)
       for name, g in GENERATIONS.items()},
    **{kind: gpu_hardware(f"{kind}:{counts[-1]}", 3) for kind, (_, counts) in GPUS.items()},
    "none": Hardware(),
}  # fmt: skip


@pytest.mark.parametrize("cluster", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("hardware", MACHINES.values(), ids=MACHINES)
def test_manifests_are_as_the_schema_has_it(hardware, cluster):
    assert schema_problems(jobset("run", COMMAND, hardware, cluster)) == []


@pytest.mark.parametrize(
    "path",
    [
        "spec failurePolcy",
        "spec network enableDnsHostnames",
        "spec failurePolicy rules 0 onJobFailureReason",
        "spec replicatedJobs 0 template spec paralelism",
        "spec replicatedJobs 0 template spec podFailurePolicy rules 0 onExitCodes value",
        "spec replicatedJobs 0 template spec template spec nodeSelectors",
        "spec replicatedJobs 0 template spec template spec containers 0 volumeMounts 0 path",
        "spec replicatedJobs 0 template spec template spec volumes 0 csi attributes",
    ],
)
def test_the_schema_finds_what_is_misspelt(path):
    manifest = jobset("run", COMMAND, MACHINES["v5e"], PLAIN)
    *parents, key = path.split()
    place = manifest
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[key] = 1
    (problem,) = schema_problems(manifest)
    assert problem.startswith("unknown") and problem.endswith(key)


def test_the_schema_finds_wrong_types():
    manifest = jobset("run", COMMAND, MACHINES["v5e"], PLAIN)
    for changed in (("parallelism", "4"), ("backoffLimit", None), ("template", [])):
        broken = copy.deepcopy(manifest)
        job_of(broken)[changed[0]] = changed[1]
        assert schema_problems(broken), changed


def test_a_slice_has_a_pod_on_each_of_its_hosts():
    manifest = jobset("run", COMMAND, tpu_hardware(parse_slice("v5e:4x8")), PLAIN)
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = job_of(manifest)
    assert replicated["replicas"] == 1
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (8, 8, "Indexed")
    assert pod_of(manifest)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    assert container_of(manifest)["resources"]["limits"] == {"google.com/tpu": "4"}
    assert container_of(manifest)["command"] == list(COMMAND)
    assert "annotations" not in manifest["metadata"]
    assert set(environment_of(manifest)) == {"PYTHONUNBUFFERED"}  # Kubernetes Engine tells JAX the rest


def test_several_slices_are_jobs_on_a_node_pool_each():
    manifest = jobset("run", COMMAND, tpu_hardware(parse_slice("v4:2x2x4"), 3), PLAIN)
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert job_of(manifest)["parallelism"] == 4
    pool = manifest["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert pool == "cloud.google.com/gke-nodepool"


def test_processes_on_gpu_nodes_find_each_other():
    manifest = jobset("run", COMMAND, gpu_hardware("h100:8", 2), PLAIN)
    environment = environment_of(manifest)
    replicated = manifest["spec"]["replicatedJobs"][0]["name"]
    # The host name of a pod and the service of a JobSet: https://jobset.sigs.k8s.io/docs/concepts
    assert environment["JAX_COORDINATOR_ADDRESS"] == f"run-{replicated}-0-0.run:8476"
    assert environment["JAX_NUM_PROCESSES"] == "2"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert environment["JAX_PROCESS_ID"] == {"fieldRef": {"fieldPath": index}}
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True
    assert pod_of(manifest)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert container_of(manifest)["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container_of(manifest)["volumeMounts"]


def test_one_gpu_node_has_one_process():
    manifest = jobset("run", COMMAND, gpu_hardware("l4:1"), PLAIN)
    assert set(environment_of(manifest)) == {"PYTHONUNBUFFERED"}


def test_a_run_that_was_stopped_starts_again_and_does_not_count():
    manifest = jobset("run", COMMAND, MACHINES["v5e"], RICH)
    policy, job = manifest["spec"]["failurePolicy"], job_of(manifest)
    assert policy["maxRestarts"] == 7 and job["backoffLimit"] == 0
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    status, condition = job["podFailurePolicy"]["rules"]
    assert status["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [STOPPED_STATUS]}
    assert condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert pod_of(manifest)["restartPolicy"] == "Never"  # or there is no podFailurePolicy
    assert pod_of(manifest)["terminationGracePeriodSeconds"] == 20
    assert pod_of(manifest)["containers"][0]["name"] == "train"


def test_what_else_a_cluster_asks_for():
    manifest = jobset("run", COMMAND, MACHINES["v5e"], RICH)
    pod = pod_of(manifest)
    assert manifest["metadata"]["namespace"] == "team"
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}
    assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("trainer", "high")
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (toleration,) = pod["tolerations"]
    assert (toleration["key"], toleration["effect"]) == ("cloud.google.com/gke-spot", "NoSchedule")
    assert "namespace" not in jobset("run", COMMAND, MACHINES["v5e"], PLAIN)["metadata"]


def test_run_folders_are_on_a_bucket_or_on_a_volume():
    bucket, claim = (jobset("run", COMMAND, Hardware(), cluster) for cluster in (PLAIN, RICH))
    assert job_of(bucket)["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (volume,) = pod_of(bucket)["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert "metadata" not in job_of(claim)["template"]
    (volume,) = pod_of(claim)["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "runs"}
    assert container_of(claim)["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/runs"}]


def kubernetes_expands(text, variables):
    """As the kubelet does: $(NAME) is a variable where there is one, $$ is a dollar."""
    out, i = "", 0
    while i < len(text):
        end = text.find(")", i)
        if text.startswith("$$", i):
            out, i = out + "$", i + 2
        elif text.startswith("$(", i) and end > 0:
            name = text[i + 2 : end]
            out, i = out + variables.get(name, f"$({name})"), end + 1
        else:
            out, i = out + text[i], i + 1
    return out


@pytest.mark.parametrize("word", ["$(A)", "a$b", "$$", "$", "$$(A)", "--config.x='$(A) $$(A)'"])
def test_words_arrive_as_they_were(word):
    manifest = jobset("run", ["python", word], Hardware(), Cluster("image", claim="c", env={"A": word}))
    variables = {"A": "something else"}
    assert kubernetes_expands(container_of(manifest)["command"][1], variables) == word
    assert kubernetes_expands(environment_of(manifest)["A"], variables) == word


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Big", "not a valid Kubernetes name"),
        ("a_b", "not a valid Kubernetes name"),
        ("a.b", "not a valid Kubernetes name"),
        ("-a", "not a valid Kubernetes name"),
        ("a-", "not a valid Kubernetes name"),
        ("", "not a valid Kubernetes name"),
        ("7b", "must begin with a letter"),
        ("a" * 47, "has 47 characters; use at most 46"),
    ],
)
def test_names_that_kubernetes_does_not_take(name, problem):
    with pytest.raises(ConfigError, match=problem):
        jobset(name, COMMAND, tpu_hardware(parse_slice("v5e:4x8")), PLAIN)


def test_the_longest_name_that_its_pods_can_have():
    name = "a" * 46  # the pod: NAME-worker-0-7-xxxxx
    manifest = jobset(name, COMMAND, tpu_hardware(parse_slice("v5e:4x8")), PLAIN)
    assert len(f"{name}-{manifest['spec']['replicatedJobs'][0]['name']}-0-7-xxxxx") == 63


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(image=""), "--image is not set; give the container image"),
        (dict(bucket=""), "give exactly one of --bucket and --claim"),
        (dict(claim="c"), "give exactly one of --bucket and --claim"),
        (dict(mount_path="runs"), "--mount_path=runs must be an absolute path, such as /mnt/runs"),
        (dict(mount_path="/"), "must be an absolute path"),
        (dict(namespace="a.b"), "--namespace=a.b is not a valid Kubernetes name"),
        (dict(service_account="A"), "--service_account=A is not a valid Kubernetes name; .* dots"),
        (dict(max_restarts=-1), "must be 0 or more"),
        (dict(grace_seconds=-1), "must be 0 or more"),
    ],
)
def test_what_a_cluster_cannot_be(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        Cluster(**{"image": "image", "bucket": "b", **changes})


def test_machines_that_there_are_not():
    with pytest.raises(ConfigError, match=r"unknown GPU 'v100'; use one of t4, l4, a100, .*, as in h100:8"):
        gpu_hardware("v100:8")
    with pytest.raises(
        ConfigError, match=r"--gpus=h200:4: no machine has '4' GPUs of this kind; use h200:8$"
    ):
        gpu_hardware("h200:4")
    with pytest.raises(
        ConfigError, match=r"--gpus=l4: no machine has '' GPUs of this kind; use l4:1, l4:2, l4:4, l4:8"
    ):
        gpu_hardware("l4")
    with pytest.raises(ConfigError, match=r"--nodes=0 must be 1 or more"):
        gpu_hardware("l4:1", 0)
    with pytest.raises(ConfigError, match=r"--slices=0 must be 1 or more"):
        tpu_hardware(parse_slice("v5e:4x4"), 0)
    with pytest.raises(ConfigError, match=r"v5e:2x2 is a single host; use --slices=1 or a larger topology"):
        tpu_hardware(parse_slice("v5e:2x2"), 2)
    with pytest.raises(ConfigError, match=r"the hosts of v5e:4x4 have 4 chips, not 8"):
        tpu_hardware(parse_slice("v5e:4x4"), 1, 8)
