"""Finds out, from outside the ranks, that a run is stuck, and which rank is to blame; it does not end the run.

The launcher calls `Watch.look` about twice a second.
"""

from engine.hang.verdict import guilty
from engine.hang.watch import Diagnosis, Watch

__all__ = ["Diagnosis", "Watch", "guilty"]
