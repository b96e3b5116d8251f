"""Cut a checkpoint of 4 GB from files to files: time beside copying it, memory, and what a kill leaves behind.

    python -m benchmarks.artefacts [--gigabytes 4] [--rounds 3] [--kills 10] [--folder /tmp]

A decoder of random bfloat16 weights is written in shards; its graph is traced on ``meta``, its L1 scores are computed
from the files, and half of its parameters are cut. Cutting and copying (``shutil.copyfile`` and ``fsync``) run in turn,
each in a process of its own, whose clock starts after its imports. Before a cold run the source is dropped from the
page cache; before a warm one it is read through.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tables import publish

SHARD = "500MB"


# -- what runs in a process of its own ---------------------------------------------------------------


class Block(nn.Module):
    """Attention and a gated perceptron, each added to the stream ``[n, tokens, width]``."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (
            nn.Linear(*size, bias=False) for size in ((width, inner), (width, inner), (inner, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).view(n, tokens, self.heads, self.head_width).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.o(mixed.reshape(n, tokens, self.heads * self.head_width))
        normed = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    """A language model, tokens ``[n, tokens]`` -> logits ``[n, tokens, vocabulary]``."""

    def __init__(self, width: int, inner: int, heads: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, inner, heads) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def model(gigabytes: float) -> nn.Module:
    """Return a decoder on ``meta`` of about so many bytes in bfloat16."""
    width, inner, vocabulary = (2048, 8192, 64_000) if gigabytes >= 2 else (512, 2048, 4000)
    layer = 4 * width * width + 3 * width * inner
    layers = max(2, round((gigabytes * 1e9 / 2 - 2 * vocabulary * width) / layer))
    with torch.device("meta"):
        return Decoder(width, inner, 16, layers, vocabulary).to(torch.bfloat16).eval()


def make(source: Path, gigabytes: float) -> None:
    """Write the shards, every tensor from the same random numbers in another rotation."""
    from surgeon.files.header import header_bytes

    noise = torch.randn(2**23, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).view(torch.uint8).numpy()
    tensors = {name: tuple(tensor.shape) for name, tensor in model(gigabytes).state_dict().items()}
    names, at = list(tensors), 0
    while names:
        here, room = {}, int(5e8)
        while names and room > 0:
            name = names.pop(0)
            here[name] = ("BF16", tensors[name])
            room -= 2 * torch.Size(tensors[name]).numel()
        with open(source / f"model-{at:05}.safetensors", "wb") as file:
            file.write(header_bytes(here, {"format": "pt"}))
            for k, (_, shape) in enumerate(here.values()):
                left, start = 2 * torch.Size(shape).numel(), 2 * 4099 * (k + at)
                while left:
                    piece = noise[start % len(noise) :][:left]
                    file.write(piece.data)
                    left, start = left - len(piece), 0
            os.fsync(file.fileno())
        at += 1


def score(source: Path, plan: Path, gigabytes: float) -> dict[str, float]:
    """Trace on meta, score from files, plan."""
    import surgeon

    decoder = model(gigabytes)
    start = time.perf_counter()
    graph = surgeon.trace(decoder, torch.zeros(1, 16, dtype=torch.long, device="meta"))
    traced = time.perf_counter()
    scores = surgeon.score(graph, "l1", weights=source / "model-*.safetensors")
    scored = time.perf_counter()
    surgeon.plan(graph, scores, params=0.5).save(plan)
    return {"trace": traced - start, "score": scored - traced, "plan": time.perf_counter() - scored}


def cut(source: Path, plan: Path, out: Path) -> dict[str, float]:
    import surgeon

    loaded = surgeon.Plan.load(plan)
    print("ready", flush=True)
    start = time.perf_counter()
    surgeon.operate_file(loaded, source / "model-*.safetensors", out, shard_size=SHARD)
    return {"seconds": time.perf_counter() - start}


def copy(source: Path, out: Path) -> dict[str, float]:
    start = time.perf_counter()
    out.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, out / path.name)
        handle = os.open(out / path.name, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return {"seconds": time.perf_counter() - start}


def worker(job: str, arguments: list[str]) -> None:
    paths = [Path(a) if "/" in a else float(a) for a in arguments]
    result = {"make": make, "score": score, "cut": cut, "copy": copy}[job](*paths) or {}  # type: ignore[operator]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**result, "resident": peak}), flush=True)


# -- what watches ------------------------------------------------------------------------------------


def started(job: str, *arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.artefacts", "--worker", job, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(job: str, *arguments: Any) -> dict[str, float]:
    process = started(job, *arguments)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{job} failed")
    return dict(json.loads(output.splitlines()[-1]))


def drop(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            while file.read(2**24):
                pass


def digest(folder: Path) -> str:
    """Return one digest of all files of a folder, names and bytes."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        whole.update(path.relative_to(folder).as_posix().encode())
        with open(path, "rb") as file:
            while piece := file.read(2**24):
                whole.update(piece)
    return whole.hexdigest()


def timed(home: Path, rounds: int) -> list[dict[str, Any]]:
    """Cut and copy in turn, cold and warm."""
    source, plan, out = home / "source", home / "plan.json", home / "out"
    rows = []
    for kind, prepare in (("cold", drop), ("warm", warm)):
        seconds: dict[str, list[float]] = {"cut": [], "copy": []}
        peaks = []
        for _ in range(rounds):
            for job, arguments in (("cut", (source, plan, out)), ("copy", (source, out))):
                prepare(source)
                result = run(job, *arguments)
                seconds[job].append(result["seconds"])
                peaks += [result["resident"]] if job == "cut" else []
                shutil.rmtree(out)
        ratios = [a / b for a, b in zip(seconds["cut"], seconds["copy"])]
        rows.append(
            {
                "source": kind,
                "cut, s": median(seconds["cut"]),
                "copy, s": median(seconds["copy"]),
                "cut / copy": median(ratios),
                "worst": max(ratios),
                "peak resident, MB": max(peaks),
            }
        )
    return rows


def killed(home: Path, kills: int, seconds: float) -> tuple[int, int]:
    """Kill a cut at random points and go on; return how many kills hit, and how many results were identical."""
    source, plan = home / "source", home / "plan.json"
    run("cut", source, plan, home / "whole")
    expected, before = digest(home / "whole"), digest(source)
    hits = same = 0
    while hits < kills:
        out = home / "killed"
        process = started("cut", source, plan, out)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        hit = process.wait() != 0
        final = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.exists() else []
        half = "model.safetensors.index.json" in final and digest(out) != expected
        hits += hit
        run("cut", source, plan, out)
        same += hit and not half and digest(out) == expected
        print(f"kill {hits}: {'hit' if hit else 'too late'}; {len(final)} files had their names", flush=True)
        shutil.rmtree(out)
    assert digest(source) == before, "the source was touched"
    return hits, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", default=None, help="where to put about three times the checkpoint, for a while")
    parser.add_argument("--worker", nargs="+", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker[0], given.worker[1:])
        return
    random.seed(0)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        home = Path(folder)
        (home / "source").mkdir()
        run("make", home / "source", given.gigabytes)
        size = sum(path.stat().st_size for path in (home / "source").iterdir())
        scored = run("score", home / "source", home / "plan.json", given.gigabytes)
        rows = timed(home, given.rounds)
        hits, same = killed(home, given.kills, min(row["cut, s"] for row in rows))
        notes = [
            f"A checkpoint of {size / 1e9:.2f} GB in {len(list((home / 'source').iterdir()))} files, bfloat16, half of "
            f"its parameters cut; medians of {given.rounds} rounds, `cut / copy` of rounds.",
            "",
            f"Traced on meta in {scored['trace']:.1f} s, scored from the files in {scored['score']:.1f} s, planned in "
            f"{scored['plan']:.1f} s, at most {scored['resident']:.0f} MB resident.",
            "",
            f"Killed at {hits} random points and resumed: {same} of {hits} results identical to an uninterrupted one, "
            "byte for byte; the source was not touched.",
        ]
        publish("artefacts", "Cutting a checkpoint from files to files", rows, notes)


if __name__ == "__main__":
    main()
