"""What the documents and the registry of weights point to is there."""

import hashlib
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

REPO = Path(__file__).resolve().parents[1]
MODEL = REPO / "apps" / "fastsam3d" / "model"
DOCUMENTS = sorted(
    {*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md"), *MODEL.glob("*.md"), *(REPO / "sample-data").glob("*.md")}
)
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=["']([^"']+)["']""", re.MULTILINE)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def links(text: str) -> list[str]:
    """The relative links and pictures of a Markdown text, without their anchors."""
    found = [next(filter(None, match)) for match in LINK.findall(CODE.sub("", text))]
    paths = [unquote(target.partition("#")[0]) for target in found if not ADDRESS.match(target)]
    return [path for path in paths if path]


def test_links_are_found():
    text = (
        '[a](b.md) ![c](d/e%20f.png "title") [g](#h) [i](j.md#k) [l](https://m/n) <img src="o.png">\n[p]: q.md\n'
        "`[r](s.md)`\n```\n[t](u.md)\n```\n[v](<w.md>)"
    )
    assert links(text) == ["b.md", "d/e f.png", "j.md", "o.png", "q.md", "w.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPO).as_posix())
def test_every_relative_link_leads_somewhere(document):
    missing = [link for link in links(document.read_text(encoding="utf-8")) if not (document.parent / link).exists()]
    assert missing == []


def test_the_tests_that_are_named_as_evidence_are_there():
    text, names, file = (REPO / "docs" / "security.md").read_text(encoding="utf-8"), [], ""
    for found, name in re.findall(r"`((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`", text):
        file = found or file
        names += [(file, name)] * bool(found or name)
    assert len(names) > 40
    lacking = {
        f"{file}::{name}"
        for file, name in names
        if f"def {name}"
        not in (
            (REPO / "tests" / file.removeprefix("tests/")).read_text("utf-8")
            if (REPO / "tests" / file.removeprefix("tests/")).exists()
            else "-"
        )
    }
    assert lacking == set()


def test_the_documents_that_everyone_looks_for_are_there():
    names = {path.relative_to(REPO).as_posix() for path in DOCUMENTS}
    assert {"README.md", "CHANGELOG.md", "apps/fastsam3d/model/MODEL_CARD.md"} <= names


def test_every_file_of_the_registry_is_there_as_stated():
    registry = json.loads((MODEL / "registry.json").read_text())
    names = {row["name"] for row in registry["weights"]}
    assert set(registry["defaults"].values()) <= names
    for row in registry["weights"]:
        assert len(row["files"]) == len(row["sha256"]) == len(row["bytes"]) > 0
        for name, sha256, size in zip(row["files"], row["sha256"], row["bytes"], strict=True):
            content = (MODEL / name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256), name
