"""Where a server's processes connect to, as Python itself reports it, whatever library asks."""

from __future__ import annotations

from pathlib import Path

_RECORD = "connections.txt"
_HOOK = """
import sys

_HERE = ("127.", "::1", "localhost", "0.0.0.0", "/", "\\0")


def _note(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        where = arguments[1]
    elif event == "socket.getaddrinfo":
        where = arguments[0]
    else:
        return
    where = where[0] if isinstance(where, tuple) else where
    where = where.decode("utf-8", "replace") if isinstance(where, bytes) else str(where or "localhost")
    with open({record!r}, "a", encoding="utf-8") as file:
        file.write(("here" if where.startswith(_HERE) else where) + "\\n")


sys.addaudithook(_note)
with open({record!r}, "a", encoding="utf-8") as file:
    file.write("here\\n")
"""


def watch_connections(home: Path) -> dict[str, str]:
    """Settings for `serving.start` under which every Python process of a server notes the hosts that it asks for.

    Args:
        home: the server's; it need not exist yet.
    """
    folder = home / "watch"
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(_HOOK.format(record=str(home / _RECORD)))
    return {"PYTHONPATH": str(folder)}


def connections(home: Path) -> set[str]:
    """The hosts; "here" stands for this machine, and is there as soon as a process of the server has started."""
    return set((home / _RECORD).read_text(encoding="utf-8").split("\n")) - {""}
