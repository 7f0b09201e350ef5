"""The manifests for Kubernetes: accepted by the schemas of Kubernetes and of KubeRay, closed to others, and large enough."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from scanner.cli.main import application
from scanner.fleet.config import read_config
from tests.deploy.manifests import (
    FOLDER,
    KNOWN,
    KUBERNETES,
    Manifest,
    cluster_of,
    manifests,
    pods,
    schema_of,
    unknown_fields,
)

CRDS = os.environ.get("RMTSCAN_KUBERAY_CRDS")
RAY = {name: manifest for name, manifest in manifests().items() if manifest["kind"] in KNOWN}
PLAIN = {"cronjob.yaml", "namespace.yaml", "networkpolicy.yaml"}
VERBS = typer.main.get_command(application()).commands  # type: ignore[attr-defined]

#: Largest matrices (rows, columns): of a block of an 8B model, and the embedding of a 70B model.
BLOCK_8B, EMBEDDING_70B = (14_336, 4_096), (128_256, 8_192)


def memory_of(rows: int, cols: int) -> float:
    """Bytes that a worker needs for a matrix: the bound that benchmarks/bench_scaling.py measures."""
    return 4 * 8 * rows * cols + 600e6


def bytes_in(quantity: str) -> int:
    """Convert a quantity of Kubernetes, such as 64Gi."""
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity).groups()
    return int(number) * 1024 ** {"Ki": 1, "Mi": 2, "Gi": 3}[unit]


def refused(function: Any, *arguments: Any) -> bool:
    try:
        function(*arguments)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError):
        return True
    return False


def validate_plain(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def as_pod(template: Manifest) -> Manifest:
    """A pod template as a Pod; a template of KubeRay may leave out what the operator adds."""
    metadata = {"name": "x", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def test_every_kind_is_there() -> None:
    kinds = sorted(manifest["kind"] for manifest in manifests().values())
    assert kinds == ["CronJob", "Kustomization", "Namespace", "NetworkPolicy", "RayCluster", "RayCronJob", "RayJob"]
    assert {*RAY, *PLAIN, "kustomization.yaml"} == set(manifests())


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_kubernetes_accepts_its_own_kinds(name: str) -> None:
    validate_plain(manifests()[name])
    wrong = copy.deepcopy(manifests()[name])
    wrong["spek"] = {}
    assert refused(validate_plain, wrong), "a misspelled field is noticed"


@pytest.mark.parametrize("name", sorted({*RAY, "cronjob.yaml"}))
def test_kubernetes_accepts_every_pod(name: str) -> None:
    templates = list(pods(manifests()[name]))
    assert len(templates) == {"raycluster.yaml": 3, "cronjob.yaml": 1}.get(name, 4)
    for template in templates:
        validate_plain(as_pod(template))
    wrong = copy.deepcopy(templates[0])
    wrong["spec"]["containers"][0]["resource"] = {}
    assert refused(validate_plain, as_pod(wrong))


@pytest.mark.parametrize("name", sorted(RAY))
def test_kuberay_accepts_its_kinds(name: str) -> None:
    """With RMTSCAN_KUBERAY_CRDS, against the CRDs in that folder; without, against a list of the fields that are used."""
    manifest = RAY[name]
    assert manifest["apiVersion"] == "ray.io/v1"
    wrong = copy.deepcopy(manifest)
    cluster_of(wrong)["workerGroupSpecs"][0]["maxReplica"] = 3
    if CRDS is None:
        assert list(unknown_fields(manifest["spec"], KNOWN[manifest["kind"]])) == []
        assert list(unknown_fields(wrong["spec"], KNOWN[manifest["kind"]])) != []
        return
    validator = jsonschema.Draft202012Validator(schema_of(Path(CRDS), manifest["kind"]))
    assert [error.json_path + ": " + error.message for error in validator.iter_errors(manifest)] == []
    assert not validator.is_valid(wrong)


def test_the_same_cluster_in_all_three() -> None:
    first, *others = [cluster_of(manifest) for manifest in RAY.values()]
    assert len(others) == 2
    assert all(other == first for other in others)


def test_the_token_is_on_and_the_version_is_the_tested_one() -> None:
    constraints = (FOLDER.parent.parent / "constraints.txt").read_text("utf-8")
    for manifest in RAY.values():
        cluster = cluster_of(manifest)
        assert cluster["authOptions"]["mode"] == "token"
        assert f"\nray=={cluster['rayVersion']}\n" in constraints


@pytest.mark.parametrize("name", sorted({*RAY, "cronjob.yaml"}))
def test_no_pod_has_privileges(name: str) -> None:
    for template in pods(manifests()[name]):
        spec = template["spec"]
        assert template["metadata"]["labels"] == manifests()["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {volume["name"] for volume in spec["volumes"]} == {v["name"] for v in container["volumeMounts"]}
            assert (
                container["resources"]["requests"] == container["resources"]["limits"] or "submit" in container["name"]
            )


def test_secrets_are_named_and_never_written_down() -> None:
    for name, manifest in manifests().items():
        for template in pods(manifest):
            [container] = template["spec"]["containers"]
            if "submit" not in container["name"]:
                secrets = [source["secretRef"]["name"] for source in container["envFrom"]]
                assert secrets == ["rmtscan-hub", "rmtscan-s3"], name
            assert not any(re.search("TOKEN|KEY|SECRET", variable["name"]) for variable in container["env"])


def test_memory_fits_the_workers_of_a_node() -> None:
    """One worker per core on the shapes of an 8B model, and one worker on the largest matrix of a 70B model."""
    [cron] = pods(manifests()["cronjob.yaml"])
    groups = cluster_of(RAY["raycluster.yaml"])["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["cpu", "gpu"]
    for template in [cron, *(group["template"] for group in groups)]:
        limits = template["spec"]["containers"][0]["resources"]["limits"]
        workers = int(limits["cpu"]) if "nvidia.com/gpu" not in limits else int(limits["nvidia.com/gpu"])
        assert workers * memory_of(*BLOCK_8B) <= bytes_in(limits["memory"])
        assert memory_of(*EMBEDDING_70B) <= bytes_in(limits["memory"])


def test_groups_scale_from_zero_and_only_one_asks_for_gpus() -> None:
    for manifest in RAY.values():
        cluster = cluster_of(manifest)
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in cluster["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert group["minReplicas"] == 0 < group["maxReplicas"]
            assert ("nvidia.com/gpu" in limits) == (group["groupName"] == "gpu")


def test_commands_exist() -> None:
    [cron] = pods(manifests()["cronjob.yaml"])
    commands = [["rmtscan", *cron["spec"]["containers"][0]["args"]]]
    for name in ("rayjob.yaml", "raycronjob.yaml"):
        spec = RAY[name]["spec"]
        commands.append(spec.get("jobTemplate", spec)["entrypoint"].split())
    for program, verb, *arguments in commands:
        assert program == "rmtscan"
        known = {option for parameter in VERBS[verb].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("-")} <= known


def test_the_configuration_of_the_nightly_scan_is_valid() -> None:
    config = read_config(FOLDER / "watch.toml")
    assert config.output.store == "s3://BUCKET/results"


def test_kustomize_finds_its_files() -> None:
    kustomization = manifests()["kustomization.yaml"]
    [generated] = kustomization["configMapGenerator"]
    files = [*kustomization["resources"], *generated["files"]]
    assert all((FOLDER / file).is_file() for file in files)
    mounted = {
        volume["configMap"]["name"]
        for manifest in manifests().values()
        for template in pods(manifest)
        for volume in template["spec"]["volumes"]
        if "configMap" in volume
    }
    assert mounted == {generated["name"]}
    for name in {*manifests()} - {*kustomization["resources"], "cronjob.yaml", "kustomization.yaml"}:
        for template in pods(manifests()[name]):
            sources = [volume["configMap"] for volume in template["spec"]["volumes"] if "configMap" in volume]
            assert all(source["optional"] is True for source in sources), "what is applied by itself starts by itself"
    [image] = kustomization["images"]
    used = {c["image"].split(":")[0] for m in manifests().values() for t in pods(m) for c in t["spec"]["containers"]}
    assert used == {image["name"]}


def test_every_manifest_is_plain_yaml() -> None:
    for path in FOLDER.glob("*.yaml"):
        text = path.read_text("utf-8")
        assert text.startswith("# ") or path.name == "namespace.yaml"
        assert "\t" not in text
        assert yaml.safe_load(text)
