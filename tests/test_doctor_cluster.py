"""Nodes that differ, that cannot reach each other, or that let everybody in: each is named, with the remedy."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raml_ray import doctor_cluster, provenance
from raml_ray.config import Config, override
from raml_ray.doctor import Finding

NAMES = {"1f": "head (10.0.0.1)", "2f": "one (10.0.0.2)"}


def test_what_is_the_same_on_all_hosts_is_told_once_and_what_is_not_with_its_hosts() -> None:
    same, other = ("ok", "ray", "2.60.0", ""), ("warn", "memory", "1 GiB available", "free some")
    assert list(doctor_cluster._of_hosts(NAMES, {"1f": [same], "2f": [same, other]})) == [
        Finding("ok", "every node: ray", "2.60.0"),
        Finding("warn", "one (10.0.0.2): memory", "1 GiB available", "free some"),
    ]


def test_a_package_that_one_host_has_otherwise_or_not_at_all_is_named() -> None:
    here = provenance.versions()
    assert {"deepspeed", "peft", "s3fs", "torch"} <= here.keys(), "what learners, adapters and stores depend on, too"
    assert doctor_cluster._versions(NAMES, {"1f": here, "2f": here}).level == "ok"
    theirs = here | {"torch": "2.0", "flash-attn": "2.8"}
    del theirs["s3fs"]
    finding = doctor_cluster._versions(NAMES, {"1f": here, "2f": theirs})
    assert finding.level == "fail" and "deploy/install.sh" in finding.remedy
    assert finding.found == (
        "one (10.0.0.2) has flash-attn 2.8, not at all; "
        f"one (10.0.0.2) has s3fs not at all, not {here['s3fs']}; one (10.0.0.2) has torch 2.0, not {here['torch']}"
    )


def test_a_package_s_digest_tells_every_change_of_its_sources_and_nothing_else(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for package in (one, two):
        (package / "stages").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "stages" / "sft.py").write_text("rate = 1\n")
    (two / "__pycache__").mkdir()
    (two / "__pycache__" / "sft.pyc").write_bytes(b"compiled")
    assert provenance.code_digest(one) == provenance.code_digest(two)
    (two / "stages" / "sft.py").write_text("rate = 2\n")
    assert provenance.code_digest(one) != provenance.code_digest(two)
    (two / "stages" / "sft.py").rename(two / "stages" / "grpo.py")
    (two / "stages" / "grpo.py").write_text("rate = 1\n")
    assert provenance.code_digest(one) != provenance.code_digest(two), "a file of another name"


def test_a_host_with_other_code_is_named_whether_it_runs_or_lies_beside() -> None:
    runs, has = doctor_cluster.Node().code()
    assert runs == provenance.code_digest()
    sound = doctor_cluster._code(NAMES, {"1f": (runs, has), "2f": (runs, has)})
    assert (sound.level, sound.found) == ("ok", f"raml_ray {runs} on 2 nodes; installed there: {has}")
    finding = doctor_cluster._code(NAMES, {"1f": (runs, has), "2f": ("0123456789ab", has)})
    assert (finding.level, finding.found) == ("fail", f"one (10.0.0.2) runs raml_ray 0123456789ab, not {runs}")
    assert "the same commit on every host" in finding.remedy
    finding = doctor_cluster._code(NAMES, {"1f": (runs, has), "2f": (runs, "not installed")})
    assert (finding.level, finding.found) == ("warn", f"one (10.0.0.2) has raml_ray not installed, not {has}")


@pytest.mark.parametrize(
    ("counted", "found", "level", "told"),
    [
        ((8, 8), (8, 8), "ok", "16, as many as torch can use"),
        ((0, 0), (0, 0), "ok", "0, as many as torch can use"),
        ((8, 8), (8, 0), "fail", "one (10.0.0.2): Ray counts 8, torch can use 0"),
        ((4, 0), (8, 0), "warn", "head (10.0.0.1): Ray counts 4, torch can use 8"),
        (
            *((4, 8), (8, 7), "fail"),
            "head (10.0.0.1): Ray counts 4, torch can use 8; one (10.0.0.2): Ray counts 8, torch can use 7",
        ),
    ],
)
def test_gpus_that_ray_gives_out_and_torch_cannot_use_are_found(
    counted: tuple[int, int], found: tuple[int, int], level: str, told: str
) -> None:
    finding = doctor_cluster._gpus(NAMES, dict(zip(NAMES, counted, strict=True)), dict(zip(NAMES, found, strict=True)))
    assert (finding.level, finding.found) == (level, told)
    assert ("ray start --num-gpus" in finding.remedy) == (level != "ok")


def test_a_port_that_nobody_answers_at_is_told_with_its_node() -> None:
    node = doctor_cluster.Node()
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    met = node.unreached({"open": ("127.0.0.1", node.listens()), "closed": ("127.0.0.1", port)})
    assert list(met) == ["closed"] and "refused" in met["closed"]


def test_hosts_that_ask_for_no_token_are_named() -> None:
    assert doctor_cluster._modes(NAMES, {"1f": "token", "2f": "token"}).level == "ok"
    finding = doctor_cluster._modes(NAMES, {"1f": "token", "2f": ""})
    assert (finding.level, finding.found) == (
        "fail",
        "not asked for by one (10.0.0.2): whoever reaches a port runs code",
    )
    assert "export RAY_AUTH_MODE=token" in finding.remedy


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that answers with the status that the test asks for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api/jobs/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("dashboard", "level", "told"),
    [
        (200, "fail", "is let in at http://127.0.0.1"),
        (401, "ok", "turned away (401)"),
        (403, "ok", "away (403)"),
        (500, "warn", "answers 500"),
    ],
    indirect=["dashboard"],
)
def test_a_dashboard_that_lets_strangers_in_is_found(dashboard: str, level: str, told: str) -> None:
    finding = doctor_cluster._stranger(dashboard, doctor_cluster.Node().answer_to_a_stranger(dashboard))
    assert finding.level == level and told in finding.found
    assert ("export RAY_AUTH_MODE=token" in finding.remedy) == (level == "fail")


def test_a_dashboard_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api/jobs/"
    finding = doctor_cluster._stranger(url, doctor_cluster.Node().answer_to_a_stranger(url))
    assert finding.level == "warn" and "refused" in finding.found


def test_a_root_that_was_not_named_is_said_to_be_unknown_and_a_lost_one_fails() -> None:
    assert doctor_cluster._root(Config()) == Finding(
        "warn",
        "root",
        "not looked at: whether the nodes share a storage is not known",
        "add root=..., as the runs will have it",
    )
    lost = doctor_cluster._root(override(Config(), {"root": "/x/working_dir_files/_ray_pkg_4711/runs"}))
    assert lost.level == "fail" and "a folder that all nodes share by its absolute path" in lost.found
