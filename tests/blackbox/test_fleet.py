"""Several nodes on one Postgres and one Redis, and what happens when any part of it dies, stalls or comes back."""

import collections
import concurrent.futures
import json
import threading
import time

import pytest
import requests

from backends import Postgres, Redis
from service import QUICK, errand
from steady import SteadyPublishers, SteadyRunner
from waiting import eventually, holds
from wire import jobs_pb2, runners_pb2

pytestmark = [pytest.mark.topology("fleet"), pytest.mark.timeout(300)]


@pytest.fixture
def postgres():
    server = Postgres().start()
    yield server
    server.remove()


@pytest.fixture
def redis():
    server = Redis().start()
    yield server
    server.remove()


@pytest.fixture
def fleet(crew, postgres, redis):
    """Three nodes on servers that the test may break."""
    nodes = crew.fleet("--database-url", postgres.database(), "--redis-url", redis.url(), *QUICK)
    nodes.postgres, nodes.redis = postgres, redis
    return nodes


@pytest.fixture
def load(fleet, channel):
    """Starts it; a test that fails does not leave it running."""
    loads = []

    def start(**publishing):
        loads.append(Load(fleet, channel, **publishing))
        return loads[-1]

    yield start
    for running in loads:
        running.abandon()


class Load:
    """Publishers and runners on every node, and what must hold once they are done."""

    def __init__(self, fleet, channel, runners=3, **publishing):
        self.fleet = fleet
        self.channel = channel
        token = fleet.token("load", "run_jobs")
        # A restarted node keeps its address only where it was told one: runners ask for it anew.
        addresses = Addresses(fleet)
        self.runners = [SteadyRunner(addresses, token, channel, f"steady-{channel}-{n}") for n in range(runners)]
        eventually("every runner has a session", lambda: all(runner.sessions for runner in self.runners))
        self.publishers = SteadyPublishers(fleet.nodes, token, channel, **publishing)

    def flows(self, jobs=200):
        before = len(self.publishers.acknowledged)
        eventually("the load is on", lambda: len(self.publishers.acknowledged) >= before + jobs, seconds=60)

    def finish(self, seconds=60):
        """Stops publishing, waits until every acknowledged job has completed, and checks that each did so once."""
        self.publishers.stop()
        assert not self.publishers.failures, self.publishers.refusals
        rest = self.fleet.nodes[-1].rest()
        eventually("no job is left", lambda: unfinished(rest, self.channel) == 0, seconds=seconds, every=0.2)
        for runner in self.runners:
            runner.leave()
        wanted = set(self.publishers.acknowledged)
        ends = ends_by_job(rest, self.channel)
        assert wanted <= set(ends), f"{len(wanted - set(ends))} acknowledged jobs are gone"
        assert set(ends.values()) <= {"completed"}, collections.Counter(ends.values())
        accepted = collections.Counter(
            job_id for runner in self.runners for (job_id, _), taken in runner.receipts.items() if taken
        )
        twice = [job_id for job_id, times in accepted.items() if times > 1]
        assert not twice, f"ended twice: {twice[:5]}"

    def abandon(self):
        self.publishers.stopping.set()
        for runner in self.runners:
            runner.leaving.set()

    def executions(self):
        """How often each job began to run."""
        return collections.Counter(job_id for runner in self.runners for job_id, _ in runner.begun)


class Addresses(collections.abc.Sequence):
    def __init__(self, fleet):
        self.fleet = fleet

    def __len__(self):
        return len(self.fleet.nodes)

    def __getitem__(self, at):
        return self.fleet.nodes[at].grpc_address


def unfinished(rest, channel):
    messages = rest.ok("GET", f"/api/jobs/health/{channel}")["data"]["messages"]
    return messages["total"] + messages["scheduled"]


def active_runners(rest, channel):
    return rest.ok("GET", f"/api/jobs/health/{channel}")["data"]["runners"]["active"]


def ends_by_job(rest, channel):
    ends = {}
    start = 0
    while True:
        page = rest.ok("GET", "/api/jobs/job", channel=channel, size=1000, start=start, graph="status")["data"]
        ends.update({job["id"]: job["status"] for job in page})
        if len(page) < 1000:
            return ends
        start += 1000


def is_ready(node):
    try:
        return requests.get(f"http://{node.http}/readyz", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def lives(node):
    return requests.get(f"http://{node.http}/livez", timeout=5).status_code == 200


def starts_within(load, seconds):
    """Whether jobs begin to run again that soon."""
    before = sum(load.executions().values())
    eventually("jobs run again", lambda: sum(load.executions().values()) > before + 10, seconds=seconds)


def test_a_node_dies_under_load(fleet, channel, load):
    load = load()
    load.flows()
    fleet.nodes[0].kill()
    load.flows(1500)
    assert load.publishers.longest_trouble() <= 2.0, load.publishers.refusals
    load.finish()


def test_nodes_restart_one_after_another_under_load(fleet, channel, load):
    load = load()
    load.flows()
    for node in fleet.nodes:
        addresses = node.http, node.grpc_address
        assert node.stop() == 0
        node.start(*addresses)
        load.flows()
    load.finish()
    again = {job_id: times for job_id, times in load.executions().items() if times > 1}
    assert not again, f"{len(again)} jobs ran more than once"
    attempts = collections.Counter(attempt for runner in load.runners for _, attempt in runner.begun)
    assert set(attempts) == {1}, attempts
    # A publisher that tries once more is served.
    assert load.publishers.longest_trouble() <= 2.0, load.publishers.refusals


def test_redis_forgets_everything_under_load(fleet, channel, load):
    load = load()
    load.flows()
    assert fleet.redis.send("FLUSHALL") == "+OK"
    starts_within(load, 2)
    load.flows()
    load.finish()
    assert not any(times > 1 for times in load.executions().values()), "a running job was taken from its runner"


def test_redis_is_killed_and_comes_back_under_load(fleet, channel, load):
    load = load()
    load.flows()
    fleet.redis.kill()
    load.flows()
    fleet.redis.start()
    starts_within(load, 2)
    load.finish()


def test_redis_stands_still_for_half_a_minute(fleet, channel, load):
    load = load()
    load.flows()
    fleet.redis.freeze()
    began = time.monotonic()
    load.flows()
    while time.monotonic() - began < 30:
        load.flows(50)
    fleet.redis.thaw()
    starts_within(load, 2)
    # Half a minute of jobs has gathered.
    load.finish(seconds=180)


def test_running_jobs_outlive_a_frozen_redis(fleet, crew, channel):
    runner = crew.runner(fleet.nodes[0], channel, capacity=1)
    job_id = fleet.nodes[1].rest().publish(channel)
    assignment = runner.next_assignment(job_id=job_id)
    fleet.redis.freeze()
    # Far longer than the lease; the runner goes on naming it all the while.
    holds("nobody takes the job away", lambda: not runner.ended.is_set(), seconds=8)
    fleet.redis.thaw()
    assert runner.complete(assignment)
    rest = fleet.nodes[1].rest()
    assert (rest.status(job_id), rest.job(job_id)["attempt"]) == ("completed", 1)


def test_postgres_restarts_under_load(fleet, channel, load):
    load = load()
    load.flows()
    fleet.postgres.stop()
    for node in fleet.nodes:
        eventually("the node says that it does not serve", lambda node=node: not is_ready(node), seconds=2)
        assert lives(node)
    fleet.postgres.start()
    for node in fleet.nodes:
        eventually("the node serves again", lambda node=node: is_ready(node), seconds=2)
    load.flows()
    load.finish()


def test_postgres_stands_still_for_ten_seconds(fleet, channel, load):
    load = load()
    load.flows()
    fleet.postgres.freeze()
    began = time.monotonic()
    for node in fleet.nodes:
        eventually("the node says that it does not serve", lambda node=node: not is_ready(node), seconds=2.5)
        assert lives(node)
    time.sleep(max(0.0, began + 10 - time.monotonic()))
    fleet.postgres.thaw()
    for node in fleet.nodes:
        eventually("the node serves again", lambda node=node: is_ready(node), seconds=2)
    load.flows()
    load.finish()


def test_one_job_a_key_while_a_node_dies(fleet, channel):
    token = fleet.token("keys")
    urls = [f"http://{node.http}/api/jobs/publish" for node in fleet.nodes]
    killed = threading.Event()

    def publish(number):
        if number == 400:
            fleet.nodes[1].kill()
            killed.set()
        body = {"func": "f", "payload": {"n": number}, "channel": channel, "idempotency_key": f"{channel}-{number}"}
        ids = set()
        # Whoever is not sure tries again elsewhere; so does, now and then, whoever is.
        for attempt in range(40):
            try:
                reply = requests.post(
                    urls[(number + attempt) % 3], json=body, headers={"Authorization": f"Bearer {token}"}, timeout=10
                )
            except requests.RequestException:
                time.sleep(0.05)
                continue
            assert reply.status_code in (200, 503), reply.text
            if reply.status_code == 200:
                ids.add(reply.json()["job_id"])
                if len(ids) > 1 or attempt >= number % 3:
                    return ids
        return ids

    with concurrent.futures.ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(publish, range(1000)))
    assert killed.is_set()
    assert all(len(ids) == 1 for ids in answers)
    rest = fleet.nodes[0].rest()
    assert set(ends_by_job(rest, channel)) == {job_id for ids in answers for job_id in ids}


def test_steering_reaches_a_runner_of_another_node(fleet, crew, channel):
    there, here = fleet.nodes[0], fleet.nodes[2]
    runner = crew.runner(there, channel, capacity=1)
    rest = here.rest()
    assert rest.ok("POST", "/api/jobs/runners/ping", {"runner_id": runner.runner_id, "timeout": 5})["responsive"]
    job_id = rest.publish(channel)
    assignment = runner.next_assignment(job_id=job_id)
    eventually("it runs", lambda: rest.status(job_id) == "running")
    began = time.monotonic()
    rest.act(job_id, cancel_request=True)
    assert runner.interrupt(assignment).reason == runners_pb2.INTERRUPT_REASON_REQUESTED
    assert time.monotonic() - began < 5
    runner.canceled(assignment)
    replies = rest.ok("POST", "/api/jobs/runners/broadcast", {"command": "pause", "timeout": 5})
    assert runner.runner_id in json.dumps(replies)
    runner.command(runners_pb2.COMMAND_KIND_PAUSE)
    rest.ok("POST", "/api/jobs/runners/shutdown", {"runner_id": runner.runner_id, "graceful": True})
    runner.command(runners_pb2.COMMAND_KIND_SHUTDOWN)


def test_a_runner_id_is_one_runner_on_every_node(fleet, crew, channel):
    runner = crew.runner(fleet.nodes[0], channel)
    with pytest.raises(Exception, match="another live session"):
        crew.runner(fleet.nodes[1], channel, runner_id=runner.runner_id)
    listed = fleet.nodes[2].rest().ok("GET", "/api/jobs/runners")["data"]
    assert [entry["runner_id"] for entry in listed if entry["alive"]] == [runner.runner_id]


def test_a_session_goes_on_at_another_node(fleet, crew, channel):
    runner = crew.runner(fleet.nodes[0], channel)
    job_id = fleet.nodes[1].rest().publish(channel)
    assignment = runner.next_assignment(job_id=job_id)
    runner.drop()
    back = crew.runner(fleet.nodes[1], channel, runner_id=runner.runner_id, session_id=runner.welcome.session_id,
                       leases=[assignment.lease])
    assert not back.welcome.lost
    assert back.complete(assignment)
    assert fleet.nodes[2].rest().job(job_id)["attempt"] == 1


def test_a_watch_hears_of_other_nodes(fleet, channel):
    client = fleet.nodes[0].grpc()
    stream = client.jobs.WatchJobs(jobs_pb2.WatchJobsRequest(channel=channel), timeout=60)
    heard = []
    threading.Thread(target=lambda: heard.extend(next(stream) for _ in range(1)), daemon=True).start()
    rest = fleet.nodes[1].rest()
    eventually("the watch hears of it", lambda: heard or not rest.publish(channel), every=0.2)
    stream.cancel()


def leader_of(fleet):
    """The node that leads: its name has its process id."""
    holder = fleet.nodes[0].rest().ok("GET", "/api/jobs/stats")["data"]["scheduler"]["lock_holder"]
    return next((node for node in fleet.nodes if f"-{node.process.child.pid}-" in (holder or "")), None)


def test_a_delayed_job_starts_though_its_node_died(fleet, crew, channel):
    # Nobody leads for a while after the death of the one that does, and the job comes due meanwhile.
    node = eventually("a node leads", lambda: leader_of(fleet))
    other = next(other for other in fleet.nodes if other is not node)
    job_id = node.rest().publish(channel, delay=1)
    node.kill()
    runner = crew.runner(other, channel)
    assert runner.next_assignment(job_id=job_id)


def test_a_broadcast_reaches_the_runners_of_every_node(fleet, crew, channel):
    runners = [crew.runner(node, channel) for node in fleet.nodes]
    rest = fleet.nodes[0].rest()
    eventually("all are known", lambda: active_runners(rest, channel) == 3)
    parent = rest.publish(channel, broadcast=True)
    for runner in runners:
        runner.complete(runner.next_assignment())
    eventually("the parent completes", lambda: rest.status(parent) == "completed")


def test_clocks_half_a_minute_apart_do_no_harm(crew, postgres, redis, channel):
    switches = ("--database-url", postgres.database(), "--redis-url", redis.url(), *QUICK)
    fleet = crew.fleet(*switches, nodes=3, clocks=(0, 30, -30))
    runner = crew.runner(fleet.nodes[1], channel, capacity=10)
    rest = fleet.nodes[2].rest()
    jobs = [rest.publish(channel) for _ in range(5)]
    assignments = [runner.next_assignment() for _ in jobs]
    # Longer than the lease of 3 s.
    holds("no lease lapses", lambda: not runner.ended.is_set() and all(rest.status(j) == "running" for j in jobs), 6)
    for assignment in assignments:
        assert runner.complete(assignment)
    delayed = [node.rest().publish(channel, delay=1) for node in fleet.nodes]
    begun = collections.Counter()
    for _ in delayed:
        assignment = runner.next_assignment(timeout=60)
        begun[assignment.job.id] += 1
        runner.complete(assignment)
    assert begun == collections.Counter(delayed)
    holds("none starts twice", runner.idle, 3)


def test_an_idle_node_is_cheap(crew, postgres, redis, channel):
    database = postgres.database()
    (node,) = crew.fleet("--database-url", database, "--redis-url", redis.url(), nodes=1).nodes
    token = node.token("crew", "run_jobs")
    for _ in range(100):
        crew.runner(node, channel, token=token)
    name = database.rsplit("/", 1)[1]

    def statements():
        counted = postgres.run(f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'")
        return int(counted)

    # The fleet hears of each newcomer at once; idle is what comes after.
    eventually("nothing is new any more", lambda: redis.count_calls(2) < 16)
    before, began = statements(), time.monotonic()
    calls = redis.count_calls(15)
    per_second = (statements() - before + calls) / (time.monotonic() - began)
    assert per_second < 10, f"{per_second:.1f} statements a second"


def test_a_redis_of_another_database_is_refused(crew, postgres, redis, tmp_path):
    crew.fleet("--database-url", postgres.database(), "--redis-url", redis.url(), nodes=1)
    done = errand("serve", "--http", "off", "--grpc", "127.0.0.1:0", "--data-dir", str(tmp_path / "other"),
                  "--database-url", postgres.database(), "--redis-url", redis.url())
    assert done.returncode == 64, done.stderr
    assert "redis_url" in done.stderr


def test_postgres_alone_serves_one_node(crew, postgres, channel):
    service = crew.service("--database-url", postgres.database(), *QUICK)
    runner = crew.runner(service, channel)
    job_id = service.rest().publish(channel)
    runner.complete(runner.next_assignment(job_id=job_id))
    eventually("it completes", lambda: service.rest().status(job_id) == "completed")
