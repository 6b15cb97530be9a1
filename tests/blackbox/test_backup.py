"""Backups as docs/operating.md tells to make them: taken under load, and put back after everything else is gone."""

import os
import re
import shutil
import subprocess

import pytest

from service import QUICK, Service
from steady import SteadyPublishers, SteadyRunner
from waiting import eventually
from wire import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "operating.md"


def told(heading):
    """The commands below a heading of the document, block by block."""
    text = DOCUMENT.read_text()
    (section,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def run(commands, folder, **variables):
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{commands}\n{done.stderr}"


class Shift:
    """Publishers and a runner that are at work while the backup is made, and a job that somebody holds."""

    def __init__(self, service, channel, crew):
        token = service.token("load", "run_jobs")
        self.channel = channel
        self.holder = crew.runner(service, channel + "-held")
        self.held = service.rest().publish(channel + "-held")
        assert self.holder.next_assignment(job_id=self.held).lease.attempt == 1
        self.runner = SteadyRunner([service.grpc_address], token, channel, f"steady-{channel}", capacity=5)
        self.publishers = SteadyPublishers([service], token, channel, per_second=300, threads=4)
        self.goes_on()

    def goes_on(self):
        before = len(self.publishers.acknowledged)
        eventually("the load is on", lambda: len(self.publishers.acknowledged) >= before + 200, seconds=60)

    def acknowledged(self):
        return list(self.publishers.acknowledged)

    def end(self):
        """Before the service does: a publisher insists otherwise."""
        self.runner.leaving.set()
        self.publishers.stop()
        assert not self.publishers.failures
        return self.publishers.acknowledged[-1]


def all_is_there(crew, service, shift, wanted, late):
    """What was acknowledged before the backup began is there, and whatever had not ended by then ends."""
    rest = service.rest()
    assert rest.get(f"/api/jobs/job/{late}").code == 404, "this is the database as it was then, and nothing else"
    assert rest.status(shift.held) == "running"
    gone = [job_id for job_id in wanted if rest.get(f"/api/jobs/job/{job_id}").code != 200]
    assert not gone, f"{len(gone)} of {len(wanted)} acknowledged jobs are gone"
    token = service.token("load", "run_jobs")
    runner = SteadyRunner([service.grpc_address], token, shift.channel, f"later-{shift.channel}", capacity=50, seconds=0)
    messages = f"/api/jobs/health/{shift.channel}"
    eventually("no job is left", lambda: rest.ok("GET", messages)["data"]["messages"]["total"] == 0, seconds=60)
    runner.leave()
    assert {rest.status(job_id) for job_id in wanted} == {"completed"}
    again = crew.runner(service, shift.channel + "-held").next_assignment(job_id=shift.held, timeout=30)
    assert again.lease.attempt == 2, "nobody has it any more, and it runs again"


def worked_and_backed_up(back_up, crew, channel):
    """A service on SQLite that goes on working, its shift, and what had been acknowledged before the backup."""
    service = crew.service(*QUICK)
    shift = Shift(service, channel, crew)
    wanted = shift.acknowledged()
    # The document's service keeps its data below the folder that it was started in.
    here = service.data_dir.parent
    (here / "errand-data").symlink_to(service.data_dir)
    run(back_up, here)
    shift.goes_on()
    return service, shift, wanted


@pytest.mark.topology("embedded")
def test_sqlite_is_backed_up_while_it_works(crew, channel, tmp_path):
    back_up, restore = told("SQLite")
    service, shift, wanted = worked_and_backed_up(back_up, crew, channel)
    here = service.data_dir.parent
    token = service.token("operator", "manage_jobs")
    late = shift.end()
    # Without a goodbye: what it leaves beside the database must not get mixed with the backup.
    service.kill()
    assert (service.data_dir / "errand.db-wal").stat().st_size > 0
    run(restore, here)
    service.start()
    assert service.rest().bearing(token).get("/api/jobs/list").code == 200, "tokens are good as before"
    all_is_there(crew, service, shift, wanted, late)


@pytest.mark.topology("embedded")
def test_a_backup_of_sqlite_is_all_that_a_new_machine_needs(crew, channel, tmp_path):
    back_up, restore = told("SQLite")
    service, shift, wanted = worked_and_backed_up(back_up, crew, channel)
    here = service.data_dir.parent
    late = shift.end()
    service.kill()
    machine = tmp_path / "machine"
    (machine / "errand-data").mkdir(parents=True)
    for kept in here.glob("errand-backup*"):
        shutil.copy(kept, machine)
    run(restore, machine)
    other = Service(machine, *QUICK)
    other.data_dir = machine / "errand-data"
    crew.services.append(other)
    all_is_there(crew, other.start(), shift, wanted, late)


@pytest.mark.topology("shared")
def test_postgres_is_backed_up_while_it_works(crew, backends, channel, tmp_path):
    back_up, restore = told("Postgres")
    database, redis = backends.postgres.database(), backends.redis.fresh()
    service = crew.service("--database-url", database, "--redis-url", redis, *QUICK)
    shift = Shift(service, channel, crew)
    wanted = shift.acknowledged()
    run(back_up, tmp_path, DATABASE_URL=database)
    shift.goes_on()
    late = shift.end()
    service.kill()
    # Redis holds what it held; some of it is of jobs that the backup does not know.
    restored = backends.postgres.database()
    run(restore, tmp_path, DATABASE_URL=restored)
    all_is_there(crew, crew.service("--database-url", restored, "--redis-url", redis, *QUICK), shift, wanted, late)
