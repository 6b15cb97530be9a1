"""What nodes may share in place of one plain Redis: Valkey, Redis over TLS, a cluster, a cluster over TLS."""

import collections
import itertools
import os
import tempfile

import pytest

from backends import Postgres, starter
from redis_kinds import Cluster, TlsRedis, Valkey
from service import QUICK, errand
from steady import SteadyPublishers, SteadyRunner
from waiting import eventually, holds

pytestmark = [pytest.mark.topology("shared"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def postgres():
    server = Postgres().start()
    yield server
    server.remove()


@pytest.fixture
def servers():
    """Takes away what a test has started."""
    started = []

    def start(server):
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.remove()


@pytest.fixture
def authority(monkeypatch):
    """One that the services of the test trust, as an operator tells them to."""
    # Not below the test's own folder: the servers run as another user.
    with tempfile.TemporaryDirectory(prefix="errand-authority-") as folder:
        os.chmod(folder, 0o755)
        made = starter.Authority(folder)
        monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
        yield made


KINDS = ("valkey", "tls", "cluster", "tls-cluster")


@pytest.fixture(params=KINDS)
def shared(request, servers):
    """One of each kind."""
    if request.param == "valkey":
        return servers(Valkey())
    if request.param == "cluster":
        return servers(Cluster())
    authority = request.getfixturevalue("authority")
    return servers(TlsRedis(authority) if request.param == "tls" else Cluster(authority=authority))


def fleet_on(crew, postgres, url, nodes=2):
    return crew.fleet("--database-url", postgres.database(), "--redis-url", url, *QUICK, nodes=nodes)


def channels_on_each_master(cluster):
    """A channel whose keys are on each master."""
    found = {}
    for number in itertools.count():
        found.setdefault(cluster.master_of(f"c-{number}"), f"c-{number}")
        if len(found) == cluster.MASTERS:
            return found


def test_two_nodes_share_it(crew, postgres, shared):
    first, second = fleet_on(crew, postgres, shared.url()).nodes
    channels = [f"c-{number}" for number in range(6)]
    runner = crew.runner(first, *channels, capacity=10)
    rest = second.rest()

    published = [rest.publish(channel) for channel in channels]
    assignments = [runner.next_assignment() for _ in published]
    assert sorted(assignment.job.id for assignment in assignments) == sorted(published)
    running, *others = assignments
    assert all(runner.complete(assignment) for assignment in others)
    rest.act(running.job.id, cancel_request=True)
    assert runner.interrupt(running), "a cancel reaches a runner of another node"
    runner.canceled(running)
    eventually("it is canceled", lambda: rest.status(running.job.id) == "canceled")

    held = rest.publish(channels[0])
    lease = runner.next_assignment(job_id=held)
    shared.restart()
    # Twice the lease: it is not taken from its runner.
    holds("it runs on", lambda: rest.status(held) == "running" and not runner.ended.is_set(), seconds=6)
    for channel in channels:
        job_id = rest.publish(channel)
        assert runner.complete(runner.next_assignment(job_id=job_id)), "starts go on"
    assert runner.complete(lease)
    eventually("it completes", lambda: rest.status(held) == "completed")


def test_a_cluster_fails_over_under_load(crew, postgres, servers, channel):
    cluster = servers(Cluster(replicas=1))
    fleet = fleet_on(crew, postgres, cluster.url())
    token = fleet.token("load", "run_jobs")
    addresses = [node.grpc_address for node in fleet.nodes]
    runners = [SteadyRunner(addresses, token, channel, f"steady-{number}") for number in range(2)]
    eventually("every runner has a session", lambda: all(runner.sessions for runner in runners))
    publishers = SteadyPublishers(fleet.nodes, token, channel, per_second=200, threads=4)

    def ended():
        return sum(len(runner.receipts) for runner in runners)

    for tag in (channel, "leases", "fleet"):
        eventually("the load is on", lambda before=ended(): ended() > before + 100)
        master = cluster.master_of(tag)
        if master.server.child.poll() is None:
            master.kill()
            break
    before = ended()
    eventually("a replica takes its place", lambda: ended() > before + 300, seconds=30)
    publishers.stop()
    assert not publishers.failures, publishers.refusals
    wanted = set(publishers.acknowledged)
    rest = fleet.nodes[0].rest()
    messages = f"/api/jobs/health/{channel}"
    eventually("no job is left", lambda: rest.ok("GET", messages)["data"]["messages"]["total"] == 0, seconds=60)
    accepted = collections.Counter(
        job_id for runner in runners for (job_id, _), taken in runner.receipts.items() if taken
    )
    for runner in runners:
        runner.leave()
    assert wanted <= set(accepted) and set(accepted.values()) == {1}


def test_a_master_that_comes_back_empty_is_filled_anew(crew, postgres, servers):
    """An idle node calls only those that have the leases and the fleet, and they have forgotten nothing."""
    # It is back before another node misses it.
    cluster = servers(Cluster(node_timeout_ms=15_000))
    channels = channels_on_each_master(cluster)
    (node,) = fleet_on(crew, postgres, cluster.url(), nodes=1).nodes
    rest = node.rest()
    jobs = {master: rest.publish(channel) for master, channel in channels.items()}
    windows = {master: f"errand:{{{channel}}}:window" for master, channel in channels.items()}
    for master, window in windows.items():
        eventually("it is lined up", lambda master=master, window=window: master.ask("EXISTS", window) == "1")
    busy = {cluster.master_of(tag) for tag in ("leases", "fleet")}
    for master in set(windows) - busy:
        master.restart()
        cluster.wait()
    for master, channel in channels.items():
        runner = crew.runner(node, channel)
        assert runner.complete(runner.next_assignment(job_id=jobs[master], timeout=10))


def test_a_cluster_is_known_by_any_of_its_nodes(crew, postgres, servers, channel):
    cluster = servers(Cluster(replicas=1))
    named = cluster.nodes[0]
    first, second = fleet_on(crew, postgres, cluster.url(named)).nodes
    runner = crew.runner(first, channel)
    rest = second.rest()
    named.kill()
    job_id = rest.publish(channel)
    assignment = runner.next_assignment(job_id=job_id, timeout=30)
    rest.act(job_id, cancel_request=True)
    assert runner.interrupt(assignment, timeout=30), "nodes hear of each other without it"


def test_one_node_of_a_cluster_is_no_redis(postgres, servers, tmp_path):
    cluster = servers(Cluster())
    url = f"redis://127.0.0.1:{cluster.masters[0].port}"
    done = serve_once(tmp_path, postgres, url)
    assert done.returncode == 64 and "redis+cluster://" in done.stderr, done.stderr


def test_an_authority_that_nobody_trusts_is_refused(postgres, servers, authority, tmp_path, monkeypatch):
    server = servers(TlsRedis(authority))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    done = serve_once(tmp_path, postgres, server.url())
    assert done.returncode == 69, done.stderr
    assert "certificate" in done.stderr and "SSL_CERT_FILE" in done.stderr


def serve_once(tmp_path, postgres, url):
    return errand("serve", "--http", "off", "--grpc", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"),
                  "--database-url", postgres.database(), "--redis-url", url)
