"""Jobs that another program publishes in its own transaction, by the SQL function `errand.publish`."""

import concurrent.futures
import json
import os
import re
import subprocess
import sys
import threading
import time

import psycopg
import pytest
from psycopg.types.json import Jsonb

from service import QUICK
from waiting import eventually, holds, iso, moment
from wire import REPOSITORY

pytestmark = [pytest.mark.topology("shared", "fleet"), pytest.mark.timeout(180)]

OWNER = "errand"  # The role that the tests' database URLs name.
FAR = 4_102_444_800.5  # In the year 2100.


def url_of(service):
    """The database of a service."""
    node = getattr(service, "nodes", [service])[0]
    return node.switches[node.switches.index("--database-url") + 1]


@pytest.fixture
def database(service):
    """A connection in which each statement commits by itself, unless it is in a transaction."""
    with psycopg.connect(url_of(service), autocommit=True) as connection:
        yield connection


@pytest.fixture
def rest(service):
    return service.rest()


def publish(connection, channel, func="tests.echo", payload=None, **options):
    named = "".join(f", {name} => %({name})s" for name in options)
    statement = f"SELECT errand.publish(%(func)s, %(payload)s, channel => %(channel)s{named})"
    values = {"func": func, "payload": Jsonb({} if payload is None else payload), "channel": channel, **options}
    return connection.execute(statement, values).fetchone()[0]


def known(rest, job_id):
    return rest.get(f"/api/jobs/job/{job_id}").code == 200


def test_a_job_exists_once_its_transaction_has_committed(service, crew, rest, database, channel):
    runner = crew.runner(service, channel)
    with database.transaction():
        job_id = publish(database, channel, payload={"n": 1})
        holds("there is no such job yet", lambda: runner.idle() and not known(rest, job_id), seconds=1)
    assignment = runner.next_assignment(job_id=job_id)
    assert json.loads(assignment.job.payload_json) == {"n": 1}
    assert rest.status(job_id) == "running"
    assert runner.complete(assignment, result="7")
    job = rest.job(job_id)
    assert (job["status"], job["result"], job["owner"], job["attempt"]) == ("completed", 7, OWNER, 1)
    assert [event["event"] for event in rest.events(job_id)] == ["created", "running", "completed"]


def test_a_rollback_leaves_nothing(service, crew, rest, database, channel):
    runner = crew.runner(service, channel)
    with database.transaction(force_rollback=True):
        undone = publish(database, channel, idempotency_key=f"{channel}-undone")
        with database.transaction():
            publish(database, channel)
    with database.transaction():
        with pytest.raises(psycopg.errors.DivisionByZero), database.transaction():
            publish(database, channel)
            database.execute("SELECT 1 / 0")
        kept = publish(database, channel, idempotency_key=f"{channel}-undone")
    runner.complete(runner.next_assignment(job_id=kept))
    holds("nothing else starts", runner.idle, seconds=1)
    assert [job["id"] for job in rest.ok("GET", "/api/jobs/list", channel=channel)["data"]] == [kept]
    rest.refused(404, "GET", f"/api/jobs/job/{undone}")


def test_a_transaction_publishes_as_many_as_it_likes(service, crew, rest, database, channel):
    with database.transaction():
        ids = [publish(database, channel, payload={"n": n}) for n in range(300)]
    eventually("all are there", lambda: len(rest.jobs_of(channel)) == len(ids))
    assert set(rest.jobs_of(channel)) == set(ids)
    runner = crew.runner(service, channel, capacity=300)
    order = [runner.next_assignment().lease.job_id for _ in ids]
    assert sorted(order) == sorted(ids)


@pytest.mark.parametrize("options", [
    {},
    {"delay": 3600, "expires_in": 60},
    {"delay": 0},
    {"run_at": iso(FAR), "delay": 5},
    {"run_at": iso(FAR, "+02:00"), "expires_at": iso(FAR + 60)},
    {"run_at": "2001-01-01T00:00:00Z", "delay": 3600},
    {"expires_at": iso(FAR), "expires_in": 5},
    {"max_retries": 0, "max_exec_seconds": 9, "priority": -7},
    {"backoff_base": 1.5, "backoff_max": 60, "broadcast": True, "delay": 3600},
], ids=str)  # fmt: skip
def test_options_mean_what_they_mean_over_rest(service, rest, database, channel, options):
    payload = {"text": "ü 😀 \" \\ \n", "list": [1, 2.5, None, True], "big": 2**60, "nested": {"a": {}}}
    over_rest = service.rest(OWNER, "manage_jobs").publish(f"{channel}-r", "app.send", payload, **options)
    in_sql = publish(database, f"{channel}-s", "app.send", payload, **options)
    eventually("the job is there", lambda: known(rest, in_sql))
    jobs = [rest.job(job_id, graph="detail") for job_id in (over_rest, in_sql)]
    for job in jobs:
        times = {name: moment(job[name]) if job[name] else None for name in ("created", "run_at", "expires_at")}
        start = times["run_at"] if times["run_at"] and times["run_at"] > times["created"] else times["created"]
        absolute = "run_at" in options or "expires_at" in options
        job["since"] = times["run_at"] if "run_at" in options else times["run_at"] and times["run_at"] - times["created"]
        job["until"] = times["expires_at"] if "expires_at" in options else round(times["expires_at"] - start, 3)
        assert absolute or job["until"] in (60, 900)
        for name in ("id", "created", "modified", "run_at", "expires_at", "channel", "recent_events", "queue_position"):
            del job[name]
    assert jobs[0] == jobs[1]


def test_the_defaults_are_those_of_the_api(service, crew, rest, database, channel):
    job_id = database.execute("SELECT errand.publish('app.send', '{}')").fetchone()[0]
    eventually("the job is there", lambda: known(rest, job_id))
    other = rest.ok("POST", "/api/jobs/publish", {"func": "app.send", "payload": {}})["job_id"]
    mine, theirs = rest.job(job_id), rest.job(other)
    for name in ("channel", "max_retries", "priority", "broadcast", "max_exec_seconds", "idempotency_key"):
        assert mine[name] == theirs[name], name
    for name in (job_id, other):
        rest.act(name, cancel_request=True)


BAD = [
    ("func", {"func": ""}),
    ("func", {"func": "a b"}),
    ("func", {"func": "f" * 256}),
    ("payload", {"payload": [1]}),
    ("payload", {"payload": {"x": "y" * (1 << 20)}}),
    ("channel", {"channel": "a channel"}),
    ("delay", {"delay": -1}),
    ("max_retries", {"max_retries": -1}),
    ("expires_in", {"expires_in": 0}),
    ("expires_at", {"expires_at": "2001-01-01T00:00:00Z"}),
    ("max_exec_seconds", {"max_exec_seconds": 0}),
    ("backoff_base", {"backoff_base": -0.5}),
    ("backoff_max", {"backoff_max": 3153600001}),
    ("idempotency_key", {"idempotency_key": "k" * 256}),
]


@pytest.mark.parametrize("field, arguments", BAD, ids=lambda value: str(value)[:40])
def test_a_bad_argument_is_refused_by_name(rest, database, channel, field, arguments):
    wanted = {"channel": channel, **arguments}
    with pytest.raises(psycopg.Error) as refusal, database.transaction():
        publish(database, **wanted)
    sentence = refusal.value.diag.message_primary
    assert refusal.value.sqlstate in ("22023", "54000"), refusal.value.sqlstate
    assert refusal.value.diag.column_name == field
    body = {"func": "f", "payload": {}, **wanted}
    answer = rest.post("/api/jobs/publish", body)
    assert answer.code in (400, 413)
    # The words may differ where SQL knows both bounds; which field is at fault may not.
    assert field in sentence.lower() and field in answer.body["error"].lower(), (sentence, answer.body)
    if field in ("func", "payload", "channel", "expires_at", "idempotency_key"):
        assert sentence == answer.body["error"]


def test_the_same_key_is_the_same_job(service, rest, database, channel):
    key = f"{channel} ü key"
    first = publish(database, channel, idempotency_key=key)
    assert publish(database, channel, idempotency_key=key) == first
    eventually("the job is there", lambda: known(rest, first))
    assert publish(database, channel, idempotency_key=key) == first
    assert len(rest.jobs_of(channel)) == 1
    assert rest.job(first)["idempotency_key"] == key
    with pytest.raises(psycopg.errors.UniqueViolation) as refusal:
        publish(database, channel, payload={"other": 1}, idempotency_key=key)
    assert key in str(refusal.value)
    # A key is one owner's, and the API and SQL share it.
    publisher = service.rest(OWNER, "manage_jobs")
    over_rest = publisher.publish(channel, idempotency_key=f"{key}-2")
    assert publish(database, channel, idempotency_key=f"{key}-2") == over_rest
    again = {"func": "tests.echo", "payload": {}, "channel": channel, "idempotency_key": key}
    answer = publisher.ok("POST", "/api/jobs/publish", again)
    assert (answer["job_id"], answer["deduplicated"]) == (first, True)


def test_transactions_with_the_same_key_make_one_job(service, rest, channel):
    def run(_):
        with psycopg.connect(url_of(service)) as connection:
            return publish(connection, channel, idempotency_key=f"{channel}-key")

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(run, range(40)))
    assert len(set(answers)) == 1
    eventually("the job is there", lambda: known(rest, answers[0]))
    assert list(rest.jobs_of(channel)) == [answers[0]]


def test_a_key_that_the_api_used_meanwhile_fails_the_later_job(service, crew, rest, database, channel):
    key = f"{channel}-key"
    with database.transaction():
        later = publish(database, channel, idempotency_key=key)
        earlier = service.rest(OWNER, "manage_jobs").publish(channel, idempotency_key=key)
    eventually("it tells why", lambda: known(rest, later))
    job = rest.job(later)
    assert (job["status"], job["attempt"]) == ("failed", 0)
    assert earlier in job["last_error"] and key in job["last_error"]
    runner = crew.runner(service, channel)
    runner.complete(runner.next_assignment(job_id=earlier))
    holds("the other does not run", runner.idle, seconds=1)


def test_an_expiry_that_passes_before_the_commit_expires_the_job(rest, database, channel):
    with database.transaction():
        job_id = publish(database, channel, expires_at=iso(time.time() + 1))
        time.sleep(1.5)
    eventually("it has expired", lambda: known(rest, job_id) and rest.status(job_id) == "expired")


def test_jobs_are_found_without_notifications(service, crew, rest, database, channel):
    """Whatever listens is cut off again and again."""
    stopping = threading.Event()

    def cut_off():
        with psycopg.connect(url_of(service), autocommit=True) as connection:
            while not stopping.wait(0.01):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND query LIKE 'LISTEN%'"
                )

    runner = crew.runner(service, channel, capacity=10)
    cutting = threading.Thread(target=cut_off)
    cutting.start()
    try:
        for _ in range(5):
            runner.complete(runner.next_assignment(job_id=publish(database, channel), timeout=10))
    finally:
        stopping.set()
        cutting.join()
    # And whoever was cut off hears again.
    listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    nodes = len(getattr(service, "nodes", [service]))
    eventually("all listen", lambda: database.execute(listening).fetchone()[0] == nodes)
    runner.complete(runner.next_assignment(job_id=publish(database, channel)))


def test_jobs_wait_for_a_node(crew, backends, channel):
    service = crew.service("--database-url", backends.postgres.database(), "--redis-url", backends.redis.fresh())
    service.stop()
    with psycopg.connect(url_of(service)) as connection:
        ids = [publish(connection, channel, payload={"n": n}) for n in range(20)]
    service.start()
    runner = crew.runner(service, channel, capacity=20)
    assert {runner.next_assignment().lease.job_id for _ in ids} == set(ids)


def test_postgres_alone_takes_them_too(crew, backends, channel):
    service = crew.service("--database-url", backends.postgres.database(), *QUICK)
    runner = crew.runner(service, channel)
    with psycopg.connect(url_of(service)) as connection:
        job_id = publish(connection, channel)
    assert runner.complete(runner.next_assignment(job_id=job_id))
    assert service.rest().status(job_id) == "completed"


def test_a_role_publishes_under_its_own_name_and_sees_no_table(service, crew, database, channel):
    role = f"shop_{channel.replace('-', '_')}"
    database.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA errand TO {role}")
    with psycopg.connect(url_of(service), user=role, autocommit=True) as shop:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            publish(shop, channel)
        database.execute(f"GRANT EXECUTE ON FUNCTION errand.publish TO {role}")
        job_id = publish(shop, channel)
        for table in ("jobs", "arrivals", "keys"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                shop.execute(f"SELECT 1 FROM errand.{table}")
    mine = service.rest(role, "run_jobs")
    eventually("whoever has the role's name sees it", lambda: known(mine, job_id))
    assert mine.job(job_id)["owner"] == role
    assert not known(service.rest("somebody", "run_jobs"), job_id)
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_payload_limit_is_the_same_in_sql(crew, backends, channel):
    service = crew.service(
        "--database-url", backends.postgres.database(), "--redis-url", backends.redis.fresh(), "--payload-max=64"
    )
    with psycopg.connect(url_of(service), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="maximum size of 64 bytes"):
            publish(connection, channel, payload={"x": "y" * 64})
        job_id = publish(connection, channel, payload={"x": "y"})
    eventually("the job is there", lambda: known(service.rest(), job_id))


def test_the_documented_example_works(service, rest, database, channel):
    page = (REPOSITORY / "docs" / "transactional-publish.md").read_text()
    blocks = {language: re.search(rf"```{language}\n(.*?)```", page, re.S).group(1) for language in ("sql", "python")}
    database.execute(blocks["sql"])
    host = psycopg.conninfo.conninfo_to_dict(url_of(service))
    shop = f"postgres://shop@{host['host']}:{host['port']}/{host['dbname']}"
    program = [sys.executable, "-c", blocks["python"]]
    try:
        done = subprocess.run(program, env={**os.environ, "SHOP_DATABASE_URL": shop}, capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 0, done.stderr
        job_id = done.stdout.split()[-1]
        eventually("the job is there", lambda: known(rest, job_id))
        job = rest.job(job_id)
        assert (job["owner"], job["func"], job["channel"]) == ("shop", "shop.send_receipt", "mail")
        rest.act(job_id, cancel_request=True)
    finally:
        database.execute("DROP OWNED BY shop; DROP ROLE shop")


def test_a_node_dies_while_jobs_are_published(crew, backends, channel):
    switches = ("--database-url", backends.postgres.database(), "--redis-url", backends.redis.fresh(), *QUICK)
    fleet = crew.fleet(*switches)
    # The one that takes them in.
    victim = eventually("a node leads", fleet.leader)
    survivors = [node for node in fleet.nodes if node is not victim]
    runner = crew.runner(survivors[0], channel, capacity=1000)
    done = []

    def work():
        while len(done) < 400:
            assignment = runner.next_assignment(timeout=60)
            runner.complete(assignment)
            done.append(assignment.lease.job_id)

    working = threading.Thread(target=work, daemon=True)
    working.start()

    def run(part):
        ids = []
        with psycopg.connect(url_of(fleet), autocommit=True) as connection:
            for n in range(100):
                if (part, n) == (0, 50):
                    victim.kill()
                ids.append(publish(connection, channel, payload={"n": n}))
        return ids

    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        ids = [job_id for ids in clients.map(run, range(4)) for job_id in ids]
    rest = survivors[1].rest()
    eventually("all end", lambda: len(done) == 400, seconds=60)
    assert sorted(done) == sorted(ids), "each ran once"
    assert {job_id: job["status"] for job_id, job in rest.jobs_of(channel).items()} == dict.fromkeys(ids, "completed")
    with psycopg.connect(url_of(fleet), autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM errand.arrivals").fetchone()[0] == 0
