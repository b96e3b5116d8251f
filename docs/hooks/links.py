"""Take files from beside ``docs/`` into the site, so that links work in the site as they do in the repository.

Pages link to what lies elsewhere by a path that is right in the repository: ``../benchmarks/results/zoo.md``. The site
has those files under the same path below its root, which makes the link one ``../`` shorter. ``README.md`` is the front
page of the repository, and leads to that of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
TAKEN = ("benchmarks/results/*.md", "benchmarks/*.py", "examples/*.py", "examples/*.ipynb")
_LINK = re.compile(r"(?<=\]\()(?P<path>\.\./[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files to the site; none of them belongs into the navigation."""
    for pattern in TAKEN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave ``docs/`` into links to the files that were taken."""
    if not (ROOT / "docs" / page.file.src_uri).exists():
        return markdown  # a page that was taken itself links to its neighbours
    return _LINK.sub(lambda found: _inside(found, page.file.src_uri, files), markdown)


def _inside(found: re.Match[str], page: str, files: Files) -> str:
    folder = posixpath.dirname(page)
    target = posixpath.normpath(posixpath.join("docs", folder, found["path"]))
    if target.startswith("docs/"):
        return found[0]
    name = "index.md" if target == "README.md" else target
    if files.get_file_from_path(name) is None:
        return found[0]  # mkdocs says that it leads nowhere
    return os.path.relpath(name, folder or ".").replace(os.sep, "/") + (found["anchor"] or "")
