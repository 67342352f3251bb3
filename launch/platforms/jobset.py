"""A JobSet for Google Kubernetes Engine: one job for each slice, one pod for each machine, restarts by exit code."""

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from janus_jax.errors import EXIT_CODES, GIVE_UP
from janus_jax.planning.chips.slices import families, find_slice
from launch.cloud import capacity
from launch.platforms.training_file import header, train_words
from launch.records import PORT
from launch.settings import Settings

CHIPS_PER_POD = 4
"""Of machines ct4p-hightpu-4t, ct5lp-hightpu-4t, ct5p-hightpu-4t and ct6e-standard-4t. So a slice of eight chips is two
pods here, although the TPU API has one machine of eight chips for it."""
MAX_RESTARTS = 30

_LABEL = "jobset.sigs.k8s.io"
_USED = {"name", "project", "zone", "type", "bucket", "slices", "provisioning", "labels"}
_SLICE, _CONTAINER = "slice", "janus"


def text(settings: Settings, config: str, overrides: Sequence[str], image: str) -> str:
    """The manifest of a training run, with comments that say how to use it.

    Raises:
        ConfigError: the settings do not name a type or bucket that it needs.
    """
    lines = [
        f"Before: docker build -t {image} -f FILE . && docker push {image}   (FILE: `export dockerfile`)",
        "Start:  kubectl apply -f THIS_FILE        Look: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME",
        "Stop:   kubectl delete -f THIS_FILE       A stopped run goes on when the file is applied again.",
        "The cluster needs JobSet 0.8 or newer, a node pool of this type and topology for each slice, and Workload",
        "Identity for the service account `default`, so that pods read and write the bucket.",
    ]
    return header("JobSet", lines, settings, _USED) + yaml.safe_dump(manifest(settings, config, overrides, image))


def manifest(settings: Settings, config: str, overrides: Sequence[str], image: str) -> dict[str, Any]:
    """The JobSet as an object."""
    kind = capacity.of(settings)
    pods = -(-kind.chips // CHIPS_PER_POD)
    job = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod by itself cannot go on: the JobSet starts all again
        "podFailurePolicy": {"rules": [_give_up()]},
        "template": {"spec": _pod(settings, kind, pods, config, overrides, image)},
    }
    spec = {
        "failurePolicy": {
            "maxRestarts": MAX_RESTARTS,
            "restartStrategy": "BlockingRecreate",  # a start with a higher attempt relies on it: the earlier is gone
            "rules": [{"name": "giveup", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [{"name": _SLICE, "replicas": kind.slices, "template": {"spec": job}}],
    }
    metadata: dict[str, Any] = {"name": settings.name}
    metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    if settings.labels:
        metadata["labels"] = dict(settings.labels)
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


def _give_up() -> dict[str, Any]:
    codes = sorted(code for code, (_, then) in EXIT_CODES.items() if then == GIVE_UP)
    return {"action": "FailJob", "onExitCodes": {"containerName": _CONTAINER, "operator": "In", "values": codes}}


def _pod(
    settings: Settings, kind: capacity.Type, pods: int, config: str, overrides: Sequence[str], image: str
) -> dict[str, Any]:
    """Specification of every pod."""
    topology = str(find_slice(kind.name).topology).partition(":")[2]
    selector = {
        "cloud.google.com/gke-tpu-accelerator": families()[kind.family].gke,
        "cloud.google.com/gke-tpu-topology": topology,
        "topology.kubernetes.io/zone": settings.zone,
    }
    if settings.provisioning == "spot":
        selector["cloud.google.com/gke-spot"] = "true"
    # A pod's host name is JOBSET-JOB-INDEX-INDEX.SUBDOMAIN; the subdomain is the JobSet's name.
    coordinator = f"{settings.name}-{_SLICE}-0-0.{settings.name}:{PORT}"
    words = [*train_words(settings, config, overrides), "--coordinator", coordinator]
    words += ["--num-processes", str(pods * kind.slices)]
    number = f"$((SLICE * {pods} + JOB_COMPLETION_INDEX))"
    tpu = {"google.com/tpu": min(kind.chips, CHIPS_PER_POD)}
    container = {
        "name": _CONTAINER,
        "image": image,
        "command": ["/bin/sh", "-c", f"exec {shlex.join(words)} --process-id {number}"],
        "env": [
            _variable("SLICE", f"{_LABEL}/job-index"),
            _variable("JANUS_RUN_OWNER", f"{_LABEL}/jobset-uid"),
            _variable("JANUS_RUN_ATTEMPT", f"{_LABEL}/restart-attempt"),
        ],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": dict(tpu), "requests": dict(tpu)},
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,  # SIGTERM saves the newest step
        "nodeSelector": selector,
        "containers": [container],
    }


def _variable(name: str, label: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}}
