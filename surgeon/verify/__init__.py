"""Prove that the cut is right: the masked original computes what the small model computes."""

from surgeon.verify.count import count_flops
from surgeon.verify.verify import Proof, verify

__all__ = ["Proof", "count_flops", "verify"]
