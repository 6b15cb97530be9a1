"""`errand bench`: that it measures and what it says, not how fast anything is."""

import json

import pytest

from service import QUICK, errand

# It measures a service that it starts itself, or one like it.
pytestmark = pytest.mark.topology("embedded")

RATES = (
    "publish_single_per_s",
    "publish_batch_per_s",
    "publish_stream_per_s",
    "publish_rest_per_s",
    "drain_per_s",
    "end_to_end_single_per_s",
    "end_to_end_batch_per_s",
)
LIMITS = ("unary_echo_per_s", "store_insert_per_s", "fsync_per_s")


def measured(*arguments):
    done = errand("bench", "--quick", "--json", *arguments, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_starts_a_service_measures_it_and_leaves_nothing_behind(tmp_path):
    figures = measured("--data-dir", str(tmp_path))
    for key in RATES:
        assert figures[key] > 0, key
    for key in LIMITS:
        assert figures["limits"][key] > 0, key
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]
    assert figures["rss_mib"] >= figures["rss_idle_mib"] > 1
    assert list(tmp_path.iterdir()) == []


def test_it_measures_a_running_service_and_leaves_no_job_undone(crew, tmp_path):
    service = crew.service(*QUICK)
    figures = measured(
        "--data-dir", str(tmp_path),
        "--server", f"http://{service.grpc_address}",
        "--http", f"http://{service.http}",
        "--token", service.token("bench", "run_jobs"),
        "--only", "publish-batch", "publish-rest", "drain",
    )
    assert figures["publish_batch_per_s"] > 0
    assert figures["publish_rest_per_s"] > 0
    assert figures["drain_per_s"] > 0
    assert figures["publish_single_per_s"] is None, "it was not asked for"
    assert figures["rss_mib"] is None, "another's memory is not known"
    totals = service.rest().ok("GET", "/api/jobs/stats")["data"]["totals"]
    assert totals["completed"] > 0
    assert totals["pending"] == totals["running"] == 0


def test_a_token_that_may_not_run_jobs_is_refused_with_the_remedy(crew, tmp_path):
    service = crew.service(*QUICK)
    done = errand(
        "bench", "--quick", "--data-dir", str(tmp_path), "--only", "drain",
        "--server", f"http://{service.grpc_address}",
        "--token", service.token("nobody"),
    )
    assert done.returncode == 1
    assert "run_jobs" in done.stderr and "errand token" in done.stderr


def test_a_service_that_is_not_there_is_69(tmp_path):
    done = errand("bench", "--quick", "--data-dir", str(tmp_path), "--server", "http://127.0.0.1:1")
    assert done.returncode == 69
    assert "127.0.0.1:1" in done.stderr
