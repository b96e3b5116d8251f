import torch, torch.nn.functional as F
from tests.rules.harness import square

@square("linear", examples=200)
def test_linear(case):
    n, i, o = case.shape(3)
    case.check(lambda m: F.linear(m.x, m.w, m.b), x=case.tensor(n, i), w=case.tensor(o, i), b=case.tensor(o), cut="x:0 x:1 w:0 w:1 b:0")

@square("roll", examples=30)
def test_roll(case):
    n, i, o = case.shape(3)
    case.check(lambda m: torch.roll(m.x, 1, 1), x=case.tensor(n, i), cut="x:0", stays={"x:1": "roll"})
