"""Block-by-block generation: schedule, noise and the streaming session."""

from vidk.rollout.noise import SeededNoise
from vidk.rollout.schedule import Schedule
from vidk.rollout.session import Block, Session

__all__ = ["Block", "Schedule", "SeededNoise", "Session"]
