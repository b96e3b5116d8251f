"""Decide what goes: costs, budgets, and the plan that the later stages read."""

from surgeon.plan.make import plan
from surgeon.plan.pareto import Pareto, pareto
from surgeon.plan.plan import Cut, Edit, GroupCut, LayerCost, Masked, Plan, Selection

__all__ = ["Cut", "Edit", "GroupCut", "LayerCost", "Masked", "Pareto", "Plan", "Selection", "pareto", "plan"]
