"""Let the reference name verbs as users do, ``::: surgeon.plan``, where a package inside has the same name.

What reads the sources takes ``surgeon.plan`` for the package. Such an entry is looked up where the verb is defined, and
keeps its public name as its heading and its anchor.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

import surgeon

_ENTRY = re.compile(r"^::: surgeon\.(?P<name>\w+)$", re.M)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return _ENTRY.sub(lambda found: _defined(found["name"]), markdown)


def _defined(name: str) -> str:
    thing = getattr(surgeon, name)
    if isinstance(thing, ModuleType) or find_spec(f"surgeon.{name}") is None:
        return f"::: surgeon.{name}"
    return (
        f"[](){{#surgeon.{name}}}\n\n::: {thing.__module__}.{thing.__qualname__}\n"
        f"    options:\n      heading: surgeon.{name}\n      toc_label: {name}\n"
    )
