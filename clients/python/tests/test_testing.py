"""The helper that runs a function without a service."""

import functions
import pytest

import errand
from errand import testing


def test_a_function_is_run_and_its_reports_are_kept():
    ended = testing.run(functions.documented, {"recipients": ["ann@example.com"]})
    assert (ended.status, ended.result, ended.metadata) == ("completed", "completed", {"emails_sent": 1})
    (line,) = ended.logs
    assert (line.kind, line.message, line.meta) == ("info", "sent to ann@example.com", {"address": "ann@example.com"})


def test_a_result_makes_the_journey_through_json():
    assert testing.run(lambda job: (1, "two")).result == [1, "two"]
    ended = testing.run(lambda job: object())
    assert (ended.status, ended.permanent) == ("failed", True)
    assert testing.run(lambda job: float("nan")).status == "failed"


def test_failures_are_told_apart():
    ended = testing.run(functions.fail, {"who": "me"})
    assert (ended.status, ended.error, ended.permanent) == ("failed", "ValueError: broken by me", False)
    assert "raise ValueError" in ended.stack_trace
    assert testing.run(functions.fail_for_good).permanent
    assert testing.run(functions.retry_later, {"after": 5}).retry_after == 5
    assert testing.run(functions.retry_later, {"after": 5}, attempt=2).result == 2


def test_even_an_exit_is_a_failure():
    def leave(job):
        raise SystemExit(3)

    assert testing.run(leave).error == "SystemExit: 3"


def test_a_cancellation_counts_if_it_was_seen():
    recipients = {"recipients": ["ann@example.com"]}
    assert testing.run(functions.documented, recipients, cancel_requested=True).status == "canceled"
    assert testing.run(functions.echo, {}, cancel_requested=True).status == "completed"


def test_coroutines_are_awaited():
    assert testing.run(functions.gather, {"seconds": 0}).status == "completed"


def test_json_that_is_returned_keeps_its_digits():
    ended = testing.run(lambda job: errand.Json('{"n": 1.10}'))
    assert ended.result == {"n": 1.1}
    assert testing.run(lambda job: errand.Json("{")).permanent


@pytest.mark.parametrize("after", [-1, 1e12, float("nan")])
def test_an_impossible_wait_is_refused(after):
    with pytest.raises(ValueError, match="after must be"):
        errand.Retry(after=after)


def test_a_process_cannot_be_asked_for_a_coroutine():
    with pytest.raises(TypeError, match="coroutine function"):

        @errand.job(process=True)
        async def never(job): ...


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two functions want to be job 'named'"):

        @errand.job("named")
        def another(job): ...
