"""One video on several ranks: layouts, the planner, and the exchanges between them."""

from vidk.parallel.buffer import GatherBuffer
from vidk.parallel.exchange import Exchange, make_exchange
from vidk.parallel.layout import Layout
from vidk.parallel.planner import Sharding, choose_sharding

__all__ = ["Exchange", "GatherBuffer", "Layout", "Sharding", "choose_sharding", "make_exchange"]
