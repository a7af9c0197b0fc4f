"""``taylor-prune report``: write the report of a run again."""

from lightning_taylor_prune.report.__main__ import add_arguments, run

__all__ = ["EXAMPLES", "NAME", "SUMMARY", "add_arguments", "run"]

NAME = "report"
SUMMARY = "Write the report of a pruning run again, from the results that it saved."
EXAMPLES = """\
  taylor-prune report outputs/prune/results.json
  taylor-prune report outputs/prune/results.json somewhere/else"""
