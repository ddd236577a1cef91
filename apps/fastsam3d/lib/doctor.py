"""`doctor`: say what works on this machine, and how to mend what does not."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from .conf import MODEL_DIR
from .doctor_checks import (
    APP_DIR,
    FAIL,
    PINS,
    SETUP,
    WARN,
    Check,
    check_attention,
    check_cpu,
    check_device,
    check_dicom_tools,
    check_folder,
    check_monailabel_command,
    check_package,
    check_port,
    check_python,
    check_studies,
    check_weights,
)
from .doctor_security import strict_checks


def guarded(name: str, check: Callable[[], Check | Iterable[Check]]) -> list[Check]:
    """Run a check; what it cannot import becomes a finding (the package's own check says how to mend it)."""
    try:
        found = check()
        return [found] if isinstance(found, Check) else list(found)
    except Exception as error:  # the doctor must report on any broken environment, so nothing may end it
        return [Check(name, WARN, f"could not be checked: {type(error).__name__}: {error}", SETUP)]


def run_checks(
    studies: str | None = None, port: int = 8000, model_dir: Path | None = None, strict: bool = False
) -> list[Check]:
    """Run every check.

    Args:
        studies: folder or DICOMweb address to check as well, or None.
        port: port that the server would use.
        model_dir: folder of the app's weights; default: the app's own.
        strict: whether this is an installation for several people, see `doctor_security`.

    Returns:
        The findings, in the order of the report.
    """
    home = Path.home() / ".cache" / "monailabel"
    checks: list[tuple[str, Callable[[], Check | Iterable[Check]]]] = [("python", check_python)]
    checks += [(pin.package, lambda pin=pin: check_package(pin)) for pin in PINS]
    checks += [("cpu", check_cpu), ("device", check_device), ("attention", check_attention)]
    checks += [("weights", lambda: check_weights(model_dir or MODEL_DIR))]
    checks += [("monailabel command", check_monailabel_command), ("dicom tools", check_dicom_tools)]
    checks += [("app folder", lambda: check_folder("app folder", APP_DIR))]
    checks += [("cache folder", lambda: check_folder("cache folder", home))]
    checks += [("studies", lambda: check_studies(studies))] if studies else []
    checks += [("port", lambda: check_port(port))]
    checks += [("security", lambda: strict_checks(studies, port))] if strict else []
    return [finding for name, check in checks for finding in guarded(name, check)]


def report(checks: list[Check]) -> str:
    """Return the findings as text: a line each, the remedy below what needs one, a summary at the end."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(
            f"{check.status.upper() if check.status == FAIL else check.status:<5} {check.name:<{width}}  {check.detail}"
        )
        if check.remedy:
            lines.append(f"{'':<5} {'':<{width}}  -> {check.remedy}")
    fails, warns = (sum(check.status == status for check in checks) for status in (FAIL, WARN))
    verdict = "everything needed works" if not fails else f"{fails} of {len(checks)} checks failed"
    return "\n".join([*lines, "", verdict + (f"; {warns} to look at" if warns else "")])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--studies", help="a folder or a DICOMweb address to check as well")
    parser.add_argument("--port", type=int, default=8000, help="port that the server would use (default: %(default)s)")
    parser.add_argument(
        "--strict", action="store_true", help="also what docs/security.md asks of an installation for several people"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Runs the command; the exit status is 1 if something that is needed does not work, else 0."""
    checks = run_checks(args.studies, args.port, strict=args.strict)
    failed = any(check.status == FAIL for check in checks)
    if args.json:
        text = json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2)
    else:
        text = report(checks)
    sys.stdout.write(text + "\n")
    return 1 if failed else 0
