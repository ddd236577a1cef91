"""`weights`: what weights there are, getting them, checking them, and making those that ship."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ..cli import UserError, emit
from ..conf import DEFAULT_MODEL, MODEL_DIR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=summary, description=summary)
        added.add_argument("--model-dir", type=Path, default=MODEL_DIR, help="folder of weights (default: the app's)")
        return added

    action("list", "list the known weights, and those that each model would use").add_argument(
        "--json", action="store_true", help="print JSON"
    )
    fetch = action("fetch", "download published weights, verify them and import them")
    fetch.add_argument("name", help="a name that `weights list` shows")
    fetch.add_argument("--sha256", help="the file's hash, if you know it from its authors")
    fetch.add_argument(
        "--decoder", type=Path, help="for an encoder alone: a checkpoint with prompt encoder and decoder"
    )
    action("verify", "check hashes and load strictly").add_argument("name", nargs="?", help="one name; default: all")
    importing = action("import", "turn a published checkpoint into verified safetensors")
    importing.add_argument("file", type=Path, help="a .pth, .pt, .ckpt or .safetensors file")
    importing.add_argument("--decoder", type=Path, help="for an encoder alone: a checkpoint that completes it")
    importing.add_argument("--name", help="what to call the weights (default: by the file)")
    importing.add_argument("--spec", help="the network, where the tensors do not tell (see lib/sam/zoo.py)")
    export = action("export-run", "turn a training run's checkpoint.pt into the files that ship")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("--out", type=Path, required=True, help="folder for the files and their registry.json")
    export.add_argument("--name", default="fastsam3d_compact", help="start of the files' names (default: %(default)s)")
    export.add_argument(
        "--release", type=int, default=4, help="number at the end of the weights' name (default: %(default)s)"
    )
    export.add_argument(
        "--mean-with", type=Path, help="checkpoint.pt of the run that it began with: take the mean of both"
    )
    past = action("history", "what training published or kept, and why")
    past.add_argument("--model", default=DEFAULT_MODEL, help="default: %(default)s")
    past.add_argument("--json", action="store_true", help="print JSON")
    back = action("rollback", "serve earlier weights from the next click on")
    back.add_argument("name", nargs="?", help='a version of the history, or "default" (default: the one before)')
    back.add_argument("--model", default=DEFAULT_MODEL, help="default: %(default)s")


def main(args: argparse.Namespace) -> int:
    """Runs the action.

    Raises:
        UserError, WeightsError, OSError: with what to put right.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    actions = {
        "list": _list, "fetch": _fetch, "verify": _verify, "import": _import, "export-run": _export,
        "history": _history, "rollback": _rollback,
    }  # fmt: skip
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from ..conf import WEIGHTS_MODELS
    from ..sam import registry, weights

    rows = []
    for row in registry.entries(args.model_dir).values():
        state, path = _state(row, args.model_dir)
        rows.append(
            {"name": row.name, "model": row.model, "spec": row.spec, "state": state, "path": path, "url": row.url}
            | {"licence": row.licence, "note": row.note}
        )
    used = {}
    for model in WEIGHTS_MODELS:
        try:
            found = weights.resolve(model, args.model_dir)
            used[model] = {"name": found.name, "version": found.version, "origin": found.origin}
        except weights.WeightsError as error:
            used[model] = {"name": None, "reason": str(error)}
    emit(json.dumps({"weights": rows, "used": used}, indent=2) if args.json else _in_words(rows, used))
    return 0


def _state(row, model_dir: Path) -> tuple[str, str | None]:
    """ "verified", "unpinned" (there, but without a known hash), "damaged" or "missing", and the first file."""
    from ..sam import registry, weights

    path = registry.folder_of(row, model_dir) / row.files[0]
    if not all(path.with_name(file).is_file() for file in row.files):
        return "missing", None
    try:
        weights.verify(row, model_dir)
    except weights.WeightsError:
        return "damaged", str(path)
    return ("verified" if row.pinned else "unpinned"), str(path)


def _fetch(args: argparse.Namespace) -> int:
    from ..sam.fetching import fetch

    return _say_imported(fetch(args.name, args.model_dir, sha256=args.sha256, decoder=args.decoder), args.model_dir)


def _verify(args: argparse.Namespace) -> int:
    from ..sam import registry, weights

    rows = registry.entries(args.model_dir)
    if args.name and args.name not in rows:
        raise UserError(f"there are no weights called {args.name!r}; there are {', '.join(rows)}")
    chosen = [rows[args.name]] if args.name else list(rows.values())
    failures = 0
    for row in chosen:
        if not args.name and _state(row, args.model_dir)[0] == "missing":
            emit(f"{row.name}: not here")
            continue
        try:
            found = weights.resolve(row.model, args.model_dir, configured=row.name)
            weights.load_sam(found, "cpu")
            hashes = "hash and tensors" if row.pinned else "tensors (its hash is not pinned)"
            emit(f"{row.name}: {hashes} verified, version {found.version}")
        except weights.WeightsError as error:
            failures += 1
            emit(f"{row.name}: FAILED: {error}")
    return 1 if failures else 0


def _import(args: argparse.Namespace) -> int:
    from ..sam.registry import IMPORTED
    from ..sam.weights_files import import_checkpoint

    path = import_checkpoint(args.file, args.model_dir / IMPORTED, args.decoder, args.name, args.spec)
    return _say_imported(path, args.model_dir)


def _say_imported(path: Path, model_dir: Path) -> int:
    from ..sam import registry, weights

    row = next(row for row in registry.imported(model_dir) if path.name in row.files)
    found = weights.resolve(row.model, model_dir)
    emit(f"imported as {path} ({row.spec})\n{row.model} now uses {found.name} ({found.version}, {found.origin})")
    return 0


def _export(args: argparse.Namespace) -> int:
    from ..sam.weights_files import export_run

    for path in export_run(args.checkpoint, args.out, args.name, args.release, other=args.mean_with):
        emit(f"{path}: {path.stat().st_size} bytes")
    return 0


def _history(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ..sam import versions, weights

    records, serving = versions.history(args.model_dir, args.model), weights.resolve(args.model, args.model_dir)
    if args.json:
        emit(json.dumps({"serving": serving.name, "history": [asdict(record) for record in records]}, indent=2))
        return 0
    for record in records:
        mark = "*" if record.name == serving.name else " "
        emit(f"{mark} {record.time[:19]}  {record.event:<8}  {record.name}  {record.version}\n    {record.reason}")
    emit(f"{args.model} serves {serving.name} ({serving.version}, {serving.origin})")
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from datetime import datetime, timezone

    from ..sam import versions, weights

    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    versions.rollback(args.model_dir, args.model, args.name, now)
    serving = weights.resolve(args.model, args.model_dir)
    emit(f"{args.model} serves {serving.name} ({serving.version}, {serving.origin}) from the next click on")
    return 0


def _in_words(rows: list[dict], used: dict[str, dict]) -> str:
    wide, state = max(len(row["name"]) for row in rows), max(len(row["state"]) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row['name']:<{wide}}  {row['state']:<{state}}  {row['model']} as {row['spec']}")
        lines += [f"{'':<{wide}}  {text}" for text in (row["path"] or row["url"], row["licence"], row["note"]) if text]
    lines.append("")
    for model, found in used.items():
        what = (
            f"{found['name']} ({found['version']}, {found['origin']})" if found["name"] else f"none: {found['reason']}"
        )
        lines.append(f"{model} uses {what}")
    return "\n".join(lines)
