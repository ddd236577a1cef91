"""Show a click in OHIF: Orthanc holding a DICOM series, the MONAI Label server on it, and the address to open.

    .venv/bin/python scripts/demo_ohif.py --dicom sample-data/out [--port 8000]

Orthanc listens on the loopback address only and stops together with the server. Its database, with any segmentation
that was saved, and the server's copies of the series stay in build/demo-ohif.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
INSTALL = "apt-get update && apt-get install -y --no-install-recommends orthanc orthanc-dicomweb"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
BATCH = 32  # instances in one STOW request


class DemoError(RuntimeError):
    """The demonstration cannot run; the message says what to do."""


def find_orthanc() -> tuple[str, str]:
    """Return the paths of the Orthanc program and of its DICOMweb plugin.

    Raises:
        DemoError: one of them is not installed.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugins = (path for folder in PLUGIN_FOLDERS for path in sorted(Path(folder).glob("**/libOrthancDicomWeb.so*")))
    plugin = next(plugins, None)
    if not program or not plugin:
        what = "Orthanc" if not program else "Orthanc's DICOMweb plugin"
        raise DemoError(f"{what} is not installed. On Debian or Ubuntu, as root: {INSTALL}")
    return program, str(plugin)


def reach_loopback_directly() -> None:
    """Exempt the loopback address from any proxy that the environment names, here and in processes started from here."""
    listed = ",".join(os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")).split(",")
    hosts = ",".join(dict.fromkeys(filter(None, map(str.strip, [*listed, HOST, "localhost"]))))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = hosts


def port_is_free(port: int) -> bool:
    """Tell whether a server may listen on this port of the loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(preferred: int) -> int:
    """Return the preferred port, or any free one where that is taken."""
    if port_is_free(preferred):
        return preferred
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def orthanc_config(plugin: str, folder: Path, port: int) -> dict:
    """Return Orthanc's settings: a DICOMweb store on the loopback address, nothing else switched on."""
    return {
        "Name": "FastSAM3D demo",
        "StorageDirectory": str(folder / "orthanc-db"),
        "IndexDirectory": str(folder / "orthanc-db"),
        "Plugins": [plugin],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "DicomWeb": {
            "Enable": True,
            "Root": "/dicom-web/",
            "EnableWado": True,
            "WadoRoot": "/wado",
            "Ssl": False,
            "Host": HOST,
            "StudiesMetadata": "Full",
            "SeriesMetadata": "Full",
        },
    }


def wait_for(url: str, process: subprocess.Popen, seconds: float, log: str) -> None:
    """Wait until a server answers.

    Raises:
        DemoError: the process ended, or did not answer in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise DemoError(f"a server ended with status {process.returncode} before it answered: see {log}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise DemoError(f"{url} did not answer within {seconds:.0f} s: see {log}")


@contextmanager
def started(command: list[str], log: Path | None = None, env: dict[str, str] | None = None) -> Iterator:
    """Run a server in a process group of its own (Ctrl-C reaches only this script), and stop it at the end."""
    output = log.open("wb") if log else None
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if output:
            output.close()


def store_series(source: Path, url: str) -> list[str]:
    """Send every DICOM file below a folder to the store and return the StudyInstanceUIDs.

    Raises:
        DemoError: there is no DICOM file.
    """
    from dicomweb_client import DICOMwebClient
    from pydicom import dcmread

    instances = [dcmread(path) for path in sorted(source.rglob("*.dcm"))]
    if not instances:
        raise DemoError(f"no .dcm file below {source}. Make the samples first: make sample-data")
    client = DICOMwebClient(url)
    stored = {series["0020000E"]["Value"][0] for series in client.search_for_series()}
    fresh = [one for one in instances if one.SeriesInstanceUID not in stored]
    for start in range(0, len(fresh), BATCH):
        client.store_instances(fresh[start : start + BATCH])
    return list(dict.fromkeys(one.StudyInstanceUID for one in instances))


def run(dicom: Path, app: Path, port: int, folder: Path, weights: str = "") -> None:
    """Start everything, print the address, and wait for the server to end."""
    program, plugin = find_orthanc()
    if not port_is_free(port):
        raise DemoError(f"port {port} is in use; stop what uses it or take another: make demo-ohif PORT={port + 1}")
    (folder / "orthanc-db").mkdir(parents=True, exist_ok=True)
    orthanc_port = free_port(8042)
    config = folder / "orthanc.json"
    config.write_text(json.dumps(orthanc_config(plugin, folder.resolve(), orthanc_port), indent=2))
    log = folder / "orthanc.log"
    with started([program, str(config)], log) as orthanc:
        wait_for(f"http://{HOST}:{orthanc_port}/system", orthanc, 60, str(log))
        store = f"http://{HOST}:{orthanc_port}/dicom-web"
        studies = store_series(dicom, store)
        command = [str(Path(sys.executable).parent / "monailabel"), "start_server", "--app", str(app)]
        command += ["--studies", store, "--host", HOST, "--port", str(port)]
        command += ["--conf", "weights", weights] if weights else []
        # The server's copies of the series live beside Orthanc's database rather than in the user's home folder.
        env = {**os.environ, "MONAI_LABEL_DICOMWEB_CACHE_PATH": str((folder / "cache").resolve())}
        with started(command, env=env) as server:
            wait_for(f"http://{HOST}:{port}/info/", server, 180, "the lines above")
            say(f"DICOMweb store: {store}")
            for study in studies:
                say(f"open http://{HOST}:{port}/ohif/monai-label?StudyInstanceUIDs={study}")
            if port != 8000:
                say(f"in OHIF's MONAI Label panel set the server to http://{HOST}:{port} (it expects port 8000)")
            say("Ctrl-C stops the server and Orthanc")
            if server.wait():
                raise DemoError(f"the server ended with status {server.returncode}: see the lines above")


def say(text: str) -> None:
    """Write one line to standard output at once."""
    sys.stdout.write(f"demo-ohif: {text}\n")
    sys.stdout.flush()


def stop(*_: object) -> None:
    """Turn a request to end into an ordinary way out, so that both servers are stopped."""
    raise KeyboardInterrupt


def main() -> int:
    """Read the command line and run the demonstration."""
    parser = argparse.ArgumentParser(description="OHIF on a DICOMweb store with the FastSAM3D app")
    parser.add_argument("--dicom", type=Path, required=True, help="folder whose .dcm files go into the store")
    parser.add_argument("--app", type=Path, default=ROOT / "apps" / "fastsam3d", help="MONAI Label app")
    parser.add_argument("--port", type=int, default=8000, help="port of the server")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "demo-ohif", help="working folder")
    parser.add_argument("--weights", default="", help="--conf weights of the server (default: the app's own choice)")
    options = parser.parse_args()
    reach_loopback_directly()
    signal.signal(signal.SIGTERM, stop)
    try:
        run(options.dicom, options.app, options.port, options.folder, options.weights)
    except DemoError as error:
        sys.stderr.write(f"demo-ohif: {error}\n")
        return 1
    except KeyboardInterrupt:
        say("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
