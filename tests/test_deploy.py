"""What `deploy/` holds can be used as it stands: settings that `check` takes, shapes that each platform takes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

from ingest.config.forms import parse_duration
from ingest.config.settings import load, warnings
from ingest.config.variables import VARIABLES

REPOSITORY = Path(__file__).parent.parent
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
PAGE = (REPOSITORY / "docs/deploy.md").read_text()
HEALTH = json.loads(re.search(r"(?m)^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE)[1])
USER = int(re.search(r"(?m)^USER (\d+)", DOCKERFILE)[1])
READ = {name for variable in VARIABLES for name in (variable.name, *variable.fallbacks)}
CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def read_json(name):
    return json.loads((DEPLOY / "ecs" / name).read_text())


def pairs(entries):
    """Name and value, from a list of objects."""
    assert all(entry.keys() == {"name", "value"} for entry in entries)
    return {entry["name"]: entry["value"] for entry in entries}


@cache
def objects():
    """The Kubernetes objects by kind; the two services by name."""
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes/estat-ingest.yaml").read_text()))
    return {o["metadata"]["name"] if o["kind"] == "Service" else o["kind"]: o for o in found}


def stateful_pod():
    return objects()["StatefulSet"]["spec"]["template"]["spec"]


@cache
def compose():
    return yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())


def unit():
    """The settings of the systemd unit, those given twice in a list."""
    found = {}
    for line in (DEPLOY / "systemd/estat-ingest.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def env_file():
    lines = (DEPLOY / "systemd/estat-ingest.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def image():
    """What the image sets for the process."""
    (block,) = re.findall(r"(?m)^ENV ((?:.*\\\n)*.*)$", DOCKERFILE)
    return {
        name: value
        for name, value in (pair.split("=", 1) for pair in block.replace("\\\n", " ").split())
        if name in READ
    }


def given():
    """The variables of each manifest, and how long the platform waits after SIGTERM."""
    (task,) = read_json("task-definition.json")["containerDefinitions"]
    pod = stateful_pod()
    service = compose()["services"]["collector"]
    return {
        "ecs": (pairs(task["environment"]), task["stopTimeout"]),
        "kubernetes": (pairs(pod["containers"][0]["env"]), pod["terminationGracePeriodSeconds"]),
        "compose": (service["environment"], parse_duration(service["stop_grace_period"])),
        "systemd": (env_file(), parse_duration(unit()["TimeoutStopSec"][0])),
    }


def environment(where):
    """What the process there is started with."""
    return {**({} if where == "systemd" else image()), **given()[where][0]}


# ------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("where", given())
def test_every_variable_exists_and_check_has_nothing_to_say(where):
    assert set(given()[where][0]) - READ - CREDENTIALS == set()
    environ = environment(where)
    assert warnings(load(environ), environ, here=False) == []


@pytest.mark.parametrize("where", given())
def test_nobody_kills_a_drain_that_keeps_its_time(where):
    """The process is gone a second after its drain at the latest."""
    settings = load(environment(where))
    assert given()[where][1] >= settings.drain_delay + settings.drain_timeout + 1


def test_the_events_wait_on_the_volume():
    for where, folder in {
        "ecs": read_json("task-definition.json")["containerDefinitions"][0]["mountPoints"][0]["containerPath"],
        "kubernetes": stateful_pod()["containers"][0]["volumeMounts"][0]["mountPath"],
        "compose": compose()["services"]["collector"]["volumes"][0].partition(":")[2],
        "systemd": f"/var/lib/{unit()['StateDirectory'][0]}",
    }.items():
        settings = load(environment(where))
        assert settings.dlq_dir.is_relative_to(folder), where
        assert settings.journal_dir.is_relative_to(folder), where
        assert where == "systemd" or f"VOLUME {folder}" in DOCKERFILE


def test_the_page_names_every_file_and_the_image_is_the_same_everywhere():
    for folder in ("ecs", "kubernetes", "systemd", "haproxy", "compose"):
        for path in (DEPLOY / folder).iterdir():
            assert f"deploy/{folder}/{path.name}" in PAGE
    (task,) = read_json("task-definition.json")["containerDefinitions"]
    assert stateful_pod()["containers"][0]["image"] == task["image"]


# --------------------------------------------------------------------------------------------------------- ECS

CALLS = {
    "task-definition.json": ("ecs", "RegisterTaskDefinition"),
    "service.json": ("ecs", "CreateService"),
    "target-group.json": ("elbv2", "CreateTargetGroup"),
    "scalable-target.json": ("application-autoscaling", "RegisterScalableTarget"),
    "scaling-policy.json": ("application-autoscaling", "PutScalingPolicy"),
    "efs-access-point.json": ("efs", "CreateAccessPoint"),
}


def wrong(shape, value, path=""):
    """Every value that is none of those that its shape lists, which `ParamValidator` does not look at."""
    if shape.type_name == "structure":
        return [found for name, part in value.items() for found in wrong(shape.members[name], part, f"{path}.{name}")]
    if shape.type_name == "list":
        return [found for part in value for found in wrong(shape.member, part, path)]
    listed = getattr(shape, "enum", [])
    return [f"{path}: {value}"] if listed and value not in listed else []


@cache
def shape(service, operation):
    return botocore.session.get_session().get_service_model(service).operation_model(operation).input_shape


def complaints(call, parameters):
    """What the SDK says to a call, names it does not know included; it draws idempotency tokens itself."""
    expected = shape(*call)
    drawn = {name: "drawn" for name, member in expected.members.items() if member.metadata.get("idempotencyToken")}
    report = ParamValidator().validate({**drawn, **parameters}, expected)
    if report.has_errors():
        return report.generate_report()
    return "\n".join(wrong(expected, parameters))


@pytest.mark.parametrize("name", CALLS)
def test_aws_takes_the_call(name):
    assert complaints(CALLS[name], read_json(name)) == ""


def with_efs():
    """The task definition as the page makes it, with jq."""
    task = read_json("task-definition.json")
    del task["ephemeralStorage"]
    return {**task, "volumes": [read_json("efs-volume.json")]}


def test_aws_takes_the_task_on_a_network_disk():
    assert complaints(CALLS["task-definition.json"], with_efs()) == ""
    (filter_,) = re.findall(
        r"jq --slurpfile efs deploy/ecs/efs-volume.json '(.*?)' deploy/ecs/task-definition.json", PAGE
    )
    assert filter_ == "del(.ephemeralStorage) | .volumes = $efs"
    access = read_json("efs-access-point.json")
    assert access["PosixUser"]["Uid"] == access["RootDirectory"]["CreationInfo"]["OwnerUid"] == USER
    assert access["FileSystemId"] == read_json("efs-volume.json")["efsVolumeConfiguration"]["fileSystemId"]


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("task-definition.json", {"cpus": "256"}, "Unknown parameter"),
        ("service.json", {"desiredCount": "2"}, "Invalid type"),
        ("service.json", {"launchType": "FARGATES"}, ".launchType: FARGATES"),
    ],
)
def test_a_slip_in_a_call_is_told(name, change, told):
    assert told in complaints(CALLS[name], {**read_json(name), **change})


def test_the_task_definition_agrees_with_the_image_and_the_settings():
    task = read_json("task-definition.json")
    (container,) = task["containerDefinitions"]
    (options,) = re.findall(r"(?m)^HEALTHCHECK (.*) CMD \[.*\]$", DOCKERFILE)
    check = container["healthCheck"]
    assert check["command"] == ["CMD", *HEALTH]
    assert options == (
        f"--interval={check['interval']}s --timeout={check['timeout']}s"
        f" --start-period={check['startPeriod']}s --retries={check['retries']}"
    )
    settings = load(environment("ecs"))
    assert task["ephemeralStorage"]["sizeInGiB"] << 30 > settings.dlq_max_size_bytes + settings.disk_reserve
    assert int(task["memory"]) << 20 > settings.max_buffer_bytes + (96 << 20)
    ports = {port["name"]: port["containerPort"] for port in container["portMappings"]}
    assert ports == {"http": settings.http_port, "admin": settings.admin_addr[1]}
    assert f"EXPOSE {ports['http']}" in DOCKERFILE
    assert container["mountPoints"][0]["sourceVolume"] == task["volumes"][0]["name"]
    assert container["readonlyRootFilesystem"] is True


def test_the_service_and_its_scaling_speak_of_the_task_and_of_each_other():
    service, group = read_json("service.json"), read_json("target-group.json")
    task = read_json("task-definition.json")
    (container,) = task["containerDefinitions"]
    (balancer,) = service["loadBalancers"]
    assert service["taskDefinition"] == task["family"]
    assert balancer["containerName"] == container["name"]
    assert balancer["containerPort"] == group["Port"] == container["portMappings"][0]["containerPort"]
    assert group["HealthCheckPath"] == "/ready"
    target, policy = read_json("scalable-target.json"), read_json("scaling-policy.json")
    assert target["ResourceId"] == policy["ResourceId"] == f"service/{service['cluster']}/{service['serviceName']}"
    assert target["MinCapacity"] == service["desiredCount"] >= 2


def test_the_task_definition_writes_its_log_where_somebody_can_read_it():
    (container,) = read_json("task-definition.json")["containerDefinitions"]
    log = container["logConfiguration"]
    region = pairs(container["environment"])["AWS_REGION"]
    assert (log["logDriver"], log["options"]["awslogs-region"]) == ("awslogs", region)
    assert f"create-log-group --log-group-name {log['options']['awslogs-group']} " in PAGE


def test_the_image_of_the_task_definition_is_the_one_that_make_push_makes():
    task = read_json("task-definition.json")
    lines = next(block for block in re.findall(r"(?ms)^```sh\n(.*?)^```", PAGE) if "make push" in block)
    (exported,) = re.findall(r"(?m)^export (.*)$", lines)
    (words,) = re.findall(r"(?m)^make (.*)$", lines)
    steps = subprocess.run(
        ["make", "-n", *shlex.split(words)], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    pushed = re.sub(r"(?ms).*(registry=\S+;).*docker push (\S+).*", r"\1 echo \2", steps)
    env = {"PATH": os.environ["PATH"], **dict(pair.split("=") for pair in exported.split())}
    told = subprocess.run(["bash", "-euc", pushed], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == task["containerDefinitions"][0]["image"]
    architecture = {"X86_64": "amd64", "ARM64": "arm64"}[task["runtimePlatform"]["cpuArchitecture"]]
    assert f"--platform linux/{architecture}" in steps


def test_the_policy_allows_what_the_task_definition_puts():
    settings = load(environment("ecs"))
    (statement,) = read_json("task-role-policy.json")["Statement"]
    assert statement["Action"] == "s3:PutObject"
    assert statement["Resource"] == [
        f"arn:aws:s3:::{settings.raw_bucket}/{prefix}/*"
        for prefix in (settings.raw_prefix, settings.dlq_prefix, settings.manifest_prefix)
    ]


# -------------------------------------------------------------------------------------------------- Kubernetes


def test_the_pod_has_no_right_that_it_does_not_need():
    pod = stateful_pod()
    (container,) = pod["containers"]
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["fsGroup"] == USER
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_the_probes_ask_what_the_drain_answers():
    """Only readiness may ask `/ready`: a pod that drains is not a pod to be killed."""
    (container,) = stateful_pod()["containers"]
    settings = load(environment("kubernetes"))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.http_port, "admin": settings.admin_addr[1]}
    ready = container["readinessProbe"]
    assert ready["httpGet"] == {"path": "/ready", "port": "admin"}
    assert ready["periodSeconds"] * ready["failureThreshold"] <= settings.drain_delay
    assert container["livenessProbe"]["exec"]["command"] == HEALTH
    assert container["livenessProbe"]["timeoutSeconds"] > 4, "the command gives up after 4 s by itself"
    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "admin"}


def test_the_volume_of_a_pod_holds_the_queue_and_stays():
    spec = objects()["StatefulSet"]["spec"]
    settings = load(environment("kubernetes"))
    (claim,) = spec["volumeClaimTemplates"]
    (container,) = stateful_pod()["containers"]
    assert claim["metadata"]["name"] == container["volumeMounts"][0]["name"]
    (gib,) = re.findall(r"^(\d+)Gi$", claim["spec"]["resources"]["requests"]["storage"])
    assert int(gib) << 30 > settings.dlq_max_size_bytes + settings.disk_reserve
    assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    (mib,) = re.findall(r"^(\d+)Mi$", container["resources"]["limits"]["memory"])
    assert int(mib) << 20 > settings.max_buffer_bytes + (96 << 20)


def test_the_objects_find_each_other():
    labels = {"app.kubernetes.io/name": "estat-ingest"}
    found = objects()
    stateful = found["StatefulSet"]
    assert {o["apiVersion"] for o in found.values()} == {
        "v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1"
    }  # fmt: skip
    assert stateful["spec"]["template"]["metadata"]["labels"] == labels
    assert stateful["spec"]["selector"]["matchLabels"] == labels
    assert found["estat-ingest"]["spec"]["selector"] == found["estat-ingest-pods"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert stateful["spec"]["serviceName"] == found["estat-ingest-pods"]["metadata"]["name"]
    assert found["estat-ingest-pods"]["spec"]["clusterIP"] == "None"
    assert stateful_pod()["serviceAccountName"] == found["ServiceAccount"]["metadata"]["name"]
    scaled = found["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["kind"] == "StatefulSet"
    assert scaled["scaleTargetRef"]["name"] == stateful["metadata"]["name"]
    assert "replicas" not in stateful["spec"], "each apply would undo what the autoscaler did"
    assert scaled["minReplicas"] > found["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert "cpu" in stateful_pod()["containers"][0]["resources"]["requests"], "what utilization is measured against"


def test_only_prometheus_reaches_the_port_for_operators():
    public, operators = objects()["NetworkPolicy"]["spec"]["ingress"]
    assert public == {"ports": [{"port": "http"}]}
    assert operators["ports"] == [{"port": "admin"}]
    assert operators["from"]
    assert [port["targetPort"] for port in objects()["estat-ingest"]["spec"]["ports"]] == ["http"]


# ------------------------------------------------------------------------------------------- systemd, compose


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    "words", [["verify", "--man=no"], ["security", "--offline=true", "--threshold=15", "--no-pager"]]
)
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path, words):
    path = tmp_path / "estat-ingest.service"
    text = (DEPLOY / "systemd/estat-ingest.service").read_text()
    (program,) = re.findall(r"(?m)^ExecStart=(\S+) serve$", text)
    path.write_text(text.replace(program, "/bin/true"))  # verify looks whether it is there
    done = subprocess.run(["systemd-analyze", *words, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_the_unit_is_installed_where_it_says():
    found = unit()
    (program,) = found["ExecStart"]
    assert f"python3 -m venv {Path(program.split()[0]).parents[1]}\n" in PAGE
    (path,) = found["EnvironmentFile"]
    assert f"deploy/systemd/estat-ingest.env {path}\n" in PAGE
    assert found["RestartPreventExitStatus"] == ["2"]
    assert found["DynamicUser"] == ["yes"]


def test_the_composition_is_whole():
    found = compose()
    collector = found["services"]["collector"]
    for service in found["services"].values():
        assert service.get("depends_on", {}).keys() <= found["services"].keys()
        assert {mount.partition(":")[0] for mount in service.get("volumes", ())} <= found["volumes"].keys()
        assert "build" in service or re.search(r":\w[\w.-]+$", service["image"]), "a tag, and not what is latest"
    assert (DEPLOY / "compose" / collector["build"] / "Dockerfile").exists()
    assert collector["healthcheck"]["test"] == ["CMD", *HEALTH]
    assert collector["read_only"] is True
    assert collector["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in collector["ports"])
    endpoint = re.match(r"http://(\w+):(\d+)$", collector["environment"]["S3_ENDPOINT_URL"])
    assert endpoint[1] in found["services"]
    bucket = found["services"]["bucket"]["command"].split("/")[-1]
    assert collector["environment"]["RAW_BUCKET"] == bucket
