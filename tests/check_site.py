"""Check the built documentation: it loads nothing from elsewhere, and every public name has its entry.

python -m tests.check_site site
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

# What a browser fetches by itself. Links that a reader follows may lead anywhere.
LOADED = {
    **{tag: "src" for tag in ("script", "img", "iframe", "source", "video", "embed")},
    **{tag: "href" for tag in ("link", "use", "image")},
    "object": "data",
}


class Page(HTMLParser):
    """What a page loads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.add(given.get("id") or "")
        address = given.get(LOADED.get(tag, "")) or ""
        canonical = tag == "link" and given.get("rel") == "canonical"
        if address.startswith(("http:", "https:", "//")) and not canonical:
            self.loads.append(address)


def complaints(site: Path, names: Iterable[str]) -> Iterator[str]:
    """Say what is wrong with a site: what it loads from elsewhere, and names without an entry in the reference."""
    pages = {path.relative_to(site): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        yield from (f"{path} loads {address}" for address in page.loads)
    for path in sorted(site.rglob("*.css")):
        if any(f"{call}http" in path.read_text(encoding="utf-8") for call in ("url(", "url('", 'url("', "@import '")):
            yield f"{path.relative_to(site)} loads from elsewhere"
    found = {anchor for path, page in pages.items() if path.parts[0] == "reference" for anchor in page.anchors}
    yield from (f"{name} is not in the reference" for name in names if name not in found)


def main(names: list[str]) -> int:
    import surgeon

    wrong = list(complaints(Path(names[0]), [f"surgeon.{name}" for name in surgeon.__all__]))
    print("\n".join(wrong or ["nothing is loaded from elsewhere, and every public name has its entry"]))
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
