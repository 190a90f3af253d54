"""studies/cluster: what is applied to a cluster of others' says what it means."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdnas.cli.main import main
from kdnas.study.loading import load_study


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "studies" / "cluster"


@pytest.fixture(scope="module")
def objects(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    listed = list(yaml.safe_load_all((folder / "kubernetes.yml").read_text()))
    named = {(each["kind"], each["metadata"]["name"]): each for each in listed}
    assert len(named) == len(listed)
    return named


def pods(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: each["spec"]["template"] for (kind, name), each in objects.items() if kind in ("Deployment", "Job")}


def test_what_kubernetes_is_told_is_of_its_kinds(objects):
    versions = {"PersistentVolumeClaim": "v1", "Service": "v1", "Deployment": "apps/v1", "Job": "batch/v1"}
    assert {kind: each["apiVersion"] for (kind, _), each in objects.items()} == versions
    for (kind, name), each in objects.items():
        if kind == "Deployment":
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items(), name


def test_every_pod_mounts_what_it_declares_and_what_all_share(objects):
    claims = {name for kind, name in objects if kind == "PersistentVolumeClaim"}
    images = set()
    for name, template in pods(objects).items():
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        images.add(container["image"])
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted.keys() == volumes.keys(), name
        assert mounted["shared"] == "/shared"
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] in claims
        environment = {variable["name"]: variable for variable in container["env"]}
        assert environment["KDNAS_CACHE"]["value"].startswith("/shared/")
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"]  # never written into the file
    assert len(images) == 1


def test_workers_and_search_reach_the_head_by_its_service(objects):
    service = objects["Service", "kdnas-ray-head"]["spec"]
    templates = pods(objects)
    assert service["selector"].items() <= templates["kdnas-ray-head"]["metadata"]["labels"].items()
    ports = {port["name"]: port["port"] for port in service["ports"]}
    commands = {name: template["spec"]["containers"][0]["command"] for name, template in templates.items()}
    assert f"--port={ports['gcs']}" in commands["kdnas-ray-head"]
    assert f"--ray-client-server-port={ports['client']}" in commands["kdnas-ray-head"]
    assert f"--address=kdnas-ray-head:{ports['gcs']}" in commands["kdnas-ray-worker"]
    assert f"executor.address=ray://kdnas-ray-head:{ports['client']}" in commands["kdnas-search"]


def test_the_searches_settings_are_those_of_a_study(objects, folder, repository):
    job = pods(objects)["kdnas-search"]["spec"]["containers"][0]["command"]
    script = (folder / "slurm.sh").read_text().rpartition("kdnas search")[2]
    for words in (job, shlex.split(script)):
        settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        executor = load_study(repository / "studies" / "digits", settings).config.executor
        assert executor.type == "ray"
        assert "address" in executor.options


def test_the_slurm_script_is_one(folder):
    subprocess.run(["bash", "-n", folder / "slurm.sh"], check=True)
    text = (folder / "slurm.sh").read_text()
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --ntasks-per-node=1" in text  # one Ray a node


def test_the_page_shows_what_there_is(folder, capsys):
    assert main(["help", "cluster"]) == 0
    page = capsys.readouterr().out
    for name in ("slurm.sh", "kubernetes.yml"):
        assert f"studies/cluster/{name}" in page
        assert (folder / name).is_file()
    (stated,) = [part for part in page.split("\n\n") if part.startswith("  executor:\n")]
    options = yaml.safe_load(stated)["executor"]
    from kdnas.executors import EXECUTORS

    assert EXECUTORS.problems("ray", {name: value for name, value in options.items() if name != "type"}) == []
    assert max(map(len, page.splitlines())) <= 120


def test_the_readme_shows_what_was_measured(folder):
    found = json.loads((folder / "results" / "efficiency.json").read_text())
    readme = (folder / "README.md").read_text()
    for row in found["rows"]:
        shown = f"| {row['workers']} | {row['trials']} | {row['efficiency']:.1%}".replace("%", " %")
        assert shown in readme
    reached = all(row["efficiency"] >= found["goals"]["efficiency"] for row in found["rows"])
    assert reached != ("Both are missed" in readme)


def test_a_study_that_sleeps_has_a_front(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    from sleeping import price, score

    small, large = ({f"layer{place}": width for place in range(1, 9)} for width in (1, 4))
    assert score(small, 1, 1.0, 0, 0.0)["accuracy"] < score(large, 1, 1.0, 0, 0.0)["accuracy"] < 1.0
    assert price(small, 0.0) == {"macs": 8000.0}
    assert price(large, 0.0) == {"macs": 4000.0 + 7 * 16000.0}
