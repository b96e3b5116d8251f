"""Every rule has a square."""

from __future__ import annotations

import importlib
from pathlib import Path

from surgeon.labels.rules import RULES
from tests.rules.harness import COVERED

# Rules that no square can reach, and why.
UNREACHED: dict[str, str] = {
    **dict.fromkeys(
        "dropout1d dropout2d dropout3d lp_pool1d lp_pool2d lp_pool3d softmin softsign tanhshrink".split(),
        "written in Python: the builtins of its body arrive instead",
    ),
    **dict.fromkeys("hardtanh_ logsigmoid pos truediv".split(), "torch calls it hardtanh, log_sigmoid, positive, div"),
    **{f"adaptive_max_pool{n}d_with_indices": "arrives without the suffix" for n in (1, 2, 3)},
    **{f"fractional_max_pool{n}d_with_indices": "arrives without the suffix" for n in (1, 2, 3)},
    **dict.fromkeys("alias glu_jvp lift_fresh native_dropout stop_gradient".split(), "an op of exported programs"),
    "cuda": "needs a GPU",
    "transformers::grouped_mm_fallback": "grouped_mm under the name that transformers gives it",
}

for _path in sorted(Path(__file__).parent.glob("test_*.py")):
    importlib.import_module(f"tests.rules.{_path.stem}")


def test_every_rule_is_exercised() -> None:
    missing = RULES.keys() - COVERED.keys() - UNREACHED.keys()
    assert not missing, f"rules without a case in tests/rules: {sorted(missing)}"


def test_exceptions_are_rules_without_a_case() -> None:
    assert UNREACHED.keys() <= RULES.keys(), sorted(UNREACHED.keys() - RULES.keys())
    assert not UNREACHED.keys() & COVERED.keys(), sorted(UNREACHED.keys() & COVERED.keys())
