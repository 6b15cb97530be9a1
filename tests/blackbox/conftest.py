"""What every test starts from: a service that all of them share, and a channel that only one uses."""

import uuid

import pytest

from rest import Rest
from runner import Runner
from service import QUICK, Gateway, Service


class Crew:
    """Starts runners and services for one test, and sends them home after it."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.runners = []
        self.services = []

    def runner(self, service, *channels, **options):
        token = options.pop("token", None) or service.token("crew", "run_jobs")
        runner = Runner(service.grpc_address, token, channels, **options)
        self.runners.append(runner)
        return runner

    def service(self, *switches):
        return self.unstarted(*switches).start()

    def unstarted(self, *switches):
        folder = self.tmp_path / f"service-{len(self.services)}"
        folder.mkdir()
        self.services.append(Service(folder, *switches))
        return self.services[-1]

    def home(self):
        for runner in self.runners:
            if not runner.ended.is_set():
                runner.close()
        for service in self.services:
            if service.process and service.process.alive():
                service.kill()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows what the services of the test wrote last."""
    report = (yield).get_result()
    if report.when != "call" or not report.failed:
        return
    services = list(item.funcargs["crew"].services) if "crew" in item.funcargs else []
    if "service" in item.funcargs:
        services.append(item.funcargs["service"])
    for service in filter(lambda service: service.process, services):
        report.sections.append((f"standard error of {service.data_dir}", service.process.tail()))


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """Shared: a test that stops, kills or configures a service asks `crew` for its own."""
    shared = Service(tmp_path_factory.mktemp("shared"), *QUICK).start()
    yield shared
    shared.stop()


@pytest.fixture(scope="session")
def gateway(service, tmp_path_factory):
    remote = Gateway(tmp_path_factory.mktemp("gateway"), service.grpc_address)
    yield remote
    remote.end()


@pytest.fixture(params=["embedded", "standalone"])
def rest(request, service):
    """An operator's REST client, through the gateway in the service and the one before it."""
    if request.param == "embedded":
        return service.rest()
    remote = request.getfixturevalue("gateway")
    return Rest(service, f"http://{remote.address}", service.token("operator", "manage_jobs"))


@pytest.fixture
def grpc_client(service):
    client = service.grpc()
    yield client
    client.close()


@pytest.fixture
def channel():
    """A channel that no other test uses."""
    return f"c-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def crew(tmp_path):
    team = Crew(tmp_path)
    yield team
    team.home()
