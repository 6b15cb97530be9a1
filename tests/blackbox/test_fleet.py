"""Several nodes on one Postgres and one Redis, and what happens when any part of it dies, stalls or comes back."""

import collections
import concurrent.futures
import json
import random
import signal
import statistics
import threading
import time

import pytest
import requests

from backends import Postgres, Redis
from probes import Probes
from service import QUICK, errand
from steady import SteadyPublishers, SteadyRunner
from waiting import eventually, holds, iso
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
def fleet(request, crew, postgres, redis):
    """Three nodes on servers that the test may break; with timings that a test can wait out, unless it brings its own."""
    timings = getattr(request, "param", QUICK)
    nodes = crew.fleet("--database-url", postgres.database(), "--redis-url", redis.url(), *timings)
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
        self.runners = [
            SteadyRunner(addresses, token, channel, f"steady-{channel}-{n}", first=n) for n in range(runners)
        ]
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
        jobs = rest.jobs_of(self.channel)
        assert wanted <= set(jobs), f"{len(wanted - set(jobs))} acknowledged jobs are gone"
        statuses = collections.Counter(job["status"] for job in jobs.values())
        assert set(statuses) == {"completed"}, statuses
        accepted = collections.Counter(
            job_id for runner in self.runners for (job_id, _), taken in runner.receipts.items() if taken
        )
        twice = [job_id for job_id, times in accepted.items() if times > 1]
        assert not twice, f"ended twice: {twice[:5]}"
        for job_id in random.sample(sorted(jobs), min(50, len(jobs))):
            told = [event["event"] for event in rest.events(job_id)]
            assert told.count("completed") == 1 and told[-1] == "completed", told
        return jobs

    def clearly(self):
        """Whoever was refused was told so in the service's own words, or that the outcome is not known."""
        for answer in self.publishers.refusals:
            assert answer[0] in (503, 504) and json.loads(answer[1])["error"], self.publishers.refusals

    def abandon(self):
        self.publishers.stopping.set()
        for runner in self.runners:
            runner.leaving.set()

    def executions(self):
        """How often each job began to run."""
        return collections.Counter(job_id for runner in self.runners for job_id, _ in list(runner.begun))

    def begun(self):
        return sum(len(runner.begun) for runner in self.runners)

    def starts_again(self, what, saw):
        """Jobs begin to run again within 2 s."""
        began, before = time.monotonic(), self.begun()
        eventually("jobs run again", lambda: self.begun() > before + 10, seconds=2, every=0.01)
        saw(what, seconds=time.monotonic() - began)


class Held:
    """A runner on each node with a job that runs on, and that nobody may take from it."""

    def __init__(self, fleet, crew, channel):
        self.rest = fleet.nodes[-1].rest()
        self.assignments = []
        for number, node in enumerate(fleet.nodes):
            runner = crew.runner(node, f"{channel}-held-{number}")
            job_id = self.rest.publish(f"{channel}-held-{number}")
            self.assignments.append((runner, runner.next_assignment(job_id=job_id)))

    def end(self):
        for runner, assignment in self.assignments:
            assert runner.complete(assignment), "the job was taken from its runner"
            job = self.rest.job(assignment.lease.job_id)
            assert (job["status"], job["attempt"]) == ("completed", 1)


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


def test_a_node_dies_under_load(fleet, channel, load, saw):
    load = load()
    load.flows(500)
    saw("publishes a second", rate=load.publishers.rate())
    moved = next(runner for runner in load.runners if runner.sessions == [0])
    fleet.nodes[0].kill()
    load.flows(1500)
    saw("the longest trouble of a publisher", seconds=load.publishers.longest_trouble(), tries=load.publishers.most_tries())
    assert load.publishers.longest_trouble() <= 2.0, load.publishers.refusals
    assert moved.sessions[1:] and 0 not in moved.sessions[1:]
    load.finish()
    assert not any(runner.lost for runner in load.runners), "a runner could not go on with what it ran"


# A runner has the time to come back that it has by default: half of it may pass before a busy machine lets it run.
@pytest.mark.parametrize("fleet", [()], indirect=True, ids=["default timings"])
def test_nodes_restart_one_after_another_under_load(fleet, channel, load, saw):
    load = load()
    load.flows(500)
    saw("publishes a second", rate=load.publishers.rate())
    for node in fleet.nodes:
        addresses = node.http, node.grpc_address
        assert node.stop() == 0
        node.start(*addresses)
        load.flows()
    jobs = load.finish()
    saw("publishes", taken=len(load.publishers.acknowledged), tried_again=len(load.publishers.troubles))
    away = [seconds for runner in load.runners for seconds in runner.away]
    saw("runners were away", times=len(away), longest=max(away))
    again = {job_id: times for job_id, times in load.executions().items() if times > 1}
    assert not again, f"{len(again)} jobs ran more than once; {[runner.troubles for runner in load.runners]}"
    # The number of a lease counts executions that were handed back as well.
    leases = collections.Counter(attempt for runner in load.runners for _, attempt in runner.begun)
    assert set(leases) == {1}, leases
    assert {job["attempt"] for job in jobs.values()} == {1}
    # A publisher that tries once more is served.
    assert load.publishers.most_tries() <= 1, load.publishers.refusals


def test_redis_forgets_everything_under_load(fleet, crew, channel, load, saw):
    load, held = load(), Held(fleet, crew, channel)
    load.flows()
    assert fleet.redis.send("FLUSHALL") == "+OK"
    load.starts_again("starts after FLUSHALL", saw)
    load.flows()
    load.finish()
    # Far longer than a lease since it was forgotten.
    held.end()
    assert not any(times > 1 for times in load.executions().values()), "a running job was taken from its runner"
    load.clearly()


def test_redis_is_killed_and_comes_back_under_load(fleet, crew, channel, load, saw):
    load, held = load(), Held(fleet, crew, channel)
    load.flows()
    fleet.redis.kill()
    load.flows()
    fleet.redis.start()
    load.starts_again("starts after Redis was back", saw)
    load.finish()
    held.end()
    load.clearly()


def test_redis_stands_still_for_half_a_minute(fleet, crew, channel, load, saw):
    load, held = load(per_second=200), Held(fleet, crew, channel)
    load.flows()
    fleet.redis.freeze()
    began = time.monotonic()
    while time.monotonic() - began < 30:
        load.flows(50)
    saw("publishes while Redis stood still", rate=load.publishers.rate(), longest=load.publishers.longest_trouble())
    fleet.redis.thaw()
    load.starts_again("starts after Redis went on", saw)
    # Half a minute of jobs has gathered.
    load.finish(seconds=180)
    held.end()
    load.clearly()


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


@pytest.fixture
def probes(fleet):
    watch = Probes(fleet.nodes)
    yield watch
    watch.stop()


def test_postgres_restarts_under_load(fleet, crew, channel, load, probes, saw):
    load, held = load(), Held(fleet, crew, channel)
    load.flows()
    began = time.monotonic()
    fleet.postgres.stop()
    saw("NOT_SERVING on every node", seconds=probes.seconds_until(False, since=began, patience=2))
    fleet.postgres.start()
    saw("serving on every node", seconds=probes.seconds_until(True, since=time.monotonic(), patience=2))
    load.flows()
    load.finish()
    held.end()
    load.clearly()


def test_an_outage_of_postgres_fills_no_log(fleet, channel):
    node = fleet.nodes[0]
    rest = node.rest()
    rest.publish(channel)
    fleet.postgres.stop()
    for _ in range(40):
        assert rest.post("/api/jobs/publish", {"func": "f", "payload": {}, "channel": channel}).code == 503
    fleet.postgres.start()
    eventually("the node serves again", lambda: requests.get(f"http://{node.http}/readyz", timeout=5).ok, seconds=10)
    # It is over with the first success a second after the last failure.
    ended = "the database takes what it is given again"
    eventually("the end is told", lambda: rest.publish(channel) and ended in node.log.read_text(), every=0.2)
    lines = node.log.read_text().splitlines()
    of_commits = [line for line in lines if "commits" in line]
    begun = [line for line in of_commits if "does not take what it is given" in line]
    over = [line for line in of_commits if ended in line]
    assert (len(begun), len(over)) == (1, 1), of_commits
    assert "40" in over[0], over[0]


def test_postgres_stands_still_for_ten_seconds(fleet, crew, channel, load, probes, saw):
    load, held = load(), Held(fleet, crew, channel)
    load.flows()
    fleet.postgres.freeze()
    began = time.monotonic()
    saw("NOT_SERVING on every node", seconds=probes.seconds_until(False, since=began, patience=2))
    time.sleep(max(0.0, began + 10 - time.monotonic()))
    fleet.postgres.thaw()
    saw("serving on every node", seconds=probes.seconds_until(True, since=time.monotonic(), patience=2))
    load.flows()
    load.finish()
    held.end()
    load.clearly()


def test_one_job_a_key_while_a_node_dies(fleet, channel, saw):
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
    jobs = {job_id for ids in answers for job_id in ids}
    stored = set(fleet.nodes[0].rest().jobs_of(channel))
    saw("keys and jobs", keys=len(answers), answered=len(jobs), stored=len(stored))
    assert len(jobs) == 1000 and stored == jobs


def steering(fleet, crew, channel):
    """Each kind of steering, as the seconds that it took from the call at one node until the runner at another had it."""
    tries = 15
    there, token = fleet.nodes[0], fleet.token("crew", "run_jobs")
    runner = crew.runner(there, channel, capacity=1)
    taken = collections.defaultdict(list)

    def timed(kind, call, until):
        began = time.monotonic()
        call()
        # The call itself may answer only after the runner did.
        until()
        taken[kind].append(time.monotonic() - began)

    def command(runner, kind):
        return lambda: runner.command(kind)

    for number in range(tries):
        rest = fleet.nodes[1 + number % 2].rest()

        def ping(rest=rest):
            assert rest.ok("POST", "/api/jobs/runners/ping", {"runner_id": runner.runner_id, "timeout": 5})["responsive"]

        def order(kind, rest=rest):
            replies = rest.ok("POST", "/api/jobs/runners/broadcast", {"command": kind, "timeout": 5})
            assert runner.runner_id in json.dumps(replies)

        timed("ping", ping, lambda: None)
        job_id = rest.publish(channel)
        assignment = runner.next_assignment(job_id=job_id)
        eventually("it runs", lambda: rest.status(job_id) == "running")
        timed("cancel", lambda: rest.act(job_id, cancel_request=True), lambda: runner.interrupt(assignment))
        runner.canceled(assignment)
        timed("pause", lambda: order("pause"), command(runner, runners_pb2.COMMAND_KIND_PAUSE))
        order("resume")
        runner.command(runners_pb2.COMMAND_KIND_RESUME)
        leaver = crew.runner(there, f"{channel}-leaver", token=token)
        body = {"runner_id": leaver.runner_id, "graceful": True}
        shut_down = command(leaver, runners_pb2.COMMAND_KIND_SHUTDOWN)
        timed("shutdown", lambda: rest.ok("POST", "/api/jobs/runners/shutdown", body), shut_down)
        leaver.close()
    return taken


def test_steering_reaches_a_runner_of_another_node(fleet, crew, channel, saw):
    taken = steering(fleet, crew, channel)
    medians = {kind: statistics.median(seconds) for kind, seconds in taken.items()}
    saw("median seconds until a runner of another node is told", **medians)
    saw("the longest of them", **{kind: max(seconds) for kind, seconds in taken.items()})
    assert set(medians) == {"ping", "cancel", "pause", "shutdown"}
    assert max(medians.values()) <= 0.2, medians


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


def test_a_delayed_job_starts_though_its_node_died(fleet, crew, channel):
    # Nobody leads for a while after the death of the one that does, and the job comes due meanwhile.
    node = eventually("a node leads", fleet.leader)
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


@pytest.fixture
def apart(crew, postgres, redis):
    """Three nodes whose clocks are up to half a minute apart."""
    switches = ("--database-url", postgres.database(), "--redis-url", redis.url(), *QUICK)
    return crew.fleet(*switches, nodes=3, clocks=(0, 30, 15))


def test_clocks_apart_end_no_lease_early(apart, crew, channel, saw):
    # The slowest clock: what another one calls ready would still be to come for this node.
    rest = apart.nodes[0].rest()
    runners = [crew.runner(node, f"{channel}-{number}") for number, node in enumerate(apart.nodes)]
    jobs = [rest.publish(f"{channel}-{number}") for number in range(3)]
    assignments = [runner.next_assignment(job_id=job_id) for runner, job_id in zip(runners, jobs)]
    # Twice the lease of 3 s.
    holds("no lease lapses", lambda: all(rest.status(job_id) == "running" for job_id in jobs), 6)
    for runner in runners:
        runner.fall_silent()
    silent_since = time.monotonic()
    lapsed = {}
    while len(lapsed) < 3:
        assert time.monotonic() < silent_since + 20, lapsed
        for job_id in jobs:
            job = rest.job(job_id)
            if (job["status"], job["attempt"]) != ("running", 1):
                lapsed.setdefault(job_id, time.monotonic() - silent_since)
        time.sleep(0.02)
    saw("a lease of 3 s ended after", first=min(lapsed.values()), last=max(lapsed.values()))
    assert min(lapsed.values()) >= 2.95
    for runner, assignment in zip(runners, assignments):
        assert not runner.complete(assignment)


def test_clocks_apart_start_nothing_twice(apart, crew, channel):
    runners = [crew.runner(node, channel, capacity=30) for node in apart.nodes]
    # Each node reads them by its own clock, so some are due at once, and some half a minute later.
    soon = iso(time.time() + 2)
    jobs = [node.rest().publish(channel, delay=1, expires_in=300) for node in apart.nodes for _ in range(5)]
    jobs += [node.rest().publish(channel, run_at=soon, expires_in=300) for node in apart.nodes for _ in range(5)]
    begun = collections.Counter()

    def take():
        for runner in runners:
            while not runner.idle():
                assignment = runner.next_assignment()
                begun[assignment.job.id] += 1
                assert runner.complete(assignment)
        return len(begun) == len(jobs)

    eventually("every job ran", take, seconds=60)
    # Whoever would start one again has had the time to: the clocks of all nodes have passed every time.
    holds("none starts twice", lambda: take() and max(begun.values()) == 1, 35)
    assert begun == collections.Counter(jobs)
    assert {job["attempt"] for job in apart.nodes[0].rest().jobs_of(channel).values()} == {1}


@pytest.fixture
def counting_postgres():
    """One that counts statements."""
    server = Postgres(shared_preload_libraries="pg_stat_statements").start()
    server.run("CREATE EXTENSION pg_stat_statements")
    yield server
    server.remove()


def test_an_idle_node_is_cheap(crew, counting_postgres, redis, channel, saw):
    postgres, database = counting_postgres, counting_postgres.database()
    (node,) = crew.fleet("--database-url", database, "--redis-url", redis.url(), nodes=1).nodes
    token = node.token("crew", "run_jobs")
    for _ in range(100):
        crew.runner(node, channel, token=token)
    # The fleet hears of each newcomer at once; idle is what comes after.
    eventually("nothing is new any more", lambda: redis.count_calls(2) < 16)
    postgres.run("SELECT pg_stat_statements_reset()")
    began, computed = time.monotonic(), node.process.cpu_seconds()
    calls = redis.count_calls(20)
    seconds = time.monotonic() - began
    computed = node.process.cpu_seconds() - computed
    # Every statement counts, BEGIN, SET and COMMIT as well.
    statements = postgres.statements(database.rsplit("/", 1)[1])
    postgres_rate, redis_rate = sum(statements.values()) / seconds, calls / seconds
    saw("statements a second of an idle node", postgres=postgres_rate, redis=redis_rate, cores=computed / seconds)
    assert postgres_rate + redis_rate < 10, statements
    assert computed / seconds < 0.1


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


ANY_NODE = ("serve", "--http", "off", "--grpc", "127.0.0.1:0")


def lone_node_is_refused(folder, database):
    done = errand(*ANY_NODE, "--data-dir", str(folder), "--database-url", database)
    return done.returncode == 64 and "redis_url" in done.stderr


@pytest.mark.parametrize("shares", [False, True])
def test_no_lone_node_slips_in_once_postgres_was_restarted(crew, postgres, redis, channel, tmp_path, shares):
    database = postgres.database()
    share = ("--redis-url", redis.url()) if shares else ()
    service = crew.service("--database-url", database, *share, *QUICK)
    assert lone_node_is_refused(tmp_path / "other", database)
    runner = crew.runner(service, channel)
    assignment = runner.next_assignment(job_id=service.rest().publish(channel))
    probes = Probes([service])
    began = time.monotonic()
    postgres.stop()
    probes.seconds_until(False, since=began, patience=5)
    postgres.start()
    probes.seconds_until(True, since=time.monotonic(), patience=5)
    probes.stop()
    # A node that serves has the lock again.
    assert lone_node_is_refused(tmp_path / "another", database)
    assert runner.complete(assignment)


def test_of_two_lone_nodes_one_goes_on(crew, postgres, channel):
    database = postgres.database()
    late = crew.service("--database-url", database, *QUICK)
    late.process.child.send_signal(signal.SIGSTOP)
    postgres.stop()
    postgres.start()
    # The lock went with the connection, and its node stands still.
    early = crew.service("--database-url", database, *QUICK)
    runner = crew.runner(early, channel)
    job_id = early.rest().publish(channel)
    assignment = runner.next_assignment(job_id=job_id)
    late.process.child.send_signal(signal.SIGCONT)
    assert late.process.wait(30) == 64
    assert "another errand node uses this database" in late.process.tail()
    assert runner.complete(assignment)
    assert early.rest().job(job_id)["attempt"] == 1
