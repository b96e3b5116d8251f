"""Ops that combine operands along named dimensions: one line of notation each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache

from torch import Tensor

from surgeon.labels.contract import Contraction, Operand, contract, spell
from surgeon.labels.family import Extent
from surgeon.labels.flow import Flow
from surgeon.labels.notation import Notation, Token, parse
from surgeon.trace import Call, Power, Width

_CONV = "input[n (g i) *] weight[(g o) i *] bias[(g o)] stride padding dilation groups=g -> n (g o) *"
_CONV_TRANSPOSED = (
    "input[n (g i) *] weight[(g i) o *] bias[(g o)] stride padding output_padding groups=g dilation -> n (g o) *"
)

LINES: dict[str, str] = {
    "linear": "input[... i] weight[o i] bias[o] -> ... o",
    "conv1d": _CONV,
    "conv2d": _CONV,
    "conv3d": _CONV,
    "conv_transpose1d": _CONV_TRANSPOSED,
    "conv_transpose2d": _CONV_TRANSPOSED,
    "conv_transpose3d": _CONV_TRANSPOSED,
    "bmm": "input[b m k] mat2[b k n] -> b m n",
    "mm": "input[m k] mat2[k n] -> m n",
    "mv": "input[m k] vec[k] -> m",
    "dot": "input[k] tensor[k] -> ",
    "outer": "input[m] vec2[n] -> m n",
    "bilinear": "input1[... i] input2[... j] weight[o i j] bias[o] -> ... o",
    "instance_norm": "input[n c *] weight[c] bias[c] running_mean[c] running_var[c] -> n c *",
    "group_norm": "input[n (g c) *] num_groups=g weight[(g c)] bias[(g c)] -> n (g c) * over c",
    "prelu": "input[n c ...] weight[c] -> n c ...",
    "grid_sampler": "input[n c *] grid[n *] -> n c *",
    "weight_norm": "v[o ...] g[o ...] dim -> o ... over ...",
}


def run_line(flow: Flow, call: Call, notation: Notation) -> Contraction | None:
    """Apply a line of notation to a call; returns what its operands have in common."""
    operands, tensors, known, sizes = [], [], {}, []
    convolution = call.name in LINES and call.name.startswith("conv")
    if convolution and _folded(flow, call):
        flow.unknown(call, "a grouped convolution with a weight that is folded from one dimension")
        return None
    if convolution and call.args[0].dim() < call.argument(1, "weight").dim():
        notation = _unbatched(notation)
    for argument in notation.arguments:
        given = call.argument(argument.position, argument.name)
        if argument.size is not None:
            given = 1 if given is None else given
            known[argument.size] = int(given)
            sizes.append((given, argument.size))
        if argument.dims is None or not isinstance(given, Tensor):
            continue
        value = flow.look(given)
        operands.append(Operand(value, spell(argument.dims, len(value.shape)), flow.origin(given)))
        tensors.append(given)
    rank = call.result.dim()
    leaves = tuple(operand.value.leaf is not None for operand in operands)
    families, common = contract(flow.space, notation, operands, known, rank)
    flow.set(call.result, families)
    for given, letter in sizes:
        flow.size(given, common.extent(letter), f"{letter} of {call.name}")
    summed = statistics(notation, tuple(operand.tokens for operand in operands), leaves, rank)
    for tensor, dims in zip(tensors, summed):
        if dims:
            flow.reduced(tensor, dims)
    flow.roles(notation, operands, rank)
    return common


def _folded(flow: Flow, call: Call) -> bool:
    """Whether rows and columns of a grouped weight are one dimension of a parameter, which evens out neither."""
    weight = flow.look(call.argument(1, "weight"))
    return (
        weight.leaf is None
        and call.argument(6, "groups", 1) != 1
        and any(len(family.dims) > 1 for family in weight.families)
    )


@cache
def _unbatched(notation: Notation) -> Notation:
    """Drop the batch letter: convolutions take a single example, [c, h, w], too."""
    first, *others = notation.arguments
    assert first.dims is not None
    alone = replace(first, dims=first.dims[1:])
    return replace(notation, arguments=(alone, *others), output=notation.output[1:])


@lru_cache(maxsize=4096)
def statistics(
    notation: Notation, operands: tuple[tuple[Token, ...], ...], leaves: tuple[bool, ...], rank: int
) -> list[list[int]]:
    """Return along which dimensions of each operand the op sums activations: there a reference leaves cut ones out."""
    kept = {letter for token in spell(notation.output, rank) for letter in token}
    over = {letter for token in spell(tuple((o,) for o in notation.over), 9) for letter in token}
    letters = [{t for token in tokens for t in token} for tokens in operands]
    zeroed = {t for own, leaf in zip(letters, leaves) if leaf for t in own}
    found = []
    for i, (tokens, own, leaf) in enumerate(zip(operands, letters, leaves)):
        # A parameter's cut positions are zero in the reference: sums over them are right, statistics are not.
        summed = set() if leaf else own - kept - zeroed
        apart = summed if i else summed | over  # norms take statistics of their input alone
        found.append([dim for dim, token in enumerate(tokens) if apart & set(token)])
    return found


def line(text: str) -> Callable[[Flow, Call], None]:
    """Make a rule of a line of notation."""
    notation = parse(text)

    def rule(flow: Flow, call: Call) -> None:
        run_line(flow, call, notation)

    return rule


def matmul(flow: Flow, call: Call) -> None:
    """input[... m k] other[... k n] -> ... m n, and with vectors."""
    a, b = (call.argument(i, name).dim() for i, name in enumerate(("input", "other")))
    left = "k" if a == 1 else "... m k"
    right = "k" if b == 1 else "... k n"
    batch = "..." if max(a, b) > 2 else ""
    out = " ".join(filter(None, [batch, "m" if a > 1 else "", "n" if b > 1 else ""]))
    run_line(flow, call, parse(f"input[{left}] other[{right}] -> {out}"))


def einsum(flow: Flow, call: Call) -> None:
    """The equation says it: letters that operands share meet, those that the output lacks are summed over."""
    equation, *tensors = call.args
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        tensors = list(tensors[0])
    inputs, arrow, output = str(equation).replace(" ", "").partition("->")
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        output = ("..." if "..." in inputs else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    spaced = [_space(part) for part in (*inputs.split(","), output)]
    if any(len(set(part.split())) < len(part.split()) for part in spaced):
        return flow.unknown(call, "einsum takes a diagonal")
    arguments = " ".join(f"x{i}[{dims}]" for i, dims in enumerate(spaced[:-1]))
    positional = Call(call.index, call.name, call.func, tuple(tensors), {}, call.result, call.module, call.location)
    run_line(flow, positional, parse(f"{arguments} -> {spaced[-1]}"))


def _space(letters: str) -> str:
    return " ".join(letters.replace("...", "…")).replace("…", "...")


def layer_norm(flow: Flow, call: Call) -> None:
    """input[... c] normalized_shape weight[c] bias[c] -> ... c over c, and over several dimensions."""
    shape = call.argument(1, "normalized_shape")
    letters = " ".join(f"c{i}" for i in range(len(shape)))
    bias = f" bias[{letters}]" if call.name == "layer_norm" else ""
    text = f"input[... {letters}] normalized_shape weight[{letters}]{bias} -> ... {letters} over {letters}"
    run_line(flow, call, parse(text))
    result = flow.value(call.result)
    for i, size in enumerate(shape):
        flow.size(size, flow.extent(result, len(result.shape) - len(shape) + i), f"normalized_shape of {call.name}")


def batch_norm(flow: Flow, call: Call) -> None:
    """In training mode, and where it keeps no running statistics, batch norm takes them from its input."""
    own = bool(call.argument(5, "training")) or call.argument(3, "running_mean") is None
    over = " over n ..." if own else ""
    line = f"input[n c ...] weight[c] bias[c] running_mean[c] running_var[c] -> n c ...{over}"
    run_line(flow, call, parse(line))


def distances(flow: Flow, call: Call) -> None:
    """cdist(x1 [..., p, m], x2 [..., r, m]) -> [..., p, r]: sums over m, where the points of neither side are zero."""
    run_line(flow, call, parse("x1[... p m] x2[... r m] -> ... p r"))
    for i, name in enumerate(("x1", "x2")):
        flow.reduced(call.argument(i, name), [call.argument(i, name).dim() - 1])


def tensordot(flow: Flow, call: Call) -> None:
    """Dimensions that are contracted meet in pairs, all others pass."""
    a, b, over_a, over_b = call.args[:4]
    left, right = ([f"{side}{d}" for d in range(t.dim())] for side, t in (("a", a), ("b", b)))
    for i, j in zip(over_a, over_b):
        right[j] = left[i]
    shared = set(left) & set(right)
    out = " ".join(letter for letter in (*left, *right) if letter not in shared)
    run_line(flow, call, parse(f"a[{' '.join(left)}] b[{' '.join(right)}] -> {out}"))


def experts(flow: Flow, call: Call) -> None:
    """grouped_mm(input [s, i], weight [e, i, o], offs) -> [s, o]: rows come expert by expert, a matrix each."""
    tensor, weight = call.args[:2]
    if (tensor.dim(), weight.dim()) != (2, 3) or call.argument(3, "bias") is not None:
        return flow.unknown(call, "a product in other groups than of rows by expert")
    flow.solid(tensor, [0], f"{call.name} reads rows expert by expert")
    flow.solid(weight, [0], f"{call.name} looks up experts by index")
    run_line(flow, call, parse("input[* i] weight[* i o] -> * o"))
    for dim in (1, 2):
        in_eights(flow, weight, dim)


def in_eights(flow: Flow, tensor: Tensor, dim: int) -> None:
    """A kernel wants rows of 16 bytes: widths stay multiples of 8, or of 4 where they are no more than that.

    The positions 0, 8, 16, ... become one row of a table, 1, 9, 17, ... the next, and rows keep equally many.
    """
    size = int(tensor.shape[dim])
    step = next((n for n in (8, 4) if size % n == 0 and size > n), 0)
    width = flow.extent(flow.value(tensor), dim)
    if step and isinstance(width, Extent) and width.labels.numel() == size:
        flow.space.balance(width.labels.reshape(-1, step).T.contiguous())
    elif isinstance(width, Extent):
        flow.solid(tensor, [dim], "a kernel wants rows of 16 bytes")


def add_to(product: str, output: str) -> Callable[[Flow, Call], None]:
    """addmm and its like: a product and something that broadcasts to its shape."""

    def rule(flow: Flow, call: Call) -> None:
        """A product of matrices, and something that broadcasts to its shape."""
        rank = call.argument(0, "input").dim()
        lead = " ".join(output.split()[len(output.split()) - rank :])
        run_line(flow, call, parse(f"input[{lead}] {product} -> {output}"))

    return rule


def embedding(flow: Flow, call: Call) -> None:
    """weight[* e] -> ... e: rows are looked up by index."""
    weight = call.argument(0, "weight")
    if call.func.__module__ == "torch.nn.functional":
        weight = call.argument(1, "weight")
    value = flow.look(weight)
    for index in call.tensors:
        if index is not weight:
            flow.solid(index, range(index.dim()), "a table of indices")
    families, _ = contract(
        flow.space,
        parse("weight[* e] -> * e"),
        [Operand(value, ((), ("e",)), "rows of the table are looked up by index")],
        {},
        2,
    )
    rank = call.result.dim()
    flow.set(call.result, [flow.widen(f, rank) for f in families])


def attention(flow: Flow, call: Call) -> None:
    """query[... l d] key[... s d] value[... s v] -> ... l v: s stays, and d where its root can't be made up for."""
    query, scale = call.argument(0, "query"), call.argument(6, "scale")
    if isinstance(scale, Power):
        scale.used = True
        flow.rooted(query, scale.base, scale.escape[1], scale.exponent, "scaled by a power of a width")
    if scale is None:
        extent = flow.extent(flow.value(query), query.dim() - 1)
        width = Width(extent, extent.size) if isinstance(extent, Extent) else extent
        flow.rooted(query, width, query.size(-1), -0.5, f"{call.name} divides by the square root of this width")
    for tensor in (call.argument(1, "key"), call.argument(2, "value")):
        flow.solid(tensor, [-2], f"{call.name} normalises over these positions")
    heads = ("(h r)", "h", "h") if call.kwargs.get("enable_gqa") else ("", "", "")
    q, k, v = (f"... {h}" for h in heads)
    common = run_line(flow, call, parse(f"query[{q} l d] key[{k} s d] value[{v} s v] attn_mask[... l s] -> {q} l v"))
    if heads[0] and common is not None:
        # Models keep this number too, for the paths that repeat keys by it (other backends, export), unseen here.
        repeats = query.size(-3) // call.argument(1, "key").size(-3)
        flow.size(repeats, common.extent("r"), "queries for each key")


RULES: dict[str, Callable[[Flow, Call], None]] = {
    **{name: line(text) for name, text in LINES.items()},
    "matmul": matmul,
    "einsum": einsum,
    "addmm": add_to("mat1[m k] mat2[k n]", "m n"),
    "addbmm": add_to("batch1[b m k] batch2[b k n]", "m n"),
    "baddbmm": add_to("batch1[b m k] batch2[b k n]", "b m n"),
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "embedding": embedding,
    "cdist": distances,
    "tensordot": tensordot,
    "grouped_mm": experts,
    "transformers::grouped_mm_fallback": experts,
    "scaled_dot_product_attention": attention,
}
