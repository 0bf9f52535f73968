"""The example for Kubernetes: valid by its schema, and by the commands that it runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker
from jsonschema import Draft202012Validator

from daskgmm.cli import main

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests" / "data" / "kubernetes.json").read_text())
DOCUMENTS = list(yaml.safe_load_all((ROOT / "examples" / "kubernetes" / "fit.yaml").read_text()))
KINDS = {
    ("apps/v1", "Deployment"): "io.k8s.api.apps.v1.Deployment",
    ("batch/v1", "Job"): "io.k8s.api.batch.v1.Job",
    ("v1", "PersistentVolumeClaim"): "io.k8s.api.core.v1.PersistentVolumeClaim",
    ("v1", "Service"): "io.k8s.api.core.v1.Service",
}
COMMANDS = {
    ("daskgmm", "fit"): main.commands["fit"],
    ("dask", "scheduler"): dask_scheduler,
    ("dask", "worker"): dask_worker,
}


def errors(document: Any) -> list[str]:
    """What its schema does not allow."""
    kind = KINDS[document["apiVersion"], document["kind"]]
    validator = Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{kind}"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def named(kind: str, name: str) -> Any:
    (found,) = (d for d in DOCUMENTS if d["kind"] == kind and d["metadata"]["name"] == name)
    return copy.deepcopy(found)


def pod(document: Any) -> Any:
    return document["spec"]["template"]["spec"]


PODS = [d for d in DOCUMENTS if d["kind"] in ("Deployment", "Job")]
CONTAINERS = [pod(d)["containers"][0] for d in PODS]
NAMES = [c["name"] for c in CONTAINERS]


def parsed(container: Any) -> dict[str, Any]:
    """The options of the command that a container runs, as the command itself reads them."""
    first, second, *words = container["args"]
    return COMMANDS[first, second].make_context(second, words).params


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['kind']} {d['metadata']['name']}")
def test_each_document_is_valid(document: Any) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert errors(document) == []


def test_the_schema_is_strict() -> None:
    job = named("Job", "daskgmm-fit")
    pod(job)["restartsPolicy"] = pod(job).pop("restartPolicy")
    pod(job)["containers"][0]["args"].append(5)
    del pod(job)["containers"][0]["name"]
    job["spec"]["backoffLimit"] = "6"
    told = "\n".join(errors(job))
    for piece in (
        "'restartsPolicy' was unexpected",
        "5 is not of type",
        "'name' is a required",
        "'6' is not of type",
    ):
        assert piece in told


@pytest.mark.parametrize("container", CONTAINERS, ids=NAMES)
def test_each_command_takes_its_options(container: Any) -> None:
    parsed(container)
    container = {**container, "args": [*container["args"], "--no-such-option"]}
    with pytest.raises(click.NoSuchOption):
        parsed(container)


def test_the_parts_find_each_other() -> None:
    scheduler, service = named("Deployment", "daskgmm-scheduler"), named("Service", "daskgmm-scheduler")
    (port,) = service["spec"]["ports"]
    (opened,) = pod(scheduler)["containers"][0]["ports"]
    assert service["spec"]["selector"] == scheduler["spec"]["template"]["metadata"]["labels"]
    assert port["targetPort"] == opened["name"]
    options = dict(zip(NAMES, map(parsed, CONTAINERS), strict=True))
    address = f"tcp://{service['metadata']['name']}:{port['port']}"
    assert options["scheduler"]["port"] == str(opened["containerPort"])
    assert options["worker"]["scheduler"] == options["fit"]["scheduler"] == address
    for deployment in (scheduler, named("Deployment", "daskgmm-worker")):
        spec = deployment["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert len({c["image"] for c in CONTAINERS}) == 1


def test_the_job_keeps_a_checkpoint_and_knows_the_exit_codes() -> None:
    job = named("Job", "daskgmm-fit")
    options = parsed(pod(job)["containers"][0])
    (volume,) = pod(job)["volumes"]
    (mount,) = pod(job)["containers"][0]["volumeMounts"]
    assert volume["name"] == mount["name"]
    named("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    assert options["out"].startswith(mount["mountPath"])
    assert options["checkpoint"].startswith("s3://")
    assert options["overwrite"]
    assert pod(job)["restartPolicy"] == "Never"
    final = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert final["containerName"] == "fit"
    assert final["values"] == [2, 3, 4]
    told = main.epilog or ""
    for code, what in ((2, "wrong usage"), (3, "not converged"), (4, "bad data"), (5, "interrupted")):
        assert f"  {code}  {what}" in told
