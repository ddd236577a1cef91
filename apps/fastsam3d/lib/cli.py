"""The command line: `python apps/fastsam3d <command>`.

A command is a module with `add_arguments(parser)` and `main(args) -> int`; it is imported only when it is called. What
a user did wrong is said in one line on stderr, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from .sam.allocator import keep_freed_memory

_PROGRAM = "python apps/fastsam3d"
_USER_ERROR = 2
_INTERRUPTED = 130


class Command(NamedTuple):
    """Where a command lives, as "module:function" below this package, and what it does."""

    target: str
    summary: str


COMMANDS: dict[str, Command] = {
    "segment": Command("commands.segment:main", "segment a structure of a volume from clicks and a box"),
    "doctor": Command("doctor:main", "say what works on this machine, and how to mend what does not"),
    "weights": Command(
        "commands.weights:main", "list, fetch, verify and import weights; history and rollback of training"
    ),
    "export": Command("commands.export:main", "write a model as ONNX or OpenVINO files for other programs"),
    "pretrain": Command("commands.pretrain:main", "train a model on generated anatomy"),
    "pretrain2d": Command("commands.pretrain2d:main", "train a model for images and slices, stage after stage"),
    "distill": Command("commands.distill:main", "make a student of fewer layers from a teacher"),
    "finetune": Command("commands.finetune:main", "train the served model on your own annotations"),
    "ablate": Command("commands.ablate:main", "compare ways to distil, and students of other depths and layers"),
    "ablate2d": Command("commands.ablate2d:main", "compare a distilled 2D encoder with one trained from scratch"),
    "evaluate": Command("commands.evaluate:main", "measure a model by simulated clicks"),
    "benchmark": Command("commands.benchmark:main", "time the stages of a click"),
}


class UserError(Exception):
    """Something the user can put right; its text is one line."""


def emit(text: str) -> None:
    """Writes a command's result to stdout."""
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; None takes them from the process.

    Returns:
        The exit status: 0, 2 for a user's error, or what the command returned.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        emit(_usage())
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        return _complain(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}")
    keep_freed_memory()
    module_name, _, function = COMMANDS[name].target.partition(":")
    module = importlib.import_module(f".{module_name}", __package__)
    parser = argparse.ArgumentParser(prog=f"{_PROGRAM} {name}", description=COMMANDS[name].summary)
    module.add_arguments(parser)
    try:
        return getattr(module, function)(parser.parse_args(arguments[1:])) or 0
    except (UserError, ValueError, OSError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return _INTERRUPTED


def _complain(text: str) -> int:
    print(f"{_PROGRAM}: {' '.join(text.split())}", file=sys.stderr)
    return _USER_ERROR


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([f"usage: {_PROGRAM} <command> [-h] ...", "", "commands:", *lines])
