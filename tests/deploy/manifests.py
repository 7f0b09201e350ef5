"""The manifests of deploy/kuberay, and strict validation against the schemas of Kubernetes and of KubeRay."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "kuberay"
#: The version of Kubernetes whose schemas are used.
KUBERNETES = "1.34"
Manifest = dict[str, Any]

#: Fields of KubeRay that the manifests use, for a check without the schemas; `*` stands for any name.
KNOWN = {
    "RayCluster": {
        "rayVersion": str,
        "authOptions": {"mode": str},
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": {
            "version": str,
            "upscalingMode": str,
            "idleTimeoutSeconds": int,
            "resources": dict,
            "securityContext": dict,
        },
        "headGroupSpec": {"rayStartParams": {"*": str}, "template": dict},
        "workerGroupSpecs": {
            "groupName": str,
            "minReplicas": int,
            "maxReplicas": int,
            "replicas": int,
            "rayStartParams": {"*": str},
            "template": dict,
        },
    },
}
KNOWN["RayJob"] = {
    "entrypoint": str,
    "submissionMode": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "submitterPodTemplate": dict,
    "rayClusterSpec": KNOWN["RayCluster"],
}
KNOWN["RayCronJob"] = {"schedule": str, "timeZone": str, "suspend": bool, "jobTemplate": KNOWN["RayJob"]}


@cache
def manifests() -> dict[str, Manifest]:
    """Every manifest, by the name of its file."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        [document] = yaml.safe_load_all(path.read_text("utf-8"))
        found[path.name] = document
    return found


def cluster_of(manifest: Manifest) -> Manifest:
    """The specification of the Ray cluster in a RayCluster, RayJob or RayCronJob."""
    spec: Manifest = manifest["spec"]
    spec = spec.get("jobTemplate", spec)
    return spec.get("rayClusterSpec", spec)


def pods(manifest: Manifest) -> Iterator[Manifest]:
    """The pod templates of a manifest, wherever they are."""
    if isinstance(manifest, dict):
        if "containers" in manifest.get("spec", {}):
            yield manifest
            return
        for value in manifest.values():
            yield from pods(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from pods(value)


def strict(schema: Any) -> Any:
    """Convert an OpenAPI schema of a CRD to a JSON schema that refuses unknown fields: Kubernetes would drop them silently."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key not in {"format", "default"}}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        made["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    return made


def schema_of(crds: Path, kind: str) -> Any:
    """The strict schema of the newest version of a kind of KubeRay, from a folder of its compressed CRDs."""
    path = crds / f"ray.io_{kind.lower()}s.yaml.gz"
    with gzip.open(path, "rt") as text:
        crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    return strict(version["schema"]["openAPIV3Schema"])


def unknown_fields(value: Any, known: Any, path: str = "spec") -> Iterator[str]:
    """Yield the fields that are not in `KNOWN`, or have another type."""
    if isinstance(known, type):
        if not isinstance(value, known):
            yield f"{path} is not a {known.__name__}"
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from unknown_fields(item, known, f"{path}[{position}]")
    elif not isinstance(value, dict):
        yield f"{path} is not an object"
    else:
        for name, item in value.items():
            if name in known or "*" in known:
                yield from unknown_fields(item, known.get(name, known.get("*")), f"{path}.{name}")
            else:
                yield f"{path}.{name} is not known"
