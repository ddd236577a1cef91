"""The checks of `doctor --strict`: what an operator of an installation for several people must have seen to.

docs/security.md says why each matters. A finding here is "fail": strict means that none may be left.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from .conf import MODEL_DIR
from .doctor_checks import APP_DIR, FAIL, OK, Check

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LISTENING = "0A"


def check_user() -> Check:
    """Whether the server would run as root, for whom no permission of a file holds."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Check("user", FAIL, "this is root", "run the server as a user of its own, without a login shell")
    return Check("user", OK, "not root")


def check_private(name: str, folder: Path, readable: bool = False) -> Check:
    """Whether other users of the machine are kept out of a folder.

    Args:
        name: of the check.
        folder: one that is not there yet is judged by the umask.
        readable: others may read it (the app's own files), but not write.
    """
    unwanted = stat.S_IWOTH if readable else stat.S_IRWXO
    if not folder.exists():
        mask = os.umask(0)
        os.umask(mask)
        if ~mask & unwanted & 0o777:
            return Check(
                name, FAIL, f"{folder} would be open to all users (umask {mask:03o})", "start the server with umask 027"
            )
        return Check(name, OK, f"{folder} is not there yet; umask {mask:03o}")
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & unwanted:
        verb = "write" if readable else "enter or read"
        return Check(
            name,
            FAIL,
            f"{folder} has mode {mode:03o}: every user can {verb} it",
            f"chmod o-{'w' if readable else 'rwx'} {folder}",
        )
    return Check(name, OK, f"{folder} has mode {mode:03o}")


def kept_images(settings: Mapping[str, str]) -> list[Path]:
    """The folders in which MONAI Label keeps images that clients sent or that came from a DICOMweb server.

    Args:
        settings: the environment, by which each can be put elsewhere.
    """
    home = Path.home() / ".cache" / "monailabel"
    chosen = [
        settings.get(name, "").strip() for name in ("MONAI_LABEL_SESSION_PATH", "MONAI_LABEL_DICOMWEB_CACHE_PATH")
    ]
    folders = [Path(value).absolute() for value in chosen if value]
    return folders if all(chosen) else [home, *folders]


def check_temporary() -> Check:
    """Whether uploads pass through a folder of the server's own; MONAI Label writes them readable for all."""
    folder = Path(tempfile.gettempdir())
    found = check_private("temporary files", folder)
    if found.status == OK:
        return found
    return Check(found.name, FAIL, found.detail, "set TMPDIR to a folder of the server's user with mode 700")


def check_listening(port: int, table: str | None = None, table6: str | None = None) -> Check:
    """Whether a server that runs on the port is reached from this machine alone.

    Args:
        port: of the server.
        table, table6: Linux's lists of sockets; None reads them.
    """
    tables = [_read("/proc/net/tcp") if table is None else table, _read("/proc/net/tcp6") if table6 is None else table6]
    if not any(tables):
        return Check("listening", OK, "cannot be seen on this system; --host 127.0.0.1 keeps a server to itself")
    outside = [address for address in _listening(tables, port) if not _is_loopback(address)]
    if outside:
        remedy = "start it with --host 127.0.0.1 and put a reverse proxy with TLS in front (docs/nginx.conf)"
        return Check("listening", FAIL, f"port {port} is open to other machines", remedy)
    return Check("listening", OK, f"port {port} is not open to other machines")


def check_login(settings: Mapping[str, str]) -> Check:
    """MONAI Label's settings of tokens, as the environment has them."""
    if settings.get("MONAI_LABEL_AUTH_ENABLE", "").lower() not in ("true", "1", "yes", "on"):
        return Check("login", OK, "MONAI Label asks nobody who they are; a reverse proxy must (docs/nginx.conf)")
    realm = settings.get("MONAI_LABEL_AUTH_REALM_URI", "http://localhost:8080/realms/monailabel")
    if not _is_encrypted(realm):
        return Check("login", FAIL, f"the realm's key comes unencrypted from {realm}", "use the realm's https address")
    return Check("login", OK, f"tokens of {realm}")


def check_origins(settings: Mapping[str, str]) -> Check:
    """The pages of other sites that may use a user's browser."""
    origins = settings.get("MONAI_LABEL_CORS_ORIGINS", "")
    if "*" in origins or any(
        not _is_encrypted(o) for o in origins.strip("[] ").replace('"', "").split(",") if o.strip()
    ):
        return Check(
            "origins", FAIL, f"MONAI_LABEL_CORS_ORIGINS is {origins}", "name the https addresses of your viewers"
        )
    return Check("origins", OK, origins or "pages of this server and of this machine alone")


def check_pacs(studies: str | None) -> Check:
    """The way to the DICOMweb server."""
    if not studies or not studies.startswith(("http://", "https://")):
        return Check("way to the studies", OK, "files of this machine" if studies else "not given (--studies)")
    if "@" in urlsplit(studies).netloc:
        remedy = "use MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"
        return Check("way to the studies", FAIL, "its address holds a password, which is logged", remedy)
    if not _is_encrypted(studies):
        return Check(
            "way to the studies", FAIL, "images travel unencrypted to another machine", "use its https address"
        )
    return Check("way to the studies", OK, "encrypted, or on this machine")


def strict_checks(studies: str | None, port: int) -> Iterable[Check]:
    """Every check of this module."""
    settings = os.environ
    yield check_user()
    yield check_private("app's files", APP_DIR, readable=True)
    yield check_private("weights", MODEL_DIR, readable=True)
    yield check_private("logs", APP_DIR / "logs")
    for folder in kept_images(settings):
        yield check_private("sessions and cache", folder)
    yield check_temporary()
    if studies and not studies.startswith(("http://", "https://")):
        yield check_private("studies' privacy", Path(studies).absolute())
    yield check_pacs(studies)
    yield check_listening(port)
    yield check_login(settings)
    yield check_origins(settings)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _listening(tables: Iterable[str], port: int) -> list[str]:
    """Hexadecimal addresses of the sockets that listen on a port."""
    found = []
    for line in (line for table in tables for line in table.splitlines()[1:]):
        address, _, number = line.split()[1].partition(":")
        if int(number, 16) == port and line.split()[3] == _LISTENING:
            found.append(address)
    return found


def _is_loopback(address: str) -> bool:
    """Of /proc/net/tcp: bytes in the order of the processor, 127.x.x.x ends in 7F; ::1 and ::ffff:127.x.x.x."""
    if len(address) == 8:
        return address.endswith("7F")
    return address == "0" * 24 + "01000000" or (address.startswith("0" * 16 + "FFFF0000") and address.endswith("7F"))


def _is_encrypted(address: str) -> bool:
    parts = urlsplit(address.strip())
    return parts.scheme == "https" or parts.hostname in _LOOPBACK
