"""The service's command line: what it accepts, what it refuses, and in what words."""

import json
import stat

import pytest

from service import QUICK, clean_environment, errand

ANY = ("--http=127.0.0.1:0", "--grpc=127.0.0.1:0")


@pytest.fixture
def rest(service):
    """Only looks on here, so one gateway is enough."""
    return service.rest()


def sentence(done):
    """The last line of a refusal, which has to be for people."""
    for noise in ("panicked", "backtrace", "Error {", "Err("):
        assert noise not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines, "it ended without a word"
    return lines[-1]


def test_help_and_version_are_no_failures():
    for arguments in (["--help"], ["--version"], ["serve", "--help"], ["token", "--help"], ["work", "--help"]):
        done = errand(*arguments)
        assert done.returncode == 0 and done.stdout, arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--nonsense"],
        ["frobnicate"],
        ["serve", "--http", "nowhere"],
        ["serve", "--lease-ttl", "soon"],
        ["serve", "--retain-finished", "a while"],
        ["serve", "--retain-finished-max", "0"],
        ["serve", "--database-url", "ftp://nowhere"],
        ["token"],
        ["work", "--channel", "c"],
    ],
)
def test_a_bad_command_line_is_64_and_names_what_is_wrong(arguments, tmp_path):
    done = errand(*arguments, cwd=tmp_path)
    assert done.returncode == 64, done.stderr
    spellings = {argument.strip("-") for argument in arguments[:2]}
    spellings |= {spelling.replace("-", "_") for spelling in spellings}
    assert any(spelling in done.stderr for spelling in spellings)


def test_an_unknown_key_in_the_file_is_64_and_named(tmp_path):
    file = tmp_path / "errand.toml"
    file.write_text('htpp = "127.0.0.1:0"\n')
    done = errand("serve", *ANY, "--data-dir", str(tmp_path / "data"), "--config", str(file))
    assert done.returncode == 64
    assert "htpp" in sentence(done)


def test_a_bad_value_in_the_file_is_64_and_named(tmp_path):
    file = tmp_path / "errand.toml"
    file.write_text("http = 7\n")
    done = errand("serve", "--data-dir", str(tmp_path / "data"), "--config", str(file))
    assert done.returncode == 64
    assert "http" in sentence(done)


def test_a_missing_file_is_64_and_named(tmp_path):
    done = errand("serve", *ANY, "--data-dir", str(tmp_path / "data"), "--config", str(tmp_path / "absent.toml"))
    assert done.returncode == 64
    assert "absent.toml" in done.stderr


def test_a_bad_variable_is_64_and_named(tmp_path):
    env = clean_environment(ERRAND_LEASE_TTL="soon")
    done = errand("serve", *ANY, "--data-dir", str(tmp_path / "data"), env=env)
    assert done.returncode == 64
    assert "lease" in done.stderr.lower()


def test_a_bare_errand_serves_and_variables_are_switches(crew):
    service = crew.unstarted()
    env = clean_environment(
        ERRAND_HTTP="127.0.0.1:0", ERRAND_GRPC="127.0.0.1:0", ERRAND_DATA_DIR=str(service.data_dir)
    )
    rest = service.launch(env=env).rest()
    assert rest.publish("default")


def test_the_switch_wins_over_the_variable_and_that_over_the_file(crew, tmp_path):
    file = tmp_path / "errand.toml"
    file.write_text('http = "off"\ngrpc = "203.0.113.1:1"\n')
    service = crew.unstarted()
    env = clean_environment(ERRAND_HTTP="127.0.0.1:0", ERRAND_GRPC="203.0.113.1:2")
    arguments = ("--config", str(file), "--grpc", "127.0.0.1:0", "--data-dir", str(service.data_dir))
    assert service.launch("serve", *arguments, env=env).rest().publish("default")


def test_without_a_gateway_grpc_serves_on(crew):
    service = crew.unstarted()
    service.start(http="off")
    assert service.grpc().publish().id


def test_a_postgres_that_is_not_there_is_69_and_named(tmp_path):
    url = "postgres://nobody:secret@127.0.0.1:1/none"
    done = errand("serve", *ANY, "--data-dir", str(tmp_path / "data"), "--database-url", url)
    assert done.returncode == 69, done.stderr
    assert "127.0.0.1:1" in sentence(done) and "secret" not in done.stderr


@pytest.mark.topology("shared")
def test_a_redis_that_is_not_there_is_69_and_named(tmp_path, backends):
    urls = ("--database-url", backends.postgres.database(), "--redis-url", "redis://127.0.0.1:1")
    done = errand("serve", *ANY, "--data-dir", str(tmp_path / "data"), *urls)
    assert done.returncode == 69, done.stderr
    assert "127.0.0.1:1" in sentence(done)


def test_a_redis_beside_sqlite_is_64_and_named(tmp_path):
    done = errand("serve", *ANY, "--data-dir", str(tmp_path / "data"), "--redis-url", "redis://127.0.0.1:1")
    assert done.returncode == 64, done.stderr
    assert "redis_url" in sentence(done) and "database_url" in done.stderr


@pytest.mark.topology("embedded")
def test_a_second_process_on_the_same_data_is_refused(crew):
    service = crew.service(*QUICK)
    done = errand("serve", *ANY, "--data-dir", str(service.data_dir))
    assert done.returncode != 0
    assert str(service.data_dir) in sentence(done)
    assert service.rest().publish("default")


@pytest.mark.parametrize("which", ["http", "grpc"])
def test_a_port_in_use_is_refused_by_its_address(crew, tmp_path, which):
    service = crew.service(*QUICK)
    taken = {"http": service.http, "grpc": service.grpc_address}[which]
    free = {"http": "--grpc=127.0.0.1:0", "grpc": "--http=127.0.0.1:0"}[which]
    done = errand("serve", f"--{which}", taken, free, "--data-dir", str(tmp_path / "other"))
    assert done.returncode != 0
    assert taken in sentence(done)


@pytest.mark.topology("embedded")
def test_the_data_directory_and_its_key_are_private(service):
    assert stat.S_IMODE(service.data_dir.stat().st_mode) == 0o700
    keys = [path for path in service.data_dir.rglob("*") if "key" in path.name or "secret" in path.name]
    assert keys, f"no key among {list(service.data_dir.iterdir())}"
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.topology("embedded")
def test_standard_output_has_the_ready_line_and_nothing_else(service):
    assert len(service.process.lines) == 1


class Client:
    """The client commands, as a script would call them."""

    def __init__(self, service):
        token = service.token("script", "manage_jobs")
        self.env = clean_environment(ERRAND_SERVER=f"http://{service.grpc_address}", ERRAND_TOKEN=token)

    def __call__(self, *arguments):
        return errand(*arguments, env=self.env)

    def json(self, *arguments):
        done = self(*arguments, "--json")
        assert done.returncode == 0, f"{arguments}: {done.returncode} {done.stderr}"
        return json.loads(done.stdout)


def test_a_script_publishes_reads_cancels_and_retries(service, rest):
    client = Client(service)
    done = client("publish", "tests.script", '{"a": 1}', "--json")
    assert done.returncode == 0, done.stderr
    job_id = next(job["id"] for job in rest.ok("GET", "/api/jobs/job", func="tests.script")["data"])
    assert job_id in done.stdout
    assert job_id in json.dumps(client.json("get", job_id))
    assert job_id in json.dumps(client.json("list"))
    assert "created" in json.dumps(client.json("events", job_id)).lower()
    client.json("cancel", job_id)
    assert rest.status(job_id) == "canceled"
    client.json("retry", job_id)
    newest = rest.ok("GET", "/api/jobs/job", func="tests.script")["data"][0]
    assert newest["id"] != job_id and newest["status"] == "pending"
    rest.act(newest["id"], cancel_request=True)
    for command in ("runners", "health", "stats"):
        client.json(command)


@pytest.mark.parametrize("command", [["list"], ["runners"], ["health"], ["stats"]])
def test_tables_are_for_people(service, command):
    done = Client(service)(*command)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.lstrip().startswith(("{", "["))


def test_a_refusal_is_one_sentence_and_a_failure(service):
    client = Client(service)
    for arguments in (("get", "0" * 32), ("cancel", "0" * 32), ("publish", "two words")):
        done = client(*arguments)
        assert done.returncode != 0
        assert sentence(done)


def test_a_server_that_is_not_there_is_said(service):
    client = Client(service)
    client.env["ERRAND_SERVER"] = "http://127.0.0.1:1"
    done = client("list")
    assert done.returncode != 0
    assert sentence(done)


def test_a_payload_left_out_is_an_empty_object(service, rest):
    assert Client(service)("publish", "tests.empty").returncode == 0
    assert rest.ok("GET", "/api/jobs/job", func="tests.empty", size=1)["data"][0]["payload"] == {}
