"""Nodes and programs behind a pooler that lends connections by the transaction, set up as the document says."""

import contextlib
import re
import shutil
import signal
import socket
import time

import psycopg
import pytest

from backends import Backend, starter
from service import QUICK
from test_sql_publish import known, publish
from waiting import eventually, holds
from wire import REPOSITORY

pytestmark = [pytest.mark.topology("shared"), pytest.mark.timeout(120)]

DEAF = "the database delivers no notifications"


def told():
    """The document's settings of a pooler that keeps no prepared statements, and how a node's URL ends there."""
    page = (REPOSITORY / "docs" / "transactional-publish.md").read_text()
    (section,) = re.findall(r"^## Behind a pooler\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    settings, _ = re.findall(r"```ini\n\[pgbouncer\]\n(.*?)```", section, re.DOTALL)
    (ending,) = set(re.findall(r"\?statement-cache-capacity=\d+", section))
    return settings, ending


class PgBouncer(Backend):
    """Before a server, whose databases it passes on under their names."""

    name = "pgbouncer"
    stop_signal = signal.SIGTERM

    def __init__(self, server, settings):
        # Debian keeps it where not everybody looks for programs.
        self.program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        assert self.program, "pgbouncer is missing: install pgbouncer"
        super().__init__()
        folder = starter.private_folder(self.parent, "pgbouncer", self.user)
        self.file = folder / "pgbouncer.ini"
        self.file.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user=errand\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            f"{settings}"
        )
        # Whoever runs the tests may keep others from what they write.
        self.file.chmod(0o644)

    def command(self):
        return [self.program, self.file]

    def answers(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Pooled:
    """A new database, as one reaches it through the pooler."""

    def __init__(self, backends, pooler):
        _, ending = told()
        name = backends.postgres.database().rpartition("/")[2]
        self.url = f"postgres://errand@127.0.0.1:{pooler.port}/{name}"
        self.switches = ("--database-url", self.url + ending, "--redis-url", backends.redis.fresh(), *QUICK)

    def connect(self):
        """As a program of its own; each statement commits by itself, unless it is in a transaction."""
        return psycopg.connect(self.url, autocommit=True, prepare_threshold=None)


@contextlib.contextmanager
def pooler_before(postgres):
    settings, _ = told()
    server = PgBouncer(postgres, settings)
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(scope="module")
def pooler(backends):
    with pooler_before(backends.postgres) as server:
        yield server


@pytest.fixture
def own_pooler(backends):
    """One that a test may break. It goes after those that use it, so `crew` has to be asked for later."""
    with pooler_before(backends.postgres) as server:
        yield server


@pytest.fixture
def pooled(backends, pooler):
    return Pooled(backends, pooler)


@pytest.fixture
def node(crew, pooled):
    return crew.service(*pooled.switches)


@pytest.fixture
def database(pooled, node):
    """Once the node has made the schema."""
    with pooled.connect() as connection:
        yield connection


def ran_once(rest, job_id):
    """It ended well, and its history says that it began once."""
    job = rest.job(job_id)
    told_of = [event["event"] for event in rest.events(job_id)]
    return (job["status"], job["attempt"], told_of) == ("completed", 1, ["created", "running", "completed"])


def says_that_it_is_deaf(node):
    return DEAF in node.log.read_text()


def test_a_node_serves_jobs_from_publish_to_end(node, crew, channel):
    rest, grpc_client = node.rest(), node.grpc()
    runner = crew.runner(node, channel, capacity=10)
    # More of each than a driver needs until it takes a statement for one that is worth keeping.
    ids = [rest.publish(channel, payload={"n": n}) for n in range(20)]
    ids += [grpc_client.publish(channel=channel).id for _ in range(20)]
    for _ in ids:
        assert runner.complete(runner.next_assignment(), result="7")
    assert set(rest.jobs_of(channel)) == set(ids)
    assert all(ran_once(rest, job_id) and rest.job(job_id)["result"] == 7 for job_id in ids)
    retried = rest.publish(channel, max_retries=1, backoff_base=1.0, backoff_max=1)
    assert runner.fail(runner.next_assignment(job_id=retried))
    assert runner.complete(runner.next_assignment(job_id=retried))
    canceled = rest.publish(channel)
    assignment = runner.next_assignment(job_id=canceled)
    rest.act(canceled, cancel_request=True)
    assert runner.interrupt(assignment) and runner.canceled(assignment)
    assert [rest.status(job_id) for job_id in (retried, canceled)] == ["completed", "canceled"]


def test_a_node_says_that_it_hears_no_notifications(node):
    eventually("its log says so", lambda: says_that_it_is_deaf(node))
    assert node.log.read_text().count(DEAF) == 1


def test_a_node_starts_again_on_what_it_made(node, crew, channel):
    job_id = node.rest().publish(channel)
    node.restart()
    runner = crew.runner(node, channel)
    assert runner.complete(runner.next_assignment(job_id=job_id))
    assert ran_once(node.rest(), job_id)


def test_a_job_of_a_transaction_is_taken_up_without_notifications(node, crew, database, channel, saw):
    eventually("the node knows that it is deaf", lambda: says_that_it_is_deaf(node))
    rest, runner = node.rest(), crew.runner(node, channel)
    with database.transaction():
        job_id = publish(database, channel)
        holds("there is no such job yet", lambda: runner.idle() and not known(rest, job_id), seconds=1)
    committed = time.monotonic()
    assignment = runner.next_assignment(job_id=job_id)
    saw("a job that was published in a transaction", seconds_until_a_runner_has_it=time.monotonic() - committed)
    assert runner.complete(assignment)
    holds("it does not run again", runner.idle, seconds=1)
    assert ran_once(rest, job_id)


def test_a_transaction_publishes_several_or_none(node, crew, database, channel):
    rest, runner = node.rest(), crew.runner(node, channel, capacity=60)
    with database.transaction():
        ids = [publish(database, channel, payload={"n": n}) for n in range(50)]
    with database.transaction(force_rollback=True):
        undone = [publish(database, channel) for _ in range(3)]
    with database.transaction():
        with pytest.raises(psycopg.errors.DivisionByZero), database.transaction():
            undone.append(publish(database, channel))
            database.execute("SELECT 1 / 0")
        ids.append(publish(database, channel))
    assignments = [runner.next_assignment() for _ in ids]
    assert sorted(assignment.lease.job_id for assignment in assignments) == sorted(ids)
    assert all(runner.complete(assignment) for assignment in assignments)
    holds("nothing else starts", runner.idle, seconds=1)
    assert set(rest.jobs_of(channel)) == set(ids) and not any(known(rest, job_id) for job_id in undone)
    assert all(ran_once(rest, job_id) for job_id in ids)
    assert database.execute("SELECT count(*) FROM errand.arrivals").fetchone()[0] == 0


def test_two_nodes_share_a_database_behind_it(crew, pooled, channel):
    fleet = crew.fleet(*pooled.switches, nodes=2)
    first, second = fleet.nodes
    runners = [crew.runner(node, channel, capacity=100) for node in fleet.nodes]
    ids = [rest.publish(channel) for rest in (first.rest(), second.rest()) for _ in range(20)]
    with pooled.connect() as connection:
        for _ in range(4):
            with connection.transaction():
                ids += [publish(connection, channel) for _ in range(10)]
    rest = second.rest()

    def all_have_ended():
        for runner in runners:
            while not runner.idle():
                assert runner.complete(runner.next_assignment())
        return all(job["status"] == "completed" for job in rest.jobs_of(channel).values())

    eventually("every job is there", lambda: set(rest.jobs_of(channel)) == set(ids))
    eventually("every job has ended", all_have_ended)
    assert all(ran_once(rest, job_id) for job_id in ids)
    held = rest.publish(f"{channel}-held")
    runner = crew.runner(first, f"{channel}-held")
    assignment = runner.next_assignment(job_id=held)
    rest.act(held, cancel_request=True)
    assert runner.interrupt(assignment), "a cancel reaches a runner of another node"
    for node in fleet.nodes:
        eventually("each says that it hears nothing", lambda node=node: says_that_it_is_deaf(node))


def test_a_pooler_that_starts_again_is_waited_for(own_pooler, backends, crew, channel):
    pooled = Pooled(backends, own_pooler)
    node = crew.service(*pooled.switches)
    runner = crew.runner(node, channel)
    own_pooler.kill()
    own_pooler.start()
    with pooled.connect() as connection:
        job_id = publish(connection, channel)
    assert runner.complete(runner.next_assignment(job_id=job_id))
    assert ran_once(node.rest(), job_id)
