"""Small models of many architectures, written as their users write them.

model, inputs = build("unet2d")            # float64, eval mode, non-trivial weights and batch statistics
for name in MODELS: ...
"""

from tests.zoo.models import MODELS, Entry, build, call
from tests.zoo.weights import randomize

__all__ = ["MODELS", "Entry", "build", "call", "randomize"]
