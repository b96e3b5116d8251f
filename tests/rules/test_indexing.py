"""Squares of slices, indices and lookups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.rules.harness import Case, square


def _all(shape: tuple[int, ...], but: tuple[int, ...] = ()) -> str:
    """Name all dimensions of ``x`` but some."""
    return " ".join(f"x:{d}" for d in range(len(shape)) if d not in but)


# -- slices ------------------------------------------------------------------------------------------


@square("getitem", examples=60)
def test_slices_with_bounds_that_can_follow(case: Case) -> None:
    n, c = case.size(2, 4), case.size(3, 6)
    start, stop = case.size(0, c - 1), case.size(1, c)
    take = case.of(
        lambda m: m.x[:, : m.stop],
        lambda m: m.x[:, m.start :],
        lambda m: m.x[:, -m.stop :],
        lambda m: m.x[:, : -m.stop] if m.stop < c else m.x,
        lambda m: m.x[..., m.start :],
        lambda m: m.x[:, m.start : m.start + m.stop],
        lambda m: (m.x[:, : m.stop], m.x[:, m.stop :]),
    )
    case.check(take, x=case.tensor(n, c), start=start, stop=stop)


@square("getitem")
def test_a_slice_and_the_rest(case: Case) -> None:
    n, a, b = case.size(2, 4), case.size(2, 4), case.size(2, 4)
    split = case.of(
        lambda m: (m.x[:, : m.a], m.x[:, m.a :]),
        lambda m: (m.x[:, : m.a], m.x[:, -m.b :]),
        lambda m: (m.x.narrow(1, 0, m.a), m.x.narrow(1, m.a, m.b)),
    )
    case.check(split, x=case.tensor(n, a + b), a=a, b=b, dress=False, cut="x:0")


@square("getitem", examples=40)
def test_slices_with_literal_bounds(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 2, 5)
    dim = case.size(0, len(shape) - 1)
    bound = _slice(case, shape[dim])
    index = (slice(None),) * dim + (bound,)
    case.check(lambda m: m.x[index], x=case.tensor(*shape), cut=_all(shape, (dim,)))


def _slice(case: Case, size: int) -> slice:
    start, stop = (case.of(None, *range(-size, size + 2)) for _ in range(2))
    return slice(start, stop, case.of(None, 1, 2, 3))


@square("getitem")
def test_a_stride_keeps_the_dimension(case: Case) -> None:
    n, c = case.size(2, 3), case.size(3, 5)
    case.check(lambda m: m.x[:, ::2], x=case.tensor(n, c), cut="x:0", stays={"x:1": "getitem"})


@square("getitem")
def test_whole_slices_are_free(case: Case) -> None:
    n, c = case.shape(2, 2, 5)
    take = case.of(
        lambda x: x[:], lambda x: x[:, :], lambda x: x[...], lambda x: x[:, 0:], lambda x: x[None, ..., :, None]
    )
    case.check(lambda m: take(m.x), x=case.tensor(n, c), cut="x:0 x:1")


@square("getitem", "mul")
def test_halves_by_computed_bounds(case: Case) -> None:
    n, c = case.size(2, 3), case.size(2, 4)

    def rotate(m: Any) -> Any:
        half = m.x.shape[-1] // 2
        return torch.cat((-m.x[..., half:], m.x[..., :half]), -1) * m.x

    case.check(rotate, x=case.signed(n, 2 * c), cut="x:0")


# -- indices -----------------------------------------------------------------------------------------


@square("getitem", examples=80)
def test_constant_indices(case: Case) -> None:
    n, h, w = case.shape(3, 2, 4)
    i, j = case.size(-n, n - 1), case.size(0, h - 1)
    mask_n, mask_nh = torch.rand(n) > 0.4, torch.rand(n, h) > 0.4
    k = case.size(1, 3)
    rows, columns = torch.randint(n, (k,)), torch.randint(h, (k,))
    index = case.of(
        i,
        (i, j),
        (slice(None), j),
        (..., i % w),
        (None, i, ..., None),
        rows,
        (slice(None), columns),
        (rows, columns),
        (rows, slice(None), torch.randint(w, (k,))),
        (rows[:, None], columns),
        rows.tolist(),
        (slice(None), columns.tolist()),
        mask_n,
        mask_nh,
        (slice(None), torch.rand(h) > 0.4),
        (..., mask_n.new_ones(w)),
        (i, slice(None), torch.randint(w, (k,))),
    )
    case.check(lambda m: m.x[index], x=case.tensor(n, h, w))


@pytest.mark.parametrize("index", [0, (0,), [0, 1], torch.tensor([1, 0]), torch.tensor([True, False])])
@square("getitem", examples=6)
def test_an_index_keeps_its_dimension(case: Case, index: Any) -> None:
    c = case.size(2, 4)
    case.check(lambda m: m.x[index], x=case.tensor(2, c), cut="x:1", stays={"x:0": "index"})


@square("getitem", "add")
def test_a_table_looked_up_by_a_buffer(case: Case) -> None:
    # relative position bias: a table [places, heads], an index buffer, heads that may go
    places, heads, t = case.size(3, 5), case.size(2, 4), case.size(1, 3)
    index = torch.randint(places, (t, t))
    case.check(
        lambda m: m.table[m.index.view(-1)].view(t, t, -1).permute(2, 0, 1) + m.x,
        table=case.signed(places, heads),
        x=case.signed(2, heads, t, t),
        index=index,
        dress=("x",),
        cut="table:1 x:1",
        stays={"table:0": "index"},
    )


@square("getitem", "index_select", "embedding", examples=30)
def test_a_table_looked_up_by_places_that_could_shrink(case: Case) -> None:
    n, c, width = case.shape(3, 2, 4)
    look_up = case.of(
        lambda m: m.table[(m.x > 0.5).long()],
        lambda m: m.table[:, (m.x > 0.5).long()],
        lambda m: m.table[(m.x > 0.5).long(), 0],
        lambda m: m.table.index_select(0, (m.x > 0.5).long().sum(1)),
        lambda m: F.embedding((m.x > 0.5).long(), m.table),
    )
    case.check(look_up, table=case.tensor(5, width), x=case.tensor(n, c), dress=False, stays={"x:0": "indices"})


@square("getitem", "setitem", must_cut=False)
def test_a_mask_stays(case: Case) -> None:
    n, c = case.shape(2, 2, 4)

    def write(m: Any) -> Any:
        y = m.y.clone()
        y[m.x > 0.5] = 0.0
        return y

    op = case.of(write, lambda m: m.y[m.x > 0.5])
    stays = {"x:0": "indices", "x:1": "indices", "y:0": "index", "y:1": "index"}
    case.check(op, x=case.tensor(n, c), y=case.tensor(n, c), dress=False, stays=stays)


@square("getitem", examples=20)
def test_a_slice_up_to_the_width_of_another(case: Case) -> None:
    n, c = case.size(2, 4), case.size(3, 5)
    more = case.of(0, 1)
    case.check(
        lambda m: (m.x[:, : m.y.shape[1]], m.y),
        x=case.tensor(n, c),
        y=case.tensor(n, c + more),
        dress=False,
        cut="x:1" if more else "x:1 y:1",
        stays={"y:1": "slice stop"} if more else {},
    )


@square("select", examples=20)
def test_select(case: Case) -> None:
    shape = case.shape(case.size(2, 3), 2, 4)
    dim = case.dim(len(shape))
    at, along = case.size(-shape[dim], shape[dim] - 1), dim % len(shape)
    case.check(
        lambda m: m.x.select(dim, at), x=case.tensor(*shape), cut=_all(shape, (along,)), stays={f"x:{along}": "index"}
    )


@square("narrow", examples=40)
def test_narrow(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 2, 5)
    dim = case.dim(len(shape))
    start = case.size(0, shape[dim] - 1)
    length = case.size(1, shape[dim] - start)
    case.check(
        lambda m: torch.narrow(m.x, dim, m.start, m.length),
        x=case.tensor(*shape),
        start=start,
        length=length,
        cut=_all(shape, (dim % len(shape),)),
    )


@square("gather", must_cut=False, examples=20)
def test_gather(case: Case) -> None:
    n, c, k = case.shape(3, 2, 4)
    rows = case.of(n, n, n - 1)
    index = torch.randint(c, (rows, k))
    case.check(lambda m: m.x.gather(1, m.index), x=case.tensor(n, c), index=index, stays={"x:0": "", "x:1": ""})


@square("gather", "topk")
def test_gather_by_places_that_follow(case: Case) -> None:
    n, c, _ = case.shape(3, 2, 4)
    case.check(lambda m: m.x.gather(1, m.x.topk(2, 1).indices), x=case.signed(n, c), cut="x:0", stays={"x:1": ""})


@square("gather", must_cut=False)
def test_gather_where_rows_hold_their_own_columns(case: Case) -> None:
    n, c, d = case.shape(3, 2, 4)
    index = torch.randint(c, (n, 1, d))
    case.check(
        lambda m: m.x.unflatten(1, (c, -1)).gather(1, m.index).flatten(1),
        x=case.tensor(n, c * d),
        index=index,
        dress=False,
        stays={"x:0": "", "x:1": ""},
    )


# -- writing -----------------------------------------------------------------------------------------


@square("setitem", examples=60)
def test_writing_a_region(case: Case) -> None:
    n, c, k = case.size(2, 4), case.size(3, 5), case.size(1, 2)
    region, shape = case.of(
        ((slice(None), slice(None)), (n, c)),
        ((slice(None), slice(None)), (c,)),
        ((slice(None), slice(None)), (1, n, c)),
        ((0,), (1, 1, c)),
        ((slice(None), slice(None, k)), (n, k)),
        ((slice(None), slice(k, None)), (n, c - k)),
        ((slice(None), slice(k, None)), (n, 1)),
        ((0,), (c,)),
        ((slice(None), 1), (n,)),
        ((torch.arange(n),), (n, c)),
        ((...,), (n, c)),
    )

    def write(m: Any) -> Any:
        y = m.x.clone()
        y[region] = m.y
        return y

    case.check(write, x=case.tensor(n, c), y=case.tensor(*shape))


@square("setitem")
def test_writing_a_number(case: Case) -> None:
    n, c = case.shape(2, 2, 4)

    def write(m: Any) -> Any:
        y = m.x.clone()
        y[:, : m.k] = 0.0
        return y

    case.check(write, x=case.tensor(n, c), k=case.size(1, c - 1), cut="x:0")


@square("setitem", must_cut=False)
def test_writing_into_an_input_keeps_what_is_written(case: Case) -> None:
    n, c = case.shape(2, 2, 4)

    def write(m: Any, s: Any) -> Any:
        s = s.clone()
        s[:, :c] = m.x
        return s

    stays = {"x:0": "setitem", "x:1": "setitem"}
    case.check(write, inputs=(case.tensor(n, c + 1),), x=case.tensor(n, c), stays=stays)


@square("new_zeros", "setitem")
def test_filling_an_empty_tensor(case: Case) -> None:
    n, a, b = case.shape(3, 2, 4)

    def fill(m: Any) -> Any:
        y = m.x.new_zeros(m.x.shape[0], m.a + m.b)
        y[:, : m.a] = m.x
        y[:, m.a :] = m.z
        return y

    case.check(fill, x=case.tensor(n, a), z=case.tensor(n, b), a=a, b=b, dress=False)


# -- writing to places -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:index_reduce")
@square("index_add", "index_copy", "index_reduce", examples=60)
def test_rows_added_to_places(case: Case) -> None:
    shape = list(case.shape(case.size(2, 3), 2, 4))
    dim = case.dim(len(shape))
    index = torch.randperm(shape[dim])[: case.size(1, shape[dim])]
    other = [len(index) if d == dim % len(shape) else s for d, s in enumerate(shape)]
    op = case.of(
        lambda x, s: x.index_add(dim, index, s),
        lambda x, s: x.clone().index_add_(dim, index, s),
        lambda x, s: x.index_add(dim, index, source=s),
        lambda x, s: x.index_copy(dim, index, s),
        lambda x, s: x.index_reduce(dim, index, s, "amax"),
    )
    case.check(
        lambda m: op(m.x, m.s),
        x=case.signed(*shape),
        s=case.signed(*other),
        cut=_all(tuple(shape), (dim % len(shape),)),
        stays={f"x:{dim % len(shape)}": "", f"s:{dim % len(shape)}": ""},
    )


@square("scatter", "scatter_add", "scatter_reduce", examples=60)
def test_scattering(case: Case) -> None:
    n, e, c = case.shape(3, 2, 4)
    op = case.of(
        lambda x, i, s: x.scatter(0, i[:n], s[:n]),
        lambda x, i, s: x.scatter_add(0, i, s),
        lambda x, i, s: x.clone().scatter_add_(0, i, s),
        lambda x, i, s: x.scatter_reduce(0, i, s, "mean"),
        lambda x, i, s: x.scatter_reduce(0, i, s, "amax", include_self=False),
    )
    places = torch.arange(e)[:, None] % n  # each place is written once where the last one to write would win
    wide = case.flip()

    def run(m: Any, places: Any) -> Any:
        return op(m.x, places.expand(-1, m.s.shape[1]) if wide else places.repeat(1, c), m.s)

    cut = "x:1 s:1" if wide else ""
    case.check(run, inputs=(places,), x=case.signed(n, c), s=case.signed(e, c), cut=cut, stays={"x:0": ""})


@square("scatter", must_cut=False, examples=20)
def test_scattering_a_number(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    places = torch.randint(c, (n, 1))
    case.check(lambda m, i: m.x.scatter(1, i, 0.0), inputs=(places,), x=case.signed(n, c), stays={"x:0": "", "x:1": ""})


@square("index_add", "relu", "linear", examples=20)
def test_messages_between_nodes(case: Case) -> None:
    i, h, o = case.shape(3, 2, 4)
    edges = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])

    def run(m: Any, x: Any) -> Any:
        nodes = F.linear(x, m.a)
        sent = F.linear(nodes[edges[0]].relu(), m.b)
        return F.linear(nodes + torch.zeros_like(sent[:3]).index_add_(0, edges[1], sent), m.c)

    a, b, c = case.signed(h, i), case.signed(h, h), case.signed(o, h)
    case.check(run, inputs=(case.signed(3, i),), a=a, b=b, c=c, dress=False, cut="a:0 b:0 b:1 c:0 c:1")


@square("embedding_bag", examples=30)
def test_bags_of_rows(case: Case) -> None:
    rows, c = case.shape(2, 2, 4)
    picked = torch.randint(rows, (3, 2))
    mode = case.of("sum", "mean", "max")
    case.check(lambda m, i: F.embedding_bag(i, m.w, mode=mode), inputs=(picked,), w=case.signed(rows, c), cut="w:1")


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@square("bucketize", "searchsorted", examples=30)
def test_bins(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    bins = torch.tensor([0.2, 0.4, 0.7], dtype=torch.float64)
    op = case.of(lambda x, b: torch.bucketize(x, b), lambda x, b: torch.searchsorted(b, x))
    case.check(lambda m, b: op(m.x, b), inputs=(bins,), x=case.tensor(n, c), cut="x:0 x:1")


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@square("searchsorted", must_cut=False, examples=6)
def test_a_row_of_bins_for_each_row_stays(case: Case) -> None:
    x, bins = case.tensor(3, 4), torch.tensor([[0.2, 0.4, 0.7]] * 3, dtype=torch.float64)
    case.check(lambda m, b: torch.searchsorted(b, m.x), inputs=(bins,), x=x, stays={"x:0": "searchsorted"})
