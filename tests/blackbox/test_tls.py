"""Both listeners speak TLS, and ask for a client's certificate where they are told to."""

import datetime
import ipaddress
import json
import subprocess

import grpc
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service import ERRAND, clean_environment, errand
from wire import jobs_pb2, jobs_pb2_grpc


class Authority:
    """A certificate authority of its own for each test."""

    def __init__(self, folder):
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._sign(self.name, self.key, authority=True)
        self.file = self._write("ca.pem", self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject, key, authority):
        now = datetime.datetime.now(datetime.timezone.utc)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usage = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _write(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return str(path)

    def issue(self, name):
        """A certificate file and its key file."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, authority=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = certificate.public_bytes(serialization.Encoding.PEM)
        return self._write(f"{name}.pem", public), self._write(f"{name}.key", private)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def list_over_grpc(service, credentials):
    header = ("authorization", f"Bearer {service.token('operator', 'manage_jobs')}")
    with grpc.secure_channel(service.grpc_address, credentials) as secure:
        jobs_pb2_grpc.JobsStub(secure).ListJobs(jobs_pb2.ListJobsRequest(), metadata=[header], timeout=10)


def list_over_rest(service, authority, **options):
    header = {"Authorization": f"Bearer {service.token('operator', 'manage_jobs')}"}
    url = f"https://{service.http}/api/jobs/list"
    return requests.get(url, headers=header, verify=authority.file, timeout=10, **options)


def test_both_listeners_speak_tls(crew, authority):
    certificate, key = authority.issue("server")
    service = crew.service("--tls-cert", certificate, "--tls-key", key)
    assert list_over_rest(service, authority).status_code == 200
    list_over_grpc(service, grpc.ssl_channel_credentials(content(authority.file)))


def test_a_client_authority_wants_a_client_certificate(crew, authority):
    certificate, key = authority.issue("server")
    mine, my_key = authority.issue("client")
    service = crew.service("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.file)
    root = content(authority.file)
    list_over_grpc(service, grpc.ssl_channel_credentials(root, content(my_key), content(mine)))
    assert list_over_rest(service, authority, cert=(mine, my_key)).status_code == 200
    with pytest.raises(grpc.RpcError):
        list_over_grpc(service, grpc.ssl_channel_credentials(root))
    with pytest.raises(requests.RequestException):
        list_over_rest(service, authority)


def test_the_client_speaks_mutual_tls(crew, authority, tmp_path):
    certificate, key = authority.issue("server")
    mine, my_key = authority.issue("client")
    service = crew.service("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.file)
    token = service.token("crew", "run_jobs", "manage_jobs")
    plain = ["--server", f"https://{service.grpc_address}", "--token", token, "--tls-ca", authority.file]
    mutual = [*plain, "--tls-cert", mine, "--tls-key", my_key]
    log = tmp_path / "work.log"
    with open(log, "wb") as stderr:
        work = subprocess.Popen(
            [ERRAND, "work", "--channel", "secret", *mutual, "--", "cat"],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env=clean_environment(),
        )
    try:
        done = errand("publish", "demo.hello", '{"n": 1}', "--channel", "secret", "--wait", "--json", *mutual)
        assert done.returncode == 0, done.stderr + log.read_text()
        assert json.loads(done.stdout)["result"] == {"n": 1}
    finally:
        work.terminate()
        assert work.wait(20) == 0, log.read_text()
    assert errand("list", *plain).returncode != 0


def test_a_certificate_without_its_key_is_refused(authority, tmp_path):
    certificate, _ = authority.issue("server")
    done = errand("serve", "--http=127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--tls-cert", certificate)
    assert done.returncode == 64
    assert "tls-key" in done.stderr or "tls_key" in done.stderr
