"""The examples do what their READMEs say, by the commands that these name."""

import datetime
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest
from PIL import Image
from service import ERRAND, REPOSITORY, Process, environment, eventually

import errand

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture
def start(crew, service, tmp_path):
    """Starts a command in the folder of an example."""

    def start(example, name, *command, **variables):
        env = environment(
            ERRAND_SERVER=service.url,
            ERRAND_TOKEN=service.token("example", "run_jobs"),
            PYTHONPATH=str(EXAMPLES / example),
            **variables,
        )
        process = Process([sys.executable, *command], tmp_path, name, env=env)
        process.runner_id = name
        crew.processes.append(process)
        return process

    return start


@pytest.fixture
def owner(service):
    with errand.Client(service.url, service.token("example", "run_jobs")) as client:
        yield client


def finished(process):
    assert process.wait(60) == 0, process.tail()
    return process.output()


def test_pictures_are_resized(start, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    Image.new("RGB", (800, 400), "teal").save(source / "wide.png")
    Image.new("RGB", (100, 300), "maroon").save(source / "high.jpg")
    (source / "broken.png").write_text("no picture")
    folder = EXAMPLES / "resize_pictures"
    start("resize_pictures", "runner", "-m", "errand.runner.cli", "jobs", "--channel", "pictures")
    publish = [str(folder / "publish.py"), str(source), str(target), "--edge", "200"]
    said = finished(start("resize_pictures", "publish", *publish))
    assert f"{source}/wide.png: 200x100" in said
    assert f"{source}/high.jpg: 67x200" in said
    assert "broken.png: job" in said
    assert "cannot identify image file" in said
    assert sorted(path.name for path in target.iterdir()) == ["high.jpg", "wide.png"]
    with Image.open(target / "wide.png") as picture:
        assert picture.size == (200, 100)


def test_a_thousand_mails_are_sent(start, tmp_path):
    folder = EXAMPLES / "thousand_mails"
    sink = start("thousand_mails", "sink", str(folder / "sink.py"), "0")
    port = eventually("the sink listens", lambda: re.search(r"listening on (\d+)", sink.output()))[1]
    command = ["-m", "errand.runner.cli", "jobs", "--channel", "emails", "--capacity", "20"]
    start("thousand_mails", "runner", *command, SMTP_SERVER=f"127.0.0.1:{port}")
    said = finished(start("thousand_mails", "publish", str(folder / "publish.py"), "1000"))
    assert said.endswith("done, 0 failed\n")
    eventually("each has arrived once", lambda: "1000 mails, 1000 deliveries" in sink.output())


def test_a_nightly_report_is_made_and_the_next_one_scheduled(start, owner, tmp_path):
    folder = EXAMPLES / "nightly_report"
    start("nightly_report", "runner", "-m", "errand.runner.cli", "jobs", "--channel", "reports")
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
    schedule = [str(folder / "schedule.py"), str(folder / "sales.csv"), str(tmp_path / "reports")]
    schedule += ["--day", "2026-01-31", "--at", at.isoformat()]
    job_id = finished(start("nightly_report", "schedule", *schedule)).strip()
    assert owner.result(job_id, timeout=30) == {"tea": "6.00", "coffee": "7.25"}
    job = owner.get(job_id)
    assert job.started_at >= at
    assert job.metadata == {"rows": 4}
    assert (tmp_path / "reports" / "2026-01-31.txt").read_text() == "coffee: 7.25\ntea: 6.00\n"
    (following,) = owner.list_jobs(errand.Filters(channel="reports", status="pending"))
    assert following.payload["day"] == "2026-02-01"
    assert following.run_at - job.run_at == datetime.timedelta(days=1)


BLOCK = re.compile(r"(?:`(\w+\.py)`:\n\n)?```(sh|python)\n(.*?)```", re.DOTALL)
OURS = ("python3 -m venv", ". venv/", "pip install", 'export PATH="$source/')
"""What a test has already: these lines of the page are left out, and would be missed if they were not there."""


def test_the_first_runner_does_what_its_page_says(tmp_path):
    """Every block in its order, in one shell: files are written as the page has them, commands run as they stand."""
    grpc, smtp = free_port(), free_port()
    script, left_out = [], []
    for name, language, text in BLOCK.findall((REPOSITORY / "docs" / "first-runner.md").read_text()):
        if language == "python":
            assert text == (EXAMPLES / "thousand_mails" / name).read_text(), f"{name} is not the example's"
            script.append(f"cat > {name} <<'END'\n{text}END\n")
            continue
        for line in text.splitlines():
            (left_out if line.startswith(OURS) else script).append(line.replace("2525", str(smtp)) + "\n")
    assert len(left_out) == len(OURS)
    # Ends what the page starts, should it stop in the middle.
    script.insert(0, "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n")
    start = tmp_path / "errand"
    (start / "bin").mkdir(parents=True)
    (start / "bin" / "errand").symlink_to(ERRAND)
    (start / "examples").symlink_to(EXAMPLES)
    path = f"{start}/bin:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    ports = {"ERRAND_GRPC": f"127.0.0.1:{grpc}", "ERRAND_HTTP": "off", "ERRAND_SERVER": f"http://127.0.0.1:{grpc}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(script)],
        cwd=start,
        env=environment(PATH=path, **ports),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = done.stdout + done.stderr
    logs = "".join(file.read_text() for file in sorted((tmp_path / "mails").glob("*.log")))
    assert "done, 0 failed" in said, said + logs
    assert "1000 mails, 1000 deliveries" in said, said + logs
    assert done.returncode == 0, said + logs


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_example_says_how_to_run_it():
    for folder in EXAMPLES.iterdir():
        if (folder / "jobs.py").exists():
            assert "errand-runner jobs" in (folder / "README.md").read_text()
