"""Rules that users give for ops of their own, one line each."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

from torch import Tensor

from surgeon.errors import RuleError
from surgeon.labels.contract import spell
from surgeon.labels.flow import Flow, Rule
from surgeon.labels.notation import Notation, Token, parse
from surgeon.labels.rules import RULES
from surgeon.labels.rules.contraction import run_line
from surgeon.modules import tensors_in
from surgeon.trace import Call

# op name -> the line that it was taught with, and the rule made of it
TAUGHT: dict[str, Rule] = {}
LINES: dict[str, str] = {}

WILD = frozenset({("...",), ("*",)})

_NAME = re.compile(r"[A-Za-z_]\w*(::[A-Za-z_]\w*)?")
_PART = re.compile(r"\s*(?:\([\sA-Za-z0-9_]*\)|\.\.\.|\*|[A-Za-z]\w*|\s)*")
_ARGUMENTS = re.compile(r"(\s*[A-Za-z_]\w*(\[[^\[\]]*\]|=[A-Za-z]\w*)?)*\s*")
_USE = 'write dimensions of each tensor, as in "n c ..., c -> n c ..."'


def rule(name: str, line: str) -> None:
    """Teach surgeon an op of your own: which dimensions of its tensors belong together.

    A letter is a dimension whose positions may be cut; tensors that share a letter share its positions. ``(g c)`` is
    one dimension made of two, ``*`` any number of dimensions that may not shrink, ``...`` any others, which broadcast
    as in an addition. A letter that the output lacks is summed over: a position that is zero adds nothing. Write
    ``*`` for a dimension that the op sorts, normalises, or looks at as a whole in any other way.

    Parameters
    ----------
    name : ``"mylib::op"`` for an op of ``torch.library``, or the class name of a ``torch.autograd.Function``
    line : the tensors in the order in which the op takes them, and its one result, ``"n c ..., c -> n c ..."``.
        The long form names the arguments, ``"input[n (g c) ...] weight[(g c)] groups=g -> n (g c) ..."``: then tensors
        may be left out, and ``groups=g`` is an integer that has to equal a letter.

    Raises
    ------
    RuleError, when the line can't be read or the op has another rule already.

    Examples
    --------
    >>> @torch.library.custom_op("mylib::scale", mutates_args=())
    ... def scale(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    ...     return x * weight[:, None, None]
    >>> surgeon.rule("mylib::scale", "n c ..., c -> n c ...")
    """
    if not _NAME.fullmatch(name):
        raise RuleError(f"{name!r} names no op; write 'mylib::op', or the class name of an autograd function")
    if name in LINES and LINES[name] == line:
        return
    if name in LINES or name in RULES:
        raise RuleError(f"{name} has a rule already{': ' + LINES[name] if name in LINES else ''}")
    notation, named = read(line)
    TAUGHT[name], LINES[name] = _rule(notation, named), line


def read(line: str) -> tuple[Notation, bool]:
    """Read a rule in the short or the long form; the second result says which. Raises RuleError."""
    head, arrow, output = line.partition("->")
    if not arrow or "->" in output:
        raise RuleError(f"malformed rule {line!r}: it needs one '->'; {_USE}")
    named = "[" in head or "=" in head
    parts = re.findall(r"\[([^\]]*)\]", head) if named else head.split(",")
    unread = [head] if named and not _ARGUMENTS.fullmatch(head) else []
    for part in (*unread, *parts, output):
        if part in unread or not _PART.fullmatch(part):
            raise RuleError(f"malformed rule {line!r}: can't read {part.strip()!r}; {_USE}")
    text = line if named else " ".join(f"x{i}[{part}]" for i, part in enumerate(parts)) + f" -> {output}"
    try:
        notation = parse(text)
    except ValueError as error:
        raise RuleError(f"malformed rule {line!r}: {str(error).partition(': ')[2] or error}; {_USE}") from error
    for fault in faults(notation):
        raise RuleError(f"malformed rule {line!r}: {fault}")
    return notation, named


def faults(notation: Notation) -> list[str]:
    """Return what is wrong with a line: letters twice in a tensor, several wildcards, sizes that can't be told."""
    found = []
    tensors = [argument.dims for argument in notation.arguments if argument.dims is not None]
    for tokens in (*tensors, notation.output):
        shown = " ".join(t[0] if len(t) == 1 else f"({' '.join(t)})" for t in tokens)
        twice = [t for t, count in Counter(t for token in tokens for t in token).items() if count > 1 and t != "*"]
        if twice:
            found.append(f"{twice[0]!r} is twice in '{shown}'; give the dimensions letters of their own")
        if sum(token in WILD for token in tokens) > 1:
            found.append(f"'{shown}' has more than one of '*' and '...'; one is all that can be told apart")
    single = {t[0] for tokens in tensors for t in tokens if len(t) == 1}
    single |= {argument.size for argument in notation.arguments if argument.size}
    unsure = [t for tokens in tensors for t in tokens if len(set(t) - single) > 1]
    found += [f"the sizes of ({' '.join(t)}) can't be told apart; name one, as in groups={t[0]}" for t in unsure]
    if notation.over:
        found.append("only rules of torch's own ops take statistics; write '*' for the dimensions under it")
    if not tensors:
        found.append("it has no tensor")
    return found


def _rule(notation: Notation, named: bool) -> Rule:
    def apply(flow: Flow, call: Call) -> None:
        given = call if named else positional(call)
        count = len(given.args) if not named else len(notation.arguments)
        wrong = mismatch(notation, given) if count == len(notation.arguments) else f"the op was given {count} tensors"
        if wrong:
            return flow.unknown(call, f"the rule {notation} does not fit ({wrong})")
        run_line(flow, given, notation)

    return apply


def positional(call: Call) -> Call:
    """Return a call with its tensors alone, in the order in which the op declares them."""
    # Without a schema, as for an autograd function, this raises: the call is then one that the rule doesn't cover.
    declared = [a.name for a in getattr(call.func, "default", call.func)._schema.arguments] if call.kwargs else []
    given = [*call.args, *(call.kwargs[name] for name in declared if name in call.kwargs)]
    return replace(call, args=tuple(tensors_in(given)), kwargs={})


def mismatch(notation: Notation, call: Call) -> str:
    """Say where a call is not what its rule says; empty if it is."""
    if not isinstance(call.result, Tensor):
        return "the op has not one tensor as its result"
    sizes: dict[str, int] = {}
    expected: list[tuple[str, tuple[Token, ...], Tensor]] = []
    for argument in notation.arguments:
        given = call.argument(argument.position, argument.name)
        if argument.size is not None and given is not None:
            sizes[argument.size] = int(given)
        if argument.dims is not None and isinstance(given, Tensor):
            expected.append((argument.name, argument.dims, given))
    taken = {id(given) for _, _, given in expected}
    if any(id(tensor) not in taken for tensor in call.tensors):
        return "it does not name all tensors"
    for name, dims, tensor in (*expected, ("the result", notation.output, call.result)):
        spelled = spell(dims, tensor.dim())
        if len(spelled) != tensor.dim():
            return f"{name} has {tensor.dim()} dimensions"
        for token, size in zip(spelled, tensor.shape):
            if len(token) == 1 and size > 1 and sizes.setdefault(token[0], size) != size:
                return f"{token[0]} is {sizes[token[0]]} and {size} long"
    for name, dims, tensor in (*expected, ("the result", notation.output, call.result)):
        for token, size in zip(spell(dims, tensor.dim()), tensor.shape):
            known = [sizes[t] for t in token if t in sizes]
            if size > 1 and len(token) > 1 and size % math.prod(known):
                return f"({' '.join(token)}) of {name} is {size} long"
    return ""
