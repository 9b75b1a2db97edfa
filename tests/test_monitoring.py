"""deploy/kubernetes/monitoring: with it Prometheus reads the metrics port of Ray's pods, and reaches nothing else."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.test_kubernetes import Manifest, kustomized, validate

MANIFESTS = Path(__file__).parents[1] / "deploy" / "kubernetes"


def with_monitoring(folder: Path, overlay: str) -> dict[tuple[str, str], Manifest]:
    """Kind and name -> manifest, of an overlay whose components have it, too."""
    shutil.copytree(MANIFESTS, folder / "kubernetes")
    path = folder / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text())
    kustomization["components"].append("../../monitoring")
    path.write_text(yaml.safe_dump(kustomization))
    return {(one["kind"], one["metadata"]["name"]): one for one in kustomized(path.parent)}


@pytest.mark.parametrize("overlay", ["cpu", "gpu-multinode-job"])
def test_only_prometheus_comes_in_and_only_to_the_metrics_port_of_rays_pods(tmp_path: Path, overlay: str) -> None:
    found = with_monitoring(tmp_path, overlay)
    policy, monitor = found["NetworkPolicy", "monitoring"], found["PodMonitor", "raml"]
    validate(policy)
    assert policy["metadata"]["namespace"] == monitor["metadata"]["namespace"] == "raml"
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    [rule] = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert [peer.keys() for peer in rule["from"]] == [{"namespaceSelector", "podSelector"}]
    assert policy["spec"]["podSelector"] == monitor["spec"]["selector"]
    kinds = {"key": "ray.io/node-type", "operator": "In", "values": ["head", "worker"]}
    assert monitor["spec"]["selector"] == {"matchExpressions": [kinds]}
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics"}]
