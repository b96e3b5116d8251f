"""surgeon: a structured channel-surgery compiler for PyTorch.

result = surgeon.prune(model, example_inputs, flops=0.5)
result.model      # the same class, physically smaller
result.plan       # what went and what stayed
result.proof      # the masked original computes the same
result.report     # before and after
result.recovery   # with data: what was refitted
"""

from surgeon import schedule as schedule
from surgeon.api import Result, plan, prune, trace
from surgeon.comparison import compare
from surgeon.convert import plan_from_history, plan_from_pair, plan_from_zeros
from surgeon.deploy import Exported, export, load, operate_file, save
from surgeon.errors import SurgeonError
from surgeon.labels.rules.custom import rule
from surgeon.operate import migrate, operate
from surgeon.plan import Pareto, Plan, pareto
from surgeon.pruner import Pruner
from surgeon.recover import Recovery, recover
from surgeon.report import Report
from surgeon.score import score
from surgeon.sensitivity import Sensitivity, sensitivity
from surgeon.verify import Proof, verify

__version__ = "0.1.0"

__all__ = [
    "Exported",
    "Pareto",
    "Plan",
    "Proof",
    "Pruner",
    "Recovery",
    "Report",
    "Result",
    "Sensitivity",
    "SurgeonError",
    "compare",
    "export",
    "load",
    "migrate",
    "operate",
    "operate_file",
    "pareto",
    "plan",
    "plan_from_history",
    "plan_from_pair",
    "plan_from_zeros",
    "prune",
    "recover",
    "rule",
    "save",
    "score",
    "sensitivity",
    "trace",
    "verify",
]
