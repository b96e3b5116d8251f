"""The page that is shipped is the one that its sources make."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import surgeon.report

ROOT = Path(__file__).parents[2]
PAGE = Path(surgeon.report.__file__).parent / "page"
WEB = ROOT / "web"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bundle_is_made_of_these_sources() -> None:
    """``make page`` builds it anew after a change."""
    names = [WEB / name for name in ("build.mjs", "package.json", "package-lock.json")]
    files = {path.relative_to(WEB).as_posix(): path for path in [*names, *(WEB / "src").iterdir()]}
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{digest(files[name])}\n".encode())
    assert json.loads((PAGE / "built.json").read_text())["sources"] == whole.hexdigest()


def test_the_bundle_was_not_edited() -> None:
    parts = json.loads((PAGE / "built.json").read_text())["parts"]
    assert parts == {name: digest(PAGE / name) for name in ("page.js", "page.css", "THIRD_PARTY_LICENSES.txt")}


def test_every_dependency_is_listed_with_its_licence() -> None:
    listed = dict(re.findall(r"^(\S+) (\d\S+) \(.*\)$", (PAGE / "THIRD_PARTY_LICENSES.txt").read_text(), re.M))
    wanted = json.loads((WEB / "package.json").read_text())["dependencies"]
    assert wanted.items() <= listed.items()
    assert "axe-core" not in listed


def test_the_bundle_runs_no_text_as_code_and_names_no_server() -> None:
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"\beval\(|new Function\b|\bFunction\(|document\.write\(|insertAdjacentHTML", script)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|importScripts|new Worker", script)
    assert {url.split("/")[2] for url in re.findall(r"https?://[^\"'`\s)]+", script)} <= {"www.w3.org"}
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style
    assert "</script" not in script.lower() and "<!--" not in script and "</style" not in style.lower()


def test_own_code_makes_no_markup_from_text() -> None:
    for path in (WEB / "src").glob("*.js"):
        assert not re.search(r"(inner|outer)HTML|\.html\(|insertAdjacentHTML|DOMParser", path.read_text()), path.name
