"""Cut every architecture in half and prove the result, next to torch-pruning 1.6.1; run with ``make zoo``.

Rows are kept in ``results/zoo.jsonl`` as they come, so a run that was stopped goes on where it was; ``--again`` starts
anew. Models run in processes of their own under limits of time and memory.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import RESULTS, environment, publish
from benchmarks.zoo_parts.isolated import Limits, run_all
from benchmarks.zoo_parts.page import merged, page
from tests.zoo.catalogue import COLLECTIONS, Make, entries

Row = dict[str, Any]
Key = tuple[str, str, str]  # collection, model, side
KEPT = RESULTS / "zoo.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "zoo.md"
SIDES = ("surgeon", "torch-pruning")


def work(make: Make, side: str) -> Row:
    """Do one side of one model; runs in a child process."""
    from benchmarks.zoo_parts.ours import ours
    from benchmarks.zoo_parts.subject import ModelFails, prepare
    from benchmarks.zoo_parts.theirs import theirs

    warnings.simplefilter("ignore")
    try:
        subject = prepare(make)
    except ModelFails as problem:
        return {"outcome": "model fails", "reason": str(problem)}
    return (ours if side == "surgeon" else theirs)(subject)


def tasks(options: argparse.Namespace, done: set[Key]) -> Iterator[tuple[tuple[str, ...], Callable[[], Row]]]:
    """Yield what is left to do: one side after the other, so that ours is complete first."""
    for side in options.sides:
        for collection in options.collections:
            for name, make in entries(collection).items():
                key = (collection, name, side)
                if key not in done and _wanted(f"{collection}/{name}", options.only):
                    yield key, partial(work, make, side)


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, f"*{pattern}*") for pattern in patterns)


def kept() -> list[Row]:
    """Read the rows that were kept, the last of each model and side, in the order of the catalogue."""
    if not KEPT.exists():
        return []
    rows = {(r["collection"], r["name"], r["side"]): r for r in map(json.loads, KEPT.read_text().splitlines())}
    known = [(c, name, side) for c in COLLECTIONS for name in entries(c) for side in SIDES]
    return [rows[key] for key in known if key in rows]


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the child at work is stopped too
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    RESULTS.mkdir(exist_ok=True)
    done = set() if options.again else {(r["collection"], r["name"], r["side"]) for r in kept()}
    limits = Limits(options.limit, options.memory)
    if not options.page:
        _preload()
        _run(options, done, limits)
    rows = kept()
    if rows:
        publish("zoo", "The zoo", merged(rows), [__doc__.partition("\n\n")[0]])
        PAGE.write_text(page(rows, environment()))


def _run(options: argparse.Namespace, done: set[Key], limits: Limits) -> None:
    with KEPT.open("a") as file:
        for (collection, name, side), row in run_all(tasks(options, done), limits, options.jobs):
            row = {"collection": collection, "name": name, "side": side, **row}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{collection}/{name} {side}: {row['outcome']} {str(row.get('reason', ''))[:160]}", flush=True)


def _preload() -> None:
    """Import what children need, once."""
    import benchmarks.zoo_parts.ours
    import benchmarks.zoo_parts.theirs  # noqa: F401


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="parts of names, with *, such as timm/vit or resnet; default: all")
    parser.add_argument("--collections", nargs="+", choices=list(COLLECTIONS), default=list(COLLECTIONS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--limit", type=float, default=90, help="seconds that a model may take")
    parser.add_argument("--memory", type=float, default=8, help="gigabytes that a model may take")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--again", action="store_true", help="measure models anew that have a row already")
    parser.add_argument("--page", action="store_true", help="only write tables and page from the rows that were kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
