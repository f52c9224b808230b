"""Scores + structure + budget -> Plan. No torch."""

from prunecli.budget.amounts import Budget, Currency, parse_amount
from prunecli.budget.planner import Range, check_reach, feasible, make_plan

__all__ = ["Budget", "Currency", "Range", "check_reach", "feasible", "make_plan", "parse_amount"]
