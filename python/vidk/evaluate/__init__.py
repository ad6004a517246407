"""Quality of the bundled model's videos, measured in the pictures."""

from vidk.evaluate.report import compared, drift, gains, judged_blocks, validated
from vidk.evaluate.rollouts import Case, cases, decoded, rollouts
from vidk.evaluate.setup import Setup

__all__ = [
    "Case",
    "Setup",
    "cases",
    "compared",
    "decoded",
    "drift",
    "gains",
    "judged_blocks",
    "rollouts",
    "validated",
]
