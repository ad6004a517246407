"""The `vidk` operator library: schemas and fakes in Python, kernels in C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("vidk", "DEF")


def define(schema: str, fake: Callable[..., Any]) -> None:
    """Define one operator and register its fake kernel.

    The schema's strides are exact: Inductor hands an op the very strides that eager mode would, so
    kernels take strided views and fakes return the strides that kernels return.
    """
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    name = schema.split("(", 1)[0]
    torch.library.register_fake(f"vidk::{name}", fake, lib=LIBRARY)
