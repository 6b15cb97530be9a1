"""What every test starts from: a service that all of them share, and a channel that only one uses."""

import uuid

import pytest
from service import QUICK, Runner, Service

import errand


class Crew:
    """Starts runners and services for one test, and ends them after it."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.processes = []
        self.services = []

    def service(self, *switches):
        folder = self.tmp_path / f"service-{len(self.services)}"
        folder.mkdir()
        self.services.append(Service(folder, *switches).start())
        return self.services[-1]

    def runner(self, service, channel, *switches, **options):
        server = options.pop("server", service.url)
        token = options.pop("token", service.run_jobs)
        runner = Runner(self.tmp_path, server, token, channel, *switches, **options)
        self.processes.append(runner)
        return runner

    def home(self):
        for process in [*self.processes, *(service.process for service in self.services)]:
            if process.alive():
                process.kill()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows what the programs of the test wrote last."""
    report = (yield).get_result()
    if report.when != "call" or not report.failed:
        return
    crew = item.funcargs.get("crew")
    for process in crew.processes if crew else ():
        report.sections.append((f"standard error of {process.runner_id}", process.tail()))


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """Shared: a test that stops, kills or configures a service asks `crew` for its own."""
    shared = Service(tmp_path_factory.mktemp("shared"), *QUICK).start()
    yield shared
    shared.process.end()


@pytest.fixture
def client(service):
    with errand.Client(service.url, service.operator) as client:
        yield client


@pytest.fixture
def channel():
    """A channel that no other test uses."""
    return f"c-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def crew(tmp_path):
    crew = Crew(tmp_path)
    yield crew
    crew.home()


@pytest.fixture
def runner(crew, service, channel):
    """A runner of the test's channel with room for ten."""
    return crew.runner(service, channel)
