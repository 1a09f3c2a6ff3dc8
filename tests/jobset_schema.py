"""The published schema of JobSets, for manifests to be held against: unknown properties are refused.

kubeflow-trainer-api is a package of nothing but models, generated from the OpenAPI documents of JobSet
(jobset.x-k8s.io/v1alpha2) and of Kubernetes with its pods: the schema comes with its version pinned, and no
copy of it lies here.
"""

from typing import Any

from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet


def schema_problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest: a line for a value of a wrong type, and one for all that is unknown."""
    try:
        # Nothing is converted, and what the schema does not have is left out of what comes back.
        known = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    except ValueError as error:
        return [str(error)]
    return [f"unknown: {path}" for path in _missing(manifest, known)]


def _missing(given: Any, known: Any, path: str = "") -> list[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        return [
            found
            for key, value in given.items()
            for found in (_missing(value, known[key], f"{path}.{key}") if key in known else [f"{path}.{key}"])
        ]
    if isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        pairs = enumerate(zip(given, known, strict=True))
        return [found for i, (a, b) in pairs for found in _missing(a, b, f"{path}[{i}]")]
    return [] if given == known else [f"{path}={given!r}"]
