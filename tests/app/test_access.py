"""Every route with real tokens of every role, and tokens that are none. The realm is a small server with a real key."""

from __future__ import annotations

import base64
import http.server
import json
import re
import subprocess
import sys
import threading
import time

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from lib.security.access import exposure, listening_host

from tests.app.serving import APP, environment, shipped_model, start, stop
from tests.app.volumes import CENTRE_IJK, save, scan

pytestmark = pytest.mark.e2e

ROLES = ("user", "annotator", "reviewer", "admin")
CLICK = {"params": (None, json.dumps({"foreground": [list(CENTRE_IJK)]}))}
SMALL = {"file": ("x.nii.gz", b"no volume"), "label": ("x.nii.gz", b"no volume"), "files": ("x.nii.gz", b"no volume")}

# Method, address, the role that it takes; what is sent along is refused for another reason once the role is right.
ROUTES = [
    ("GET", "/info/", "user"),
    ("GET", "/auth/token/valid", "any"),
    ("POST", "/infer/fastsam3d?image=case1&output=json", "user"),
    ("POST", "/infer/wsi/fastsam3d", "user"),
    ("POST", "/infer/wsi_v2/fastsam3d", "user"),
    ("POST", "/activelearning/first", "user"),
    ("GET", "/datastore/", "user"),
    ("GET", "/datastore/image?image=case1", "user"),
    ("HEAD", "/datastore/image?image=case1", "user"),
    ("GET", "/datastore/image/info?image=case1", "user"),
    ("GET", "/datastore/label?label=case1&tag=final", "user"),
    ("HEAD", "/datastore/label?image=case1&tag=final", "user"),
    ("GET", "/datastore/label/info?label=case1&tag=final", "user"),
    ("GET", "/session/nothing", "user"),
    ("PUT", "/session/", "user"),
    ("DELETE", "/session/nothing", "user"),
    ("GET", "/train/", "user"),
    ("GET", "/scoring/", "user"),
    ("GET", "/batch/infer", "user"),
    ("GET", "/proxy/dicom/wado/studies", "user"),
    ("GET", "/proxy/dicom/qido/studies", "user"),
    ("GET", "/proxy/dicom/stow/studies", "user"),
    ("GET", "/proxy/dicom/studies", "user"),
    ("GET", "/ohif/nothing", "user"),
    ("PUT", "/datastore/", "annotator"),
    ("PUT", "/datastore/image", "annotator"),
    ("PUT", "/datastore/label?image=case1", "annotator"),
    ("PUT", "/datastore/image/info?image=nothing", "annotator"),
    ("PUT", "/datastore/label/info?label=nothing&tag=final", "annotator"),
    ("PUT", "/datastore/updatelabelinfo?label=nothing&tag=final", "annotator"),
    ("GET", "/datastore/dataset", "annotator"),
    ("POST", "/proxy/dicom/stow/studies", "annotator"),
    ("POST", "/proxy/dicom/wado/studies", "annotator"),
    ("POST", "/proxy/dicom/qido/studies", "annotator"),
    ("POST", "/proxy/dicom/studies", "annotator"),
    ("POST", "/scoring/?run_sync=true", "annotator"),
    ("POST", "/scoring/nothing", "annotator"),
    ("DELETE", "/scoring/", "annotator"),
    ("DELETE", "/datastore/image?id=nothing", "admin"),
    ("DELETE", "/datastore/?id=nothing", "admin"),
    ("DELETE", "/datastore/label?id=nothing&tag=final", "admin"),
    ("POST", "/train/?run_sync=true", "admin"),
    ("POST", "/train/nothing", "admin"),
    ("DELETE", "/train/", "admin"),
    ("POST", "/batch/infer/nothing", "admin"),
    ("DELETE", "/batch/infer", "admin"),
    ("GET", "/model/nothing", "admin"),
    ("GET", "/model/info/nothing", "admin"),
    ("PUT", "/model/nothing", "admin"),
    ("DELETE", "/model/fastsam3d", "admin"),
    ("POST", "/reload", "admin"),
    ("GET", "/logs/?lines=1", "admin"),
    ("GET", "/logs/gpu", "admin"),
]
_LIST_ROUTES = """
import json
import monailabel.app as server
from lib.security.front_routes import install_routes

def flat(routes):
    for route in routes:
        router = getattr(route, "original_router", None)  # which newer versions of FastAPI keep whole
        yield from flat(router.routes) if router else [route]

install_routes()
found = [(m, r.path, r.path_regex.pattern) for r in flat(server.app.router.routes)
         for m in sorted(getattr(r, "methods", None) or ["GET"])]
print("ROUTES" + json.dumps(found))
"""
OPEN = {"/", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/favicon.ico", "/static", "/auth/", "/auth/token"}


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_der(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def realm(key):
    """The address of a realm, which answers with its public key as Keycloak does."""
    answer = json.dumps({"realm": "test", "public_key": base64.b64encode(public_der(key)).decode()}).encode()

    class Realm(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Realm) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/realms/test"
        server.shutdown()


@pytest.fixture(scope="module")
def secured(realm, tmp_path_factory):
    studies = tmp_path_factory.mktemp("access") / "studies"
    studies.mkdir()
    save(studies / "case1.nii.gz", scan(1))
    running = start(
        studies,
        tmp_path_factory.mktemp("home"),
        *shipped_model(),
        settings={"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm},
    )
    yield running
    stop(running)


def token(key, roles=(), algorithm="RS256", **claims) -> str:
    roles = [f"monailabel-{role}" for role in roles]
    given = {"preferred_username": "jane", "exp": time.time() + 600, "realm_access": {"roles": roles}, **claims}
    return jwt.encode({k: v for k, v in given.items() if v is not None}, key, algorithm=algorithm)


def ask(secured, method: str, path: str, token: str | None) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    sent: dict = {}
    if method == "POST" and path.startswith("/infer"):
        sent = {"files": CLICK}
    elif method == "POST":
        sent = {"json": {}}
    elif method == "PUT":
        sent = {"files": SMALL}
    return requests.request(method, secured.url + path, headers=headers, timeout=60, **sent)


def lacks_role(answer: requests.Response) -> bool:
    return answer.status_code == 403 and (not answer.content or "is required to perform" in answer.text)


@pytest.mark.parametrize(("method", "path", "role"), ROUTES)
def test_each_route_takes_its_role_and_no_less(secured, key, method, path, role):
    assert ask(secured, method, path, None).status_code == 401
    for one in ("nobody", *ROLES):
        answer = ask(secured, method, path, token(key, [one]))
        assert answer.status_code != 401
        if method == "HEAD":
            assert (answer.status_code == 403) == (one != role)
        else:
            assert lacks_role(answer) == (role not in ("any", one)), (one, answer.text[:200])


def routes(home) -> list[dict[str, str]]:
    """Every route of the server in the order in which they are tried, also those that its description leaves out.

    A process of its own makes the server's app with the app's routes in front, as a started server has them.
    """
    settings = {**environment(home), "PYTHONPATH": str(APP), "MONAI_LABEL_AUTH_ENABLE": "true"}
    done = subprocess.run(
        [sys.executable, "-c", _LIST_ROUTES],
        env=settings,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("ROUTES")[2])
    return [dict(zip(("method", "path", "pattern"), route)) for route in found]


def test_the_table_holds_every_route(tmp_path):
    (tmp_path / "tmp").mkdir()
    every = routes(tmp_path)
    assert len(every) > len(ROUTES)
    tested = set()
    for method, path, _ in ROUTES:
        answering = (r for r in every if r["method"] == method and re.match(r["pattern"], path.split("?")[0]))
        tested.add((method, next(answering)["path"]))
    missing = {(r["method"], r["path"]) for r in every if r["path"] not in OPEN} - tested
    assert missing == set(), "in no row of ROUTES"


def test_a_click_with_a_token(secured, key):
    assert ask(secured, "POST", "/infer/fastsam3d?image=case1&output=json", token(key, ["user"])).json()["voxels"] > 0


def test_tokens_that_are_none(secured, key):
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(public_der(key)) + b"\n-----END PUBLIC KEY-----"
    head, body, _ = token(key, ["admin"]).split(".")
    shared = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    import hashlib
    import hmac

    mac = hmac.new(pem, f"{shared}.{body}".encode(), hashlib.sha256).digest()
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    for bad in (
        token(stranger, ["admin"]),
        token(key, ["admin"], exp=time.time() - 10),
        token(key, ["admin"], exp=None),
        token(key, ["admin"], preferred_username=None),
        token(key, ["admin"], preferred_username=["x"]),
        f"{shared}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}",
        f"{none}.{body}.",
        f"{head}.{body}.",
        "nonsense",
        "a" * 10_000,
    ):
        assert ask(secured, "GET", "/info/", bad).status_code == 401
    for roles in ("monailabel-user", {"monailabel-user": 1}, None, [["monailabel-user"]]):
        answer = ask(secured, "GET", "/info/", token(key, realm_access={"roles": roles}))
        assert answer.status_code == 403
    assert ask(secured, "GET", "/info/", token(key, ["user"], algorithm="PS256")).status_code == 200


@pytest.mark.parametrize(
    ("host", "authentication", "tls", "said"),
    [
        ("127.0.0.1", False, False, None),
        ("localhost", False, False, None),
        ("0.0.0.0", False, False, "ANYBODY"),
        ("0.0.0.0", False, True, "ANYBODY"),
        ("10.1.2.3", True, False, "unencrypted"),
        ("10.1.2.3", True, True, None),
        (None, False, False, None),
    ],
)
def test_what_is_said_about_an_address(host, authentication, tls, said):
    warnings = exposure(host, authentication, tls)
    assert len(warnings) == (said is not None)
    assert all(said in text for text in warnings)


def test_the_address_that_the_server_was_told():
    assert listening_host(["start_server", "--app", "x"]) == "0.0.0.0"
    assert listening_host(["start_server", "--host", "127.0.0.1", "--port", "1"]) == "127.0.0.1"
    assert listening_host(["start_server", "-i", "::1"]) == "::1"
    assert listening_host(["-m", "train"]) is None


def test_the_log_warns_of_no_exposure_on_this_machine(secured):
    assert "ANYBODY" not in secured.log.read_text()
