"""The runner of documentation pages finds the right blocks and names the right lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run_code_blocks import Block, blocks, main, run_page

PAGE = """\
```python
x = 1
```

<!-- skip -->
```python
raise ValueError("not run")
```

- in a list:

  ```python
  if x:
      y = x + 1
  ```

```console
$ surgeon
```

~~~python
z = "```"
assert y == 2
~~~
"""


def test_blocks_with_their_lines() -> None:
    assert list(blocks(PAGE)) == [
        Block("python", 2, "x = 1"),
        Block("python", 7, 'raise ValueError("not run")', skip=True),
        Block("python", 13, "if x:\n    y = x + 1"),
        Block("console", 18, "$ surgeon"),
        Block("python", 22, 'z = "```"\nassert y == 2'),
    ]


def test_blocks_share_a_namespace(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert run_page(page) == (3, None)


@pytest.mark.parametrize(
    ("code", "where", "what"),
    [("ok = 1\n1 / 0", 5, "ZeroDivisionError"), ("ok = 1\n1 +", 5, "SyntaxError"), ("exit()", 4, "SystemExit")],
)
def test_a_failure_names_file_and_line(tmp_path: Path, code: str, where: int, what: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n```python\n{code}\n```\n")
    count, error = run_page(page)
    assert count == 0
    assert error is not None
    assert error.startswith(f"{page}:{where}: {what}")


def test_an_open_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 2 is never closed"):
        list(blocks("text\n```python\nx = 1\n"))


def test_main_counts_failed_pages_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.md").write_text("```python\nopen('made.txt', 'w').close()\n```\n")
    Path("bad.md").write_text("```python\nmissing\n```\n")
    Path("open.md").write_text("```python\nx = 1\n")
    assert main(["good.md", "bad.md", "open.md"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.md", "good.md", "open.md"]
