"""What `deploy/` says of the program holds for the program, as far as that shows without a cluster or containers."""

import re
import shlex
import shutil
import subprocess
import tomllib

import grpc
import pytest
import requests
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import ERRAND, errand
from wire import REPOSITORY, code_of

pytestmark = pytest.mark.topology("embedded")

DEPLOY = REPOSITORY / "deploy"
UNITS = {"ms": 0.001, "s": 1, "m": 60}
DATABASES = {"postgres://", "postgresql://"}


@pytest.fixture(scope="module")
def switches():
    """Of `errand serve`, without their dashes."""
    return set(re.findall(r"^\s+--([a-z-]+)", errand("serve", "--help").stdout, re.MULTILINE))


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|)", str(text)).groups()
    return int(number) * UNITS[unit or "s"]


def longest_drain():
    """Every step of a shutdown is bounded; this is what they may take together."""
    bounds = {}
    for source in ("src/server.rs", "src/server/listen.rs"):
        found = re.findall(r"const (\w+): Duration = Duration::from_(secs|millis)\((\d+)\)", (REPOSITORY / source).read_text())
        bounds.update({name: int(number) * (1 if unit == "secs" else 0.001) for name, unit, number in found})
    stops = (REPOSITORY / "src/server.rs").read_text().count(", STOP_TIMEOUT, ")
    assert stops >= 1
    return bounds["GO_AWAY_TIMEOUT"] + bounds["FINISH_TIMEOUT"] + bounds["FLUSH_TIMEOUT"] + stops * bounds["STOP_TIMEOUT"]


def are_switches(variables, switches):
    """Every variable that begins as ours do is read by the program."""
    named = {name.removeprefix("ERRAND_").lower().replace("_", "-") for name in variables if name.startswith("ERRAND_")}
    assert named and named <= switches, named - switches
    return named


def port_of(address):
    return int(address.rsplit(":", 1)[1])


# systemd


def unit():
    """Its sections; a directive that is given twice is there twice."""
    sections, section = {}, None
    for line in (DEPLOY / "errand.service").read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(header.group(1), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def test_the_unit_starts_the_program_as_it_wants_to_be_started(switches):
    service = unit()["Service"]
    (command,) = service["ExecStart"]
    program, verb, *arguments = shlex.split(command)
    assert program.startswith("/") and verb == "serve"
    assert {argument[2:] for argument in arguments if argument.startswith("--")} <= switches
    # It runs as a user of its own, who may not read what is root's.
    assert service["DynamicUser"] == ["yes"]
    name, _, source = service["LoadCredential"][0].partition(":")
    assert arguments[arguments.index("--config") + 1] == f"%d/{name}" and source.startswith("/etc/errand/")
    # The one place that it may write to.
    assert arguments[arguments.index("--data-dir") + 1] == "/var/lib/" + service["StateDirectory"][0]
    assert service["ProtectSystem"] == ["strict"]


def test_the_unit_waits_for_a_drain_and_restarts_what_died():
    service = unit()["Service"]
    assert service["KillSignal"] == ["SIGTERM"]
    assert seconds(service["TimeoutStopSec"][0]) > longest_drain()
    assert service["Restart"] == ["on-failure"]
    assert unit()["Install"]["WantedBy"] == ["multi-user.target"]


def test_systemd_takes_the_unit(tmp_path):
    """Where systemd is; the tests above hold everywhere."""
    verifier = shutil.which("systemd-analyze")
    if not verifier:
        return
    text = (DEPLOY / "errand.service").read_text()
    copy = tmp_path / "errand.service"
    # It wants to see the program where the unit says that it is.
    copy.write_text(text.replace("/usr/local/bin/errand", ERRAND))
    done = subprocess.run([verifier, "verify", "--man=no", str(copy)], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "errand" in line]
    assert done.returncode == 0 and not complaints, done.stderr


# The image


def instructions():
    """Of the Dockerfile: each with its words, of every stage."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line.split(None, 1) for line in lines]


def arguments_of(name):
    return [rest for word, rest in instructions() if word == name]


def binaries():
    found = set()
    for manifest in ("Cargo.toml", "gateway/Cargo.toml"):
        found |= {binary["name"] for binary in tomllib.loads((REPOSITORY / manifest).read_text()).get("bin", [])}
    return found


def test_the_image_is_built_from_what_is_here():
    for copied in arguments_of("COPY"):
        *sources, _target = [word for word in copied.split() if not word.startswith("--")]
        for source in sources:
            if source.startswith("/source/target/release/"):
                assert source.rsplit("/", 1)[1] in binaries()
            else:
                assert (REPOSITORY / source).exists(), source
    (build,) = [command for command in arguments_of("RUN") if "cargo build" in command]
    assert set(re.findall(r"--bin (\S+)", build)) <= binaries()
    assert "--locked" in build and (REPOSITORY / "Cargo.lock").exists()


def test_the_image_starts_the_program_on_the_ports_that_it_tells(switches):
    (environment,) = arguments_of("ENV")
    variables = dict(pair.split("=", 1) for pair in environment.split())
    are_switches(variables, switches)
    (exposed,) = arguments_of("EXPOSE")
    ports = {port_of(variables["ERRAND_HTTP"]), port_of(variables["ERRAND_GRPC"])}
    assert ports == {int(port) for port in exposed.split()}
    assert variables["ERRAND_HTTP"].startswith("0.0.0.0:") and variables["ERRAND_GRPC"].startswith("0.0.0.0:")
    assert arguments_of("ENTRYPOINT") == ['["errand"]'] and arguments_of("CMD") == ['["serve"]']
    assert arguments_of("STOPSIGNAL") == ["SIGTERM"]
    assert arguments_of("USER") and arguments_of("USER") != ["root"]
    (volume,) = arguments_of("VOLUME")
    assert variables["ERRAND_DATA_DIR"].startswith(volume + "/")


# Compose


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def nodes_of(compose):
    return {name: service for name, service in compose["services"].items() if service["image"] == "errand"}


def test_compose_has_two_nodes_that_share_everything(compose, switches):
    nodes = nodes_of(compose)
    assert len(nodes) == 2
    environments = [dict(node["environment"]) for node in nodes.values()]
    for environment in environments:
        are_switches(environment, switches)
    assert len({environment.pop("ERRAND_NODE_ID") for environment in environments}) == 2
    assert environments[0] == environments[1]
    shared = environments[0]
    assert re.match(r"postgres://\w+:\w+@postgres/errand$", shared["ERRAND_DATABASE_URL"])
    assert re.match(r"redis://redis:6379/0$", shared["ERRAND_REDIS_URL"])
    postgres = compose["services"]["postgres"]
    user, password = re.match(r"postgres://(\w+):(\w+)@", shared["ERRAND_DATABASE_URL"]).groups()
    assert (user, password) == (postgres["environment"]["POSTGRES_USER"], postgres["environment"]["POSTGRES_PASSWORD"])
    assert int(postgres["image"].partition(":")[2]) >= 15
    assert int(compose["services"]["redis"]["image"].partition(":")[2]) >= 7


def test_compose_starts_nodes_after_what_they_need(compose):
    for node in nodes_of(compose).values():
        assert node["depends_on"] == {
            "postgres": {"condition": "service_healthy"}, "redis": {"condition": "service_healthy"}
        }
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        assert seconds(service["healthcheck"]["interval"]) >= seconds(service["healthcheck"].get("timeout", "1s")) / 10


def test_compose_gives_nodes_the_time_and_the_files_that_they_need(compose):
    for node in nodes_of(compose).values():
        assert seconds(node["stop_grace_period"]) > longest_drain()
        assert node["environment"]["ERRAND_AUTH_SECRET_FILE"] == f"/run/secrets/{node['secrets'][0]}"
        context = (DEPLOY / node["build"]["context"]).resolve()
        assert context == REPOSITORY and (context / node["build"]["dockerfile"]).exists()
    # What compose mounts is not in the repository, and must not get there.
    (secret,) = compose["secrets"].values()
    ignored = subprocess.run(["git", "check-ignore", "-q", str(DEPLOY / secret["file"])], cwd=REPOSITORY)
    assert ignored.returncode == 0
    named = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    assert named == set(compose["volumes"])


def test_no_two_nodes_of_compose_want_the_same_port(compose):
    published = [port for node in nodes_of(compose).values() for port in node["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in published), "there is no TLS"
    hosts = [port.split(":")[1] for port in published]
    assert len(set(hosts)) == len(hosts)
    (exposed,) = arguments_of("EXPOSE")
    assert {port.split(":")[2] for port in published} == set(exposed.split())


def test_the_health_check_of_a_node_tells_whether_it_is_ready(compose, service):
    for node in nodes_of(compose).values():
        kind, *command = node["healthcheck"]["test"]
        assert kind == "CMD"
        here = [word.replace("/127.0.0.1/8080", "/" + service.http.replace(":", "/")) for word in command]
        assert here != command
        assert subprocess.run(here, timeout=10).returncode == 0
        nowhere = [word.replace("/127.0.0.1/8080", "/127.0.0.1/1") for word in command]
        assert subprocess.run(nowhere, timeout=10, stderr=subprocess.DEVNULL).returncode != 0
        elsewhere = [word.replace("/readyz", "/no-such-path") for word in here]
        assert subprocess.run(elsewhere, timeout=10).returncode != 0


# Kubernetes


@pytest.fixture(scope="module")
def manifests():
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "errand.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(manifests):
    return manifests["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (only,) = pod["containers"]
    return only


def test_kubernetes_keeps_enough_equal_nodes(manifests):
    deployment, budget = manifests["Deployment"]["spec"], manifests["PodDisruptionBudget"]["spec"]
    assert deployment["replicas"] >= 2
    assert 1 <= budget["minAvailable"] < deployment["replicas"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (deployment["selector"]["matchLabels"], budget["selector"]["matchLabels"],
                     manifests["Service"]["spec"]["selector"]):
        assert selector.items() <= labels.items()


def test_kubernetes_starts_the_program_with_switches_that_it_has(container, switches):
    command = [*container.get("command", []), *container["args"]]
    assert command[0] == "serve"
    assert {word[2:].split("=")[0] for word in command if word.startswith("--")} <= switches
    given = are_switches([variable["name"] for variable in container["env"]], switches)
    assert {"database-url", "redis-url", "auth-secret-file"} <= given


def test_the_ports_of_kubernetes_are_those_that_the_program_listens_on(manifests, container):
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert named == {"http": port_of(values["ERRAND_HTTP"]), "grpc": port_of(values["ERRAND_GRPC"])}
    for port in manifests["Service"]["spec"]["ports"]:
        assert port["targetPort"] == port["name"] and port["name"] in named


def test_no_secret_is_in_the_manifests(manifests, pod, container):
    assert "Secret" not in manifests
    for variable in container["env"]:
        value = variable.get("value", "")
        assert not re.search(r"://[^/]*:[^/]*@", value), variable["name"]
        if variable["name"] in ("ERRAND_DATABASE_URL", "ERRAND_REDIS_URL"):
            assert variable["valueFrom"]["secretKeyRef"]["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    secret = next(volume for volume in volumes.values() if "secret" in volume)
    file = next(variable["value"] for variable in container["env"] if variable["name"] == "ERRAND_AUTH_SECRET_FILE")
    assert file in [f"{mounts[secret['name']]}/{item['path']}" for item in secret["secret"]["items"]]


def test_the_keys_of_the_secret_are_those_that_the_comment_makes(pod, container):
    comment = (DEPLOY / "kubernetes" / "errand.yaml").read_text().split("apiVersion")[0]
    made = set(re.findall(r"--from-literal=([a-z-]+)=", comment))
    used = {variable["valueFrom"]["secretKeyRef"]["key"] for variable in container["env"]
            if "secretKeyRef" in variable.get("valueFrom", {})}
    used |= {item["key"] for volume in pod["volumes"] if "secret" in volume for item in volume["secret"]["items"]}
    assert used == made


def test_the_files_that_the_program_writes_have_a_place(pod, container):
    assert container["securityContext"]["readOnlyRootFilesystem"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in empty]
    assert any(values["ERRAND_DATA_DIR"].startswith(path + "/") for path in writable)
    assert container["workingDir"] in writable, "the image's own may not be entered by another user"


def test_the_probes_ask_what_the_program_answers(container, service):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probe = container["readinessProbe"]["grpc"]
    assert probe["port"] == ports["grpc"]
    with grpc.insecure_channel(service.grpc_address) as plain:
        stub = health_pb2_grpc.HealthStub(plain)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=probe["service"]), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        unknown = health_pb2.HealthCheckRequest(service=probe["service"] + "x")
        assert code_of(lambda: stub.Check(unknown, timeout=5)) == grpc.StatusCode.NOT_FOUND
    for kind in ("startupProbe", "livenessProbe"):
        # Liveness must not follow the database, as the gRPC health does.
        asked = container[kind]["httpGet"]
        assert asked == {"path": "/livez", "port": "http"}
        assert requests.get(f"http://{service.http}{asked['path']}", timeout=5).status_code == 200


def test_kubernetes_waits_for_a_drain(pod):
    assert pod["terminationGracePeriodSeconds"] > longest_drain()
