"""Builds manifests of Kubernetes JobSets that run one program on all hosts of TPU slices or GPU nodes.

Sources: the API of JobSet (https://jobset.sigs.k8s.io, v1alpha2) and of Kubernetes' jobs and pods; Google
Cloud's documentation of Kubernetes Engine, "Deploy TPU Multislices in GKE", "GPU machine types", "Cloud
Storage FUSE CSI driver" and "Spot VMs", for node labels, annotations and drivers. Read in November 2026.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformer_jax.config import ConfigError
from transformer_jax.launching.tpu_slices import TpuSlice

# GPU kind -> the node label cloud.google.com/gke-accelerator, and the numbers of GPUs that a machine can
# have.
GPUS = {
    "t4": ("nvidia-tesla-t4", (1, 2, 4)),
    "l4": ("nvidia-l4", (1, 2, 4, 8)),
    "a100": ("nvidia-tesla-a100", (1, 2, 4, 8, 16)),
    "a100-80gb": ("nvidia-a100-80gb", (1, 2, 4, 8)),
    "h100": ("nvidia-h100-80gb", (1, 2, 4, 8)),
    "h100-mega": ("nvidia-h100-mega-80gb", (8,)),
    "h200": ("nvidia-h200-141gb", (8,)),
    "b200": ("nvidia-b200", (8,)),
    "gb200": ("nvidia-gb200", (4,)),
}
STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h
REPLICATED_JOB, CONTAINER, VOLUME = "worker", "train", "runs"
COORDINATOR_PORT = 8476
MOST_CHARACTERS = 63  # of a pod's name, because it is also the host name
TPU, GPU = "google.com/tpu", "nvidia.com/gpu"  # resource names that pods request
NODE_POOL = "cloud.google.com/gke-nodepool"
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Machines of one kind: ``replicas`` slices of ``hosts`` machines with ``per_host`` chips or GPUs."""

    replicas: int = 1
    hosts: int = 1
    resource: str = ""  # TPU or GPU; "" is a machine without either
    per_host: int = 0
    selector: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Settings of the cluster and of the pods that do not depend on the program."""

    image: str
    bucket: str = ""
    claim: str = ""
    mount_path: str = "/mnt/runs"
    image_folder: str = "/transformer_jax"
    namespace: str = ""
    service_account: str = ""
    priority_class: str = ""
    queue: str = ""
    spot: bool = False
    host_network: bool = False
    max_restarts: int = 3
    grace_seconds: int = 300
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.image:
            raise ConfigError(
                "--image is not set; give the container image that contains this checkout (see docs/gke.md)"
            )
        if bool(self.bucket) == bool(self.claim):
            raise ConfigError(
                "give exactly one of --bucket and --claim (a persistent volume that all hosts can write); it "
                "is mounted at --mount_path and holds the run folder after the pods have ended"
            )
        if not re.fullmatch(r"(/[^/:]+)+", self.mount_path):
            raise ConfigError(f"--mount_path={self.mount_path} must be an absolute path, such as /mnt/runs")
        for flag, name in (
            ("namespace", self.namespace),
            ("claim", self.claim),
            ("service_account", self.service_account),
            ("priority_class", self.priority_class),
            ("queue", self.queue),
        ):
            if name:
                check_name(f"--{flag}", name, dots=flag != "namespace")
        if min(self.max_restarts, self.grace_seconds) < 0:
            raise ConfigError(
                f"--max_restarts={self.max_restarts} and --grace_seconds={self.grace_seconds} must be 0 or "
                "more"
            )


def tpu_hardware(tpus: TpuSlice, slices: int = 1, chips_per_host: int | None = None) -> Hardware:
    """Returns the hardware of one or more TPU slices.

    Args:
      tpus: one slice.
      slices: the number of slices.
      chips_per_host: as in ``TpuSlice.hosts``.

    Raises:
      ConfigError: ``slices`` is less than 1, there are several slices of a single host each, or no machine
        has ``chips_per_host`` chips.
    """
    hosts = tpus.hosts(chips_per_host)
    if slices < 1:
        raise ConfigError(f"--slices={slices} must be 1 or more")
    if slices > 1 and hosts == 1:
        raise ConfigError(
            f"--slices={slices} needs slices of several hosts, but {tpus} is a single host; use --slices=1 "
            "or a larger topology"
        )
    selector = {
        "cloud.google.com/gke-tpu-accelerator": tpus.generation.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": tpus.topology,
    }
    return Hardware(slices, hosts, TPU, tpus.chips // hosts, selector)


def gpu_hardware(text: str, nodes: int = 1) -> Hardware:
    """Returns the hardware of machines with GPUs, given as ``KIND:NUMBER``, such as ``h100:8``.

    Raises:
      ConfigError: no such machine exists; the message lists the available ones.
    """
    kind, _, count = text.partition(":")
    if kind not in GPUS:
        known = ", ".join(GPUS)
        raise ConfigError(
            f"--gpus={text}: unknown GPU {kind!r}; use one of {known}, with its number per machine, as in "
            "h100:8"
        )
    label, counts = GPUS[kind]
    if count not in map(str, counts):
        known = ", ".join(f"{kind}:{n}" for n in counts)
        raise ConfigError(f"--gpus={text}: no machine has {count!r} GPUs of this kind; use {known}")
    if nodes < 1:
        raise ConfigError(f"--nodes={nodes} must be 1 or more")
    return Hardware(1, nodes, GPU, int(count), {"cloud.google.com/gke-accelerator": label})


def check_name(what: str, name: str, *, dots: bool = False) -> None:
    """Raises ConfigError unless ``name`` is a label of RFC 1123 or, with ``dots``, a subdomain of labels."""
    label = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    most = 253 if dots else MOST_CHARACTERS
    if not re.fullmatch(rf"{label}(\.{label})*" if dots else label, name) or len(name) > most:
        raise ConfigError(
            f"{what}={name} is not a valid Kubernetes name; use up to {most} lower-case letters, digits"
            f"{', dots' if dots else ''} and hyphens, with a letter or digit at the start and the end"
        )


def check_job_name(name: str, hardware: Hardware) -> None:
    """Raises ConfigError unless a JobSet can have this name.

    The names of its pods are derived from it. It is also the name of a service, which must begin with a
    letter (RFC 1035).
    """
    check_name("--name", name)
    if not name[0].isalpha():
        raise ConfigError(f"--name={name} must begin with a letter, because it is also the name of a service")
    rest = f"-{REPLICATED_JOB}-{hardware.replicas - 1}-{hardware.hosts - 1}-xxxxx"
    if len(name) + len(rest) > MOST_CHARACTERS:
        raise ConfigError(
            f"--name={name} has {len(name)} characters; use at most {MOST_CHARACTERS - len(rest)}, because "
            f"the pods are named {name}{rest}"
        )


def jobset(name: str, command: Sequence[str], hardware: Hardware, cluster: Cluster) -> dict[str, Any]:
    """Returns the manifest of a JobSet that runs ``command`` on every host.

    Raises:
      ConfigError: ``name`` is not valid; see ``check_job_name``.
    """
    check_job_name(name, hardware)
    metadata: dict[str, Any] = {"name": name}
    if cluster.namespace:
        metadata["namespace"] = cluster.namespace
    if cluster.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": cluster.queue}
    if hardware.replicas > 1:  # each replica must run within one physical slice
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": NODE_POOL}
    job = {
        "parallelism": hardware.hosts,
        "completions": hardware.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one process cannot rejoin a run, so JobSet restarts all of them
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [STOPPED_STATUS],
                    },
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": _pod(name, command, hardware, cluster),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": cluster.max_restarts,
                "rules": [
                    {
                        "name": "stoppedFromOutside",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": REPLICATED_JOB, "replicas": hardware.replicas, "template": {"spec": job}}
            ],
        },
    }


def _pod(name: str, command: Sequence[str], hardware: Hardware, cluster: Cluster) -> dict[str, Any]:
    spec: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": cluster.grace_seconds}
    selector = dict(hardware.selector)
    if cluster.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spec["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    if selector:
        spec["nodeSelector"] = selector
    if cluster.service_account:
        spec["serviceAccountName"] = cluster.service_account
    if cluster.priority_class:
        spec["priorityClassName"] = cluster.priority_class
    if cluster.host_network:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    volumes, mounts = _volumes(hardware, cluster)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": cluster.image,
        "workingDir": cluster.image_folder,
        "command": [_escaped(word) for word in command],
        "env": _environment(name, hardware, cluster),
        "volumeMounts": mounts,
    }
    if hardware.resource:
        amount = {hardware.resource: str(hardware.per_host)}
        container["resources"] = {"requests": amount, "limits": dict(amount)}
    spec |= {"containers": [container], "volumes": volumes}
    if not cluster.bucket:
        return {"spec": spec}
    return {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": spec}


def _volumes(hardware: Hardware, cluster: Cluster) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    if cluster.bucket:
        attributes = {"bucketName": cluster.bucket, "mountOptions": "implicit-dirs"}
        volumes += [
            {"name": VOLUME, "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
        ]
    else:
        volumes += [{"name": VOLUME, "persistentVolumeClaim": {"claimName": cluster.claim}}]
    mounts = [{"name": VOLUME, "mountPath": cluster.mount_path}]
    if hardware.resource == GPU:  # NCCL needs shared memory; the default of a container is 64 MiB
        volumes += [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
        mounts += [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    return volumes, mounts


def _environment(name: str, hardware: Hardware, cluster: Cluster) -> list[dict[str, Any]]:
    """Returns the environment variables of every process; on TPUs, JAX uses the variables that GKE sets."""
    values: dict[str, Any] = {"PYTHONUNBUFFERED": {"value": "1"}}
    if hardware.resource == GPU and hardware.hosts > 1:
        first = f"{name}-{REPLICATED_JOB}-0-0.{name}"  # DNS name in the headless service of the JobSet
        index = {"fieldPath": f"metadata.annotations['{COMPLETION_INDEX}']"}
        values |= {
            "JAX_COORDINATOR_ADDRESS": {"value": f"{first}:{COORDINATOR_PORT}"},
            "JAX_NUM_PROCESSES": {"value": str(hardware.hosts)},
            "JAX_PROCESS_ID": {"valueFrom": {"fieldRef": index}},
        }
    values |= {key: {"value": _escaped(value)} for key, value in cluster.env.items()}
    return [{"name": key, **value} for key, value in values.items()]


def _escaped(text: str) -> str:
    """Escapes ``$``, because Kubernetes expands $(NAME) and replaces $$ by $."""
    return text.replace("$", "$$")
