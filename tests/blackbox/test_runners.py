"""How runners are seen and steered."""

import time

import grpc
import pytest

from waiting import eventually
from wire import reason_of, runners_pb2


def listed(rest, runner):
    entries = [entry for entry in rest.ok("GET", "/api/jobs/runners")["data"] if entry["runner_id"] == runner.runner_id]
    return entries[0] if entries else None


def refused_attach(crew, service, *channels, **options):
    with pytest.raises(grpc.RpcError) as refusal:
        crew.runner(service, *channels, **options)
    return refusal.value


def test_a_second_live_runner_of_the_same_name_is_refused(service, crew, channel):
    first = crew.runner(service, channel)
    refusal = refused_attach(crew, service, channel, runner_id=first.runner_id)
    assert refusal.code() == grpc.StatusCode.ALREADY_EXISTS
    assert not first.ended.is_set()


def test_a_runner_needs_run_jobs(service, crew, channel):
    refusal = refused_attach(crew, service, channel, token=service.token("plain", "view_jobs"))
    assert refusal.code() == grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(refusal)


def test_a_token_bound_to_channels_serves_only_these(service, crew, channel):
    bound = service.token("bound", "run_jobs", channels=(channel,))
    assert crew.runner(service, channel, token=bound).welcome.session_id
    for channels in ((channel + "-other",), (channel, channel + "-other")):
        assert refused_attach(crew, service, *channels, token=bound).code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("runner_id", ["two words", "x" * 65, "slash/ed"])
def test_a_bad_runner_id_is_refused(service, crew, channel, runner_id):
    assert refused_attach(crew, service, channel, runner_id=runner_id).code() == grpc.StatusCode.INVALID_ARGUMENT


def test_the_first_message_is_hello(service):
    client = service.grpc("crew", "run_jobs")
    beat = runners_pb2.AttachRequest(heartbeat=runners_pb2.Heartbeat())
    with pytest.raises(grpc.RpcError) as refusal:
        list(client.runners.Attach(iter([beat]), timeout=20))
    assert refusal.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)


def test_welcome_tells_the_service_s_timings(service, crew, channel):
    welcome = crew.runner(service, channel).welcome
    assert welcome.heartbeat_interval.ToMilliseconds() == 500
    assert welcome.accept_timeout.ToMilliseconds() == 2000
    assert welcome.lease_ttl.ToMilliseconds() == 3000
    assert welcome.resume_window.ToMilliseconds() == 1000
    assert welcome.session_id and welcome.node_id


def test_capacity_is_never_exceeded(service, crew, channel, rest):
    runner = crew.runner(service, channel, capacity=3)
    for _ in range(12):
        rest.publish(channel)
    for _ in range(12):
        assert runner.complete(runner.next_assignment())
    assert runner.most_held <= 3


def test_jobs_come_first_in_first_out(service, crew, channel, rest):
    published = [rest.publish(channel) for _ in range(10)]
    runner = crew.runner(service, channel)
    taken = []
    for _ in published:
        assignment = runner.next_assignment()
        taken.append(assignment.lease.job_id)
        assert runner.complete(assignment)
    assert taken == published


def test_priority_goes_before_age(service, crew, channel):
    client = service.grpc()
    ids = {priority: client.publish(channel=channel, priority=priority).id for priority in (0, -1, 7, 3)}
    runner = crew.runner(service, channel)
    taken = []
    for _ in ids:
        assignment = runner.next_assignment()
        taken.append(assignment.lease.job_id)
        assert runner.complete(assignment)
    assert taken == [ids[priority] for priority in (7, 3, 0, -1)]


def test_one_runner_serves_several_channels_and_no_other(service, crew, channel, rest):
    runner = crew.runner(service, channel, channel + "-b", capacity=4)
    elsewhere = rest.publish(channel + "-c")
    wanted = {rest.publish(channel), rest.publish(channel + "-b")}
    assert {runner.next_assignment().lease.job_id for _ in wanted} == wanted
    assert rest.status(elsewhere) == "pending" and runner.idle()


def test_capacity_0_pauses(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    runner.set_capacity(0)
    eventually("the pause is seen", lambda: listed(rest, runner)["capacity"] == 0 or listed(rest, runner)["paused"])
    waiting = rest.publish(channel)
    other = crew.runner(service, channel)
    assert other.next_assignment(job_id=waiting)
    assert runner.idle()
    second = rest.publish(channel)
    runner.set_capacity(1)
    assert runner.complete(runner.next_assignment(job_id=second))


def test_pause_and_resume_reach_the_runner(crew, channel):
    service = crew.service()
    rest = service.rest()
    runner = crew.runner(service, channel)
    rest.ok("POST", "/api/jobs/runners/broadcast", {"command": "pause", "timeout": 5})
    assert runner.command(runners_pb2.COMMAND_KIND_PAUSE)
    eventually("it shows as paused", lambda: listed(rest, runner)["paused"])
    job_id = rest.publish(channel)
    rest.ok("POST", "/api/jobs/runners/broadcast", {"command": "resume", "timeout": 5})
    assert runner.command(runners_pb2.COMMAND_KIND_RESUME)
    assert runner.complete(runner.next_assignment(job_id=job_id))
    eventually("it shows as working", lambda: not listed(rest, runner)["paused"])


def test_what_a_runner_did_is_counted(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    for ends_well in (True, False):
        rest.publish(channel, max_retries=0)
        assignment = runner.next_assignment()
        assert runner.complete(assignment) if ends_well else runner.fail(assignment)

    def counted():
        entry = listed(rest, runner)
        return entry["jobs_failed"] == 1 and entry["jobs_processed"] in (1, 2) and entry["running"] == 0

    eventually("both are counted", counted)


def test_a_runner_that_went_silent_is_listed_as_not_alive(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    runner.drop()
    eventually("it is listed, not alive", lambda: (entry := listed(rest, runner)) and entry["alive"] is False)


def test_runners_are_filtered_by_channel(service, crew, channel, rest):
    runner = crew.runner(service, channel, channel + "-b")
    crew.runner(service, channel + "-c")
    body = rest.ok("GET", "/api/jobs/runners", channel=channel + "-b")
    assert [entry["runner_id"] for entry in body["data"]] == [runner.runner_id]


def test_ping_of_a_runner_that_is_not_there_is_unresponsive(rest):
    body = rest.ok("POST", "/api/jobs/runners/ping", {"runner_id": "nobody", "timeout": 0.3})
    assert body["responsive"] is False


def test_ping_of_a_mute_runner_ends_with_its_timeout(service, crew, channel, rest):
    runner = crew.runner(service, channel, replies=False)
    started = time.monotonic()
    body = rest.ok("POST", "/api/jobs/runners/ping", {"runner_id": runner.runner_id, "timeout": 0.3})
    assert body["responsive"] is False
    assert time.monotonic() - started < 5
    assert runner.command(runners_pb2.COMMAND_KIND_PING)


@pytest.mark.parametrize("timeout", [-1, 61, "soon"])
def test_a_bad_timeout_is_refused(rest, timeout):
    for path, body in (("ping", {"runner_id": "r"}), ("broadcast", {"command": "status"})):
        assert "timeout" in rest.refused(400, "POST", f"/api/jobs/runners/{path}", {**body, "timeout": timeout})


def test_a_missing_runner_id_is_named(rest):
    for path in ("ping", "shutdown"):
        assert "runner_id" in rest.refused(400, "POST", f"/api/jobs/runners/{path}", {})


def test_shutdown_of_an_unknown_runner_is_404(rest):
    rest.refused(404, "POST", "/api/jobs/runners/shutdown", {"runner_id": "nobody", "graceful": True})


def test_a_hard_shutdown_says_so_to_the_runner(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    rest.ok("POST", "/api/jobs/runners/shutdown", {"runner_id": runner.runner_id, "graceful": False})
    assert runner.command(runners_pb2.COMMAND_KIND_SHUTDOWN).graceful is False


def test_an_unknown_command_is_refused(rest):
    sentence = "Invalid command. Must be one of: status, shutdown, pause, resume, reload"
    assert rest.refused(400, "POST", "/api/jobs/runners/broadcast", {"command": "explode"}) == sentence


def test_a_command_reaches_every_runner_and_ends_with_the_last_reply(crew, channel):
    service = crew.service()
    rest = service.rest()
    runners = [crew.runner(service, channel) for _ in range(3)]
    started = time.monotonic()
    body = rest.ok("POST", "/api/jobs/runners/broadcast", {"command": "reload", "data": {"a": 1}, "timeout": 30})
    assert time.monotonic() - started < 20, "waited for the timeout"
    assert {reply["runner_id"] for reply in body["responses"]} == {runner.runner_id for runner in runners}
    for runner in runners:
        assert runner.command(runners_pb2.COMMAND_KIND_RELOAD).data_json.replace(" ", "") == '{"a":1}'
