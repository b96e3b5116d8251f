"""Squares of sums, statistics and searches, and of windows that read whole dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.rules.harness import Case, square


def _all(rank: int, but: tuple[int, ...] = ()) -> str:
    """Name all dimensions of ``x`` but some."""
    but = tuple(d % rank for d in but)
    return " ".join(f"x:{d}" for d in range(rank) if d not in but)


SUMS = "sum nansum mean nanmean amax amin logsumexp all any var std var_mean std_mean".split()
SPREADS = ("var", "std", "var_mean", "std_mean")
ONE_DIM = "prod aminmax count_nonzero".split()


@pytest.mark.parametrize("name", SUMS)
@square(*SUMS, examples=16)
def test_statistics_over_some_dimensions(case: Case, name: str) -> None:
    shape = case.shape(case.size(1, 4), 2, 4)
    dims = tuple(sorted({case.dim(len(shape)) % len(shape) for _ in range(case.size(1, 3))}))
    dims = tuple(d - len(shape) * case.flip() for d in dims)
    op, keepdim = getattr(torch, name), case.flip()
    given: Any = dims[0] if len(dims) == 1 and case.flip() else dims
    more = {"correction": 0} if name in SPREADS else {}
    case.check(lambda m: op(m.x, dim=given, keepdim=keepdim, **more), x=case.signed(*shape), cut=_all(len(shape)))


@pytest.mark.parametrize("name", [*SUMS, *ONE_DIM])
@square(*SUMS, *ONE_DIM, examples=4)
def test_statistics_over_everything(case: Case, name: str) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    op = getattr(torch, name)
    more = {"correction": 0} if name in SPREADS else {"dim": list(range(len(shape)))} if name == "logsumexp" else {}
    case.check(lambda m: op(m.x, **more), x=case.signed(*shape), cut=_all(len(shape)))


@pytest.mark.parametrize("name", ONE_DIM)
@square(*ONE_DIM, examples=10)
def test_statistics_over_one_dimension(case: Case, name: str) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    dim, op = case.dim(len(shape)), getattr(torch, name)
    keepdim = {} if name == "count_nonzero" else {"keepdim": case.flip()}
    case.check(lambda m: op(m.x, dim=dim, **keepdim), x=case.signed(*shape), cut=_all(len(shape)))


@square("mean", "sum", "var", examples=30)
def test_arguments_given_by_position(case: Case) -> None:
    shape = case.shape(3, 2, 4)
    op = case.of(
        lambda x: x.mean((1, 2)),
        lambda x: x.mean([-1, -2], True),
        lambda x: x.sum(0, True),
        lambda x: x.var(1, False),
        lambda x: x.var((0, 2), unbiased=False, keepdim=True),
        lambda x: x.std(-1, correction=0),
        lambda x: torch.var_mean(x, 1, False, True),
        lambda x: x.sum(dim=1, dtype=torch.float64),
    )
    case.check(lambda m: op(m.x), x=case.signed(*shape), cut=_all(3))


@square("var", "std", "var_mean", "std_mean", examples=30)
def test_spread_with_one_degree_of_freedom_less(case: Case) -> None:
    n, c, k = case.size(2, 4), case.size(2, 4), case.size(2, 3)
    op = case.of(
        lambda x: x.var((0, 2)),
        lambda x: x.var(dim=(1, 2), keepdim=True),
        lambda x: x.var((0, 2), True),
        lambda x: x.std((0, -1), unbiased=True),
        lambda x: torch.var_mean(x, (1, 2)),
        lambda x: torch.std_mean(x, dim=(0, 2), correction=1),
        lambda x: x.var(),
    )
    case.check(
        lambda m, s: op(m.x[:, :, None] * s), inputs=(case.tensor(k),), x=case.signed(n, c), dress=False, cut="x:0 x:1"
    )


@square("linalg_vector_norm", examples=30)
def test_norms(case: Case) -> None:
    shape = case.shape(2, 2, 4)
    dim = case.dim(2)
    op = case.of(
        lambda x: x.norm(dim=dim),
        lambda x: x.norm(1, dim, True),
        lambda x: torch.norm(x, p=3, dim=(dim,)),
        lambda x: torch.linalg.vector_norm(x, dim=dim),
        lambda x: torch.linalg.vector_norm(x, 1, dim, True),
        lambda x: x.norm(p=float("inf"), dim=dim),
    )
    case.check(lambda m: op(m.x), x=case.signed(*shape), cut=_all(2))


@square("norm", "mean", "add", "mul", "div")
def test_global_response_norm(case: Case) -> None:
    n, h, c = case.size(1, 2), case.size(1, 3), case.size(2, 4)

    def grn(m: Any) -> Any:
        g = m.x.norm(p=2, dim=(1, 2), keepdim=True)
        return m.x + m.b + m.w * (m.x * (g / (g.mean(dim=-1, keepdim=True) + 1e-6)))

    case.check(grn, x=case.signed(n, h, h, c), w=case.tensor(c), b=case.tensor(c), cut="x:3 w:0 b:0")


@square("mean", "pow", "rsqrt")
def test_rms_norm_by_hand(case: Case) -> None:
    n, c, o = case.shape(3, 2, 4)
    case.check(
        lambda m: F.linear(m.x * torch.rsqrt(m.x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.w, m.head),
        x=case.signed(n, c),
        w=case.tensor(c),
        head=case.signed(o, c),
        cut="x:0 x:1 w:0 head:0 head:1",
    )


@square("var_mean", "sub", "conv2d")
def test_weight_standardisation(case: Case) -> None:
    i, o = case.shape(2, 2, 3)

    def forward(m: Any, x: Any) -> Any:
        w = F.conv2d(x, m.stem, None, 1, 0, 1, 1)
        var, mean = torch.var_mean(m.w, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(w, (m.w - mean) / (var + 1e-5).sqrt(), None, 1, 0, 1, 1)

    case.check(
        forward,
        inputs=(case.signed(1, 2, 3, 3),),
        stem=case.signed(i, 2, 1, 1),
        w=case.signed(o, i, 2, 2),
        dress=False,
        cut="stem:0 w:0 w:1",
    )


# -- searches ----------------------------------------------------------------------------------------

SEARCHES: dict[str, Callable[[Any, int], Any]] = {
    "max": lambda x, d: x.max(d),
    "min": lambda x, d: x.min(dim=d, keepdim=True),
    "argmax": lambda x, d: x.argmax(d),
    "argmin": lambda x, d: torch.argmin(x, dim=d, keepdim=True),
    "median": lambda x, d: x.median(d),
    "nanmedian": lambda x, d: torch.nanmedian(x, d),
    "mode": lambda x, d: x.mode(d),
    "kthvalue": lambda x, d: x.kthvalue(2, d),
    "topk": lambda x, d: x.topk(2, d),
    "sort": lambda x, d: x.sort(d),
    "argsort": lambda x, d: x.argsort(d),
}


@pytest.mark.parametrize("name", sorted(SEARCHES))
@square(*SEARCHES, examples=12)
def test_searches_along_a_dimension(case: Case, name: str) -> None:
    shape = case.shape(case.size(2, 3), 2, 4)
    dim, op = case.dim(len(shape)), SEARCHES[name]
    case.check(
        lambda m: op(m.x, dim),
        x=case.signed(*shape),
        cut=_all(len(shape), (dim,)),
        stays={f"x:{dim % len(shape)}": name},
    )


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin", "median", "nanmedian"])
@square("max", "min", "argmax", "argmin", "median", "nanmedian", must_cut=False, examples=4)
def test_searches_everywhere(case: Case, name: str) -> None:
    shape = case.shape(2, 2, 4)
    case.check(lambda m: getattr(torch, name)(m.x), x=case.signed(*shape), stays={"x:0": name, "x:1": name})


@square("sort", "argsort", "topk", "kthvalue", "mode", "msort", examples=100)
def test_searches_along_the_usual_dimension(case: Case) -> None:
    shape = case.shape(2, 2, 4)
    op, dim = case.of(
        (torch.sort, 1),
        (torch.argsort, 1),
        (lambda x: x.topk(1), 1),
        (lambda x: x.kthvalue(1), 1),
        (torch.mode, 1),
        (torch.msort, 0),
    )
    case.check(lambda m: op(m.x), x=case.signed(*shape), cut=_all(2, (dim,)), stays={f"x:{dim}": ""})


@square("max", "min")
def test_larger_and_smaller_of_two(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    op = case.of(torch.max, torch.min, lambda x, y: torch.max(x, other=y))
    case.check(lambda m: op(m.x, m.y), x=case.tensor(n, c), y=case.tensor(c), cut="x:0 x:1 y:0")


# -- windows -----------------------------------------------------------------------------------------


POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)]


@pytest.mark.parametrize("name", POOLS)
@square(*POOLS, examples=4)
def test_pooling(case: Case, name: str) -> None:
    rank = int(name[-2])
    shape = (*case.shape(case.size(1, 2), 2, 3), *[4] * rank)
    lead, op = len(shape) - rank, getattr(F, name)
    stays = {f"x:{d}": name for d in range(lead, len(shape))}
    case.check(
        lambda m: op(m.x, 2), x=case.signed(*shape), cut=_all(len(shape), tuple(range(lead, len(shape)))), stays=stays
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
@square("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", examples=4)
def test_pooling_with_places(case: Case, rank: int) -> None:
    n, c = case.shape(2, 2, 3)
    op = getattr(F, f"max_pool{rank}d")
    case.check(lambda m: op(m.x, 2, return_indices=True), x=case.signed(n, c, *[4] * rank), cut="x:0 x:1")


RESAMPLED = {
    **{f"upsample_nearest{n}d": ("nearest", n) for n in (1, 2, 3)},
    **{f"upsample_nearest_exact{n}d": ("nearest-exact", n) for n in (1, 2, 3)},
    "upsample_linear1d": ("linear", 1),
    "upsample_bilinear2d": ("bilinear", 2),
    "upsample_bicubic2d": ("bicubic", 2),
    "upsample_trilinear3d": ("trilinear", 3),
}


@pytest.mark.parametrize("name", RESAMPLED)
@square(*RESAMPLED, examples=4)
def test_resampling(case: Case, name: str) -> None:
    mode, rank = RESAMPLED[name]
    n, c = case.shape(2, 2, 3)
    how = {"scale_factor": 2} if case.flip() else {"size": (5,) * rank}
    x = case.signed(n, c, *[3] * rank)
    case.check(lambda m: F.interpolate(m.x, mode=mode, **how), x=x, cut="x:0 x:1", stays={"x:2": name})


@square("upsample_bilinear2d_aa", "upsample_bicubic2d_aa", examples=6)
def test_resampling_smoothly(case: Case) -> None:
    n, c = case.shape(2, 2, 3)
    x, mode = case.signed(n, c, 4, 4), case.of("bilinear", "bicubic")
    case.check(lambda m: F.interpolate(m.x, size=(2, 3), mode=mode, antialias=True), x=x, cut="x:0 x:1")


PADS = [f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)]


@pytest.mark.parametrize("name", PADS)
@square(*PADS, examples=3)
def test_padding_as_a_kernel(case: Case, name: str) -> None:
    n, c = case.shape(2, 2, 3)
    op, rank = getattr(torch._C._nn, name), int(name[-2])
    x = case.signed(n, c, *[3] * rank)
    case.check(lambda m: op(m.x, [1] * (2 * rank)), x=x, cut="x:0 x:1", stays={"x:2": name})


# -- Fourier transforms ------------------------------------------------------------------------------

FFTS = [f"{kind}fft{over}" for kind in ("", "i", "r", "ir", "h", "ih") for over in ("", "2", "n")]


@pytest.mark.parametrize("name", FFTS)
@square(*(f"fft_{name}" for name in FFTS), examples=6)
def test_fourier_transforms(case: Case, name: str) -> None:
    op, shape = getattr(torch.fft, name), case.shape(4, 2, 4)
    dims = case.of((1, 2), (-2, -1), (0, -1)) if name[-1] in "2n" else case.dim(4)
    whole = [d % 4 for d in ([dims] if isinstance(dims, int) else dims)]
    stays = {f"x:{d}": f"fft_{name}" for d in whole}
    case.check(lambda m: op(m.x, dim=dims), x=case.signed(*shape), cut=_all(4, tuple(whole)), stays=stays)


@pytest.mark.parametrize("name", ["fftshift", "ifftshift"])
@square("fft_fftshift", "fft_ifftshift", examples=6)
def test_shifted_frequencies(case: Case, name: str) -> None:
    shape, dim = case.shape(3, 2, 4), case.dim(3)
    op, stays = getattr(torch.fft, name), {f"x:{dim % 3}": f"fft_{name}"}
    case.check(lambda m: op(m.x, dim=dim), x=case.signed(*shape), cut=_all(3, (dim,)), stays=stays)


@square("fft_fft2", "fft_rfft", "fft_fftn", examples=30)
def test_transforms_over_the_usual_dimensions(case: Case) -> None:
    shape = case.shape(3, 2, 4)
    op, whole = case.of((torch.fft.fft2, (1, 2)), (torch.fft.rfft, (2,)), (lambda x: torch.fft.fftn(x, s=(3,)), (2,)))
    case.check(lambda m: op(m.x), x=case.signed(*shape), cut=_all(3, whole), stays={"x:2": ""})


@square("fft_rfft2", "fft_irfft2", "view_as_complex", "mul", examples=20)
def test_a_filter_of_frequencies(case: Case) -> None:
    i, c, o = case.shape(3, 2, 4)

    def run(m: Any, x: Any) -> Any:
        spectrum = torch.fft.rfft2(F.linear(x, m.a), dim=(1, 2), norm="ortho")
        return F.linear(
            torch.fft.irfft2(spectrum * torch.view_as_complex(m.w), s=(4, 4), dim=(1, 2), norm="ortho"), m.b
        )

    a, w, b = case.signed(c, i), case.signed(4, 3, c, 2), case.signed(o, c)
    case.check(run, inputs=(case.signed(1, 4, 4, i),), a=a, w=w, b=b, dress=False, cut="a:0 w:2 b:0 b:1")
