"""docs/nginx.conf as it is, in front of the real server: TLS, passwords and tokens."""

from __future__ import annotations

import datetime
import ipaddress
import json
import shutil
import subprocess
import time

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.app.serving import free_port
from tests.app.volumes import CENTRE_IJK
from tests.needs import need

pytestmark = pytest.mark.e2e

TOKEN = "5f" * 32
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def certificate(folder) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)


@pytest.fixture(scope="module")
def proxy(server, repo_dir, tmp_path_factory):
    """The address of nginx and the certificate to trust."""
    need(None if NGINX else "nginx is not installed (sh scripts/debian_packages.sh nginx)")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    folder.chmod(0o755)
    for parent in folder.parents:
        if parent.stat().st_mode & 0o001:
            break
        parent.chmod(0o755)  # nginx's workers run as another user
    certificate(folder)
    secret = subprocess.run(["openssl", "passwd", "-apr1", "a password"], check=True, capture_output=True, text=True)
    (folder / "users").write_text(f"jane:{secret.stdout.strip()}\n")
    (folder / "tokens").write_text(f'"Bearer {TOKEN}" viewer;\n')
    config = (repo_dir / "docs" / "nginx.conf").read_text()
    for old, new in (("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"), ("http://127.0.0.1:8000", server.url)):
        assert config.count(old) == 1
        config = config.replace(old, new)
    (folder / "nginx.conf").write_text(config)
    process = subprocess.Popen(
        [NGINX, "-p", str(folder), "-c", "nginx.conf", "-g", "daemon off;"], stderr=subprocess.PIPE
    )
    address, trust = f"https://127.0.0.1:{port}", str(folder / "certificate.pem")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        try:
            requests.get(address, verify=trust, timeout=5)
            break
        except requests.ConnectionError:
            time.sleep(0.1)
    yield address, trust
    process.terminate()
    process.wait(10)
    process.stderr.close()


def click(proxy, **options) -> requests.Response:
    address, trust = proxy
    files = {"params": (None, json.dumps({"foreground": [list(CENTRE_IJK)]}))}
    query = {"image": "case1", "output": "json"}
    return requests.post(f"{address}/infer/fastsam3d", params=query, files=files, verify=trust, timeout=60, **options)


def test_nobody_enters_without_a_login(proxy):
    address, trust = proxy
    assert click(proxy).status_code == 401
    assert click(proxy, auth=("jane", "another")).status_code == 401
    for token in ("x", TOKEN[:-1], TOKEN + "0"):
        assert click(proxy, headers={"Authorization": f"Bearer {token}"}).status_code == 401
    for path in ("/", "/info/", "/ohif/", "/static/x", "/openapi.json", "/reload"):
        assert requests.get(address + path, verify=trust, timeout=60).status_code in (401, 403)


def test_a_password_or_a_token_is_enough_for_a_click(proxy, server):
    alone = server.infer("case1", {"foreground": [list(CENTRE_IJK)]}, output="json").json()["voxels"]
    assert click(proxy, auth=("jane", "a password")).json()["voxels"] == alone
    assert click(proxy, headers={"Authorization": f"Bearer {TOKEN}"}).json()["voxels"] == alone


def test_the_page_itself_may_change_things_and_others_may_not(proxy):
    address, _ = proxy
    token = {"Authorization": f"Bearer {TOKEN}"}
    assert click(proxy, headers={**token, "Origin": address}).status_code == 200
    assert click(proxy, headers={**token, "Origin": "https://evil.example"}).status_code == 403


def test_passwords_do_not_reach_the_server(proxy, server):
    click(proxy, auth=("jane", "a password"))
    log = server.log.read_text()
    assert "amFuZTph" not in log
    assert TOKEN not in log
