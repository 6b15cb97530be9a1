"""What every test starts from: a service that all of them share, and a channel that only one uses.

`--topology` says what the services of the suite stand on: `embedded`, or Postgres and Redis with one node (`shared`) or
three (`fleet`). A test that is about one of them names it with the mark `topology`; others must pass on each.
"""

import uuid

import pytest

from backends import Backends
from rest import Rest
from runner import Runner
from service import QUICK, Fleet, Gateway, Service


class Crew:
    """Starts runners and services for one test, and sends them home after it."""

    def __init__(self, tmp_path, backends):
        self.tmp_path = tmp_path
        self.backends = backends
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
        if self.backends and not any(switch.startswith("--database-url") for switch in switches):
            switches = (*self.backends.switches(), *switches)
        self.services.append(Service(folder, *switches))
        return self.services[-1]

    def fleet(self, *switches, nodes=3, clocks=()):
        """Nodes that share everything; `switches` say which database and Redis."""
        folder = self.tmp_path / f"fleet-{len(self.services)}"
        folder.mkdir()
        self.services.append(Fleet(folder, switches, nodes, clocks))
        return self.services[-1].start()

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


def pytest_addoption(parser):
    parser.addoption("--topology", choices=("embedded", "shared", "fleet"), default="embedded")


def pytest_collection_modifyitems(config, items):
    """A test with the mark `topology` runs in that one only."""
    here = config.getoption("--topology")
    kept, left_out = [], []
    for item in items:
        wanted = [topology for mark in item.iter_markers("topology") for topology in mark.args]
        (kept if not wanted or here in wanted else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(scope="session")
def backends(request):
    """Postgres and Redis where the topology stands on them; else None."""
    if request.config.getoption("--topology") == "embedded":
        yield None
        return
    both = Backends()
    yield both
    both.remove()


@pytest.fixture(scope="session")
def service(request, backends, tmp_path_factory):
    """Shared: a test that stops, kills or configures a service asks `crew` for its own."""
    folder = tmp_path_factory.mktemp("shared")
    if backends is None:
        shared = Service(folder, *QUICK).start()
    else:
        nodes = 3 if request.config.getoption("--topology") == "fleet" else 1
        shared = Fleet(folder, (*backends.switches(), *QUICK), nodes).start()
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
def saw(record_property, request):
    """Reports what was measured: as a property of the test, and on the terminal with -s."""

    def note(what, **figures):
        text = ", ".join(f"{name} {figure:.3g}" for name, figure in figures.items())
        record_property(what, text)
        print(f"\n{request.node.name}: {what}: {text}")

    return note


@pytest.fixture
def channel():
    """A channel that no other test uses."""
    return f"c-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def crew(tmp_path, backends):
    team = Crew(tmp_path, backends)
    yield team
    team.home()
