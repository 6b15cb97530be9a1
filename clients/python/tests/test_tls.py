"""TLS and mutual TLS, for publishers and runners."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import errand

NAME = x509.NameOID.COMMON_NAME


class Authority:
    """A certificate authority of its own for each test."""

    def __init__(self, folder):
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NAME, "test authority")])
        self.file = self._write("ca.pem", self._sign(self.name, self.key, authority=True))

    def _sign(self, subject, key, *, authority=False):
        now = datetime.datetime.now(datetime.timezone.utc)
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
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            usage = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _write(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return str(path)

    def issue(self, name):
        """A certificate file and its key file."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([x509.NameAttribute(NAME, name)]), key)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write(f"{name}.pem", certificate), self._write(f"{name}.key", secret)


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
def test_everything_works_over_tls(crew, tmp_path, channel, mutual):
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    switches = ["--tls-cert", cert, "--tls-key", key]
    client_cert, client_key = authority.issue("client")
    if mutual:
        switches += ["--tls-client-ca", authority.file]
    service = crew.service(*switches)
    url = f"https://{service.address}"
    own = {"cert": client_cert, "key": client_key} if mutual else {}
    runner_switches = ["--tls-cert", client_cert, "--tls-key", client_key] if mutual else []
    crew.runner(service, channel, *runner_switches, server=url, ERRAND_TLS_CA=authority.file)
    with errand.Client(url, service.operator, tls=errand.Tls(ca=authority.file, **own)) as client:
        job_id = client.publish("functions.echo", {"n": 1}, channel=channel).id
        assert client.result(job_id, timeout=30) == {"n": 1}
    stranger = errand.Tls(ca=authority.file) if mutual else errand.Tls()
    with errand.Client(url, service.operator, tls=stranger) as client, pytest.raises(errand.Unavailable):
        client.get(job_id)


def test_a_certificate_needs_its_key(tmp_path):
    cert, _ = Authority(tmp_path).issue("client")
    with pytest.raises(ValueError, match="both cert and key"):
        errand.Client("https://127.0.0.1:1", "t", tls=errand.Tls(cert=cert))
