"""The gRPC stubs, generated from proto/ as any client in Python would, and a channel that bears a token."""

import collections
import os
import pathlib
import sys
import tempfile

# Before gRPC is loaded: what it would do in a child between fork and exec can kill it, and a server never starts.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

import grpc
import grpc_tools
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def _generate():
    sources = REPOSITORY / "proto"
    folder = tempfile.TemporaryDirectory(prefix="errand-stubs-")
    failed = protoc.main(
        [
            "protoc",
            f"-I{sources}",
            f"-I{pathlib.Path(grpc_tools.__file__).parent / '_proto'}",
            f"--python_out={folder.name}",
            f"--grpc_python_out={folder.name}",
            *(str(path) for path in sorted(sources.glob("errand/v1/*.proto"))),
        ]
    )
    assert not failed, "protoc refused proto/"
    sys.path.insert(0, folder.name)
    return folder


_folder = _generate()

from errand.v1 import health_pb2, health_pb2_grpc, job_pb2, jobs_pb2, jobs_pb2_grpc  # noqa: E402
from errand.v1 import runners_pb2, runners_pb2_grpc  # noqa: E402

__all__ = ["health_pb2", "job_pb2", "jobs_pb2", "jobs_pb2_grpc", "runners_pb2", "Grpc", "code_of", "reason_of", "stubs"]


def stubs():
    """Where the stubs are, for a process of its own."""
    return _folder.name


class _CallDetails(
    collections.namedtuple("_CallDetails", "method timeout metadata credentials wait_for_ready compression"),
    grpc.ClientCallDetails,
):
    pass


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, token):
        self._header = ("authorization", f"Bearer {token}")

    def _call(self, proceed, details, request):
        metadata = [*(details.metadata or ()), self._header]
        return proceed(
            _CallDetails(
                details.method,
                details.timeout,
                metadata,
                details.credentials,
                details.wait_for_ready,
                details.compression,
            ),
            request,
        )

    intercept_unary_unary = _call
    intercept_unary_stream = _call
    intercept_stream_unary = _call
    intercept_stream_stream = _call


class Grpc:
    """A client with one token; `jobs`, `runners` and `health` are the services."""

    def __init__(self, address, token=None):
        # Without its own pool a channel could be shared with the one that a test is about to cut.
        self.bare = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.channel = grpc.intercept_channel(self.bare, _Bearer(token)) if token else self.bare
        self.jobs = jobs_pb2_grpc.JobsStub(self.channel)
        self.runners = runners_pb2_grpc.RunnersStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def publish(self, func="tests.echo", payload="{}", **fields):
        spec = jobs_pb2.JobSpec(func=func, payload_json=payload, **fields)
        return self.jobs.PublishJob(jobs_pb2.PublishJobRequest(spec=spec), timeout=20).job

    def job(self, job_id):
        return self.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id), timeout=20).job

    def status(self, job_id):
        """The job's status as REST spells it."""
        return job_pb2.JobStatus.Name(self.job(job_id).status).removeprefix("JOB_STATUS_").lower()

    def close(self):
        self.bare.close()


def code_of(call):
    """The status code that a call is refused with."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def reason_of(error):
    """The machine-readable reason in a refusal's details; None where there is none."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return None
