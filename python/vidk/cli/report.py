"""The report of a run: one document, as JSON and as lines for reading."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from vidk.cli.stream import BlockTimes
from vidk.cli.system import bytes_text
from vidk.models.config import WanConfig
from vidk.models.flops import forward_flops


class GraphCount:
    """Counts what torch.compile does from now on."""

    def __init__(self) -> None:
        self._before = self._totals()

    @staticmethod
    def _totals() -> tuple[int, int, list[Any]]:
        from torch._dynamo import utils

        stats, breaks = utils.counters["stats"], utils.counters["graph_break"]
        return stats["unique_graphs"], sum(breaks.values()), list(utils.get_compilation_metrics())

    def result(self) -> dict[str, Any]:
        """Return the numbers of graphs and of graph breaks, and why each recompilation was."""
        graphs, breaks, metrics = self._totals()
        reasons = [m.recompile_reason for m in metrics[len(self._before[2]) :]]
        return {
            "graphs": graphs - self._before[0],
            "breaks": breaks - self._before[1],
            "recompiles": [reason for reason in reasons if reason],
        }


def summarize(
    config: WanConfig,
    blocks: Sequence[BlockTimes],
    *,
    frame_tokens: int,
    text_keys: int,
    compiled: bool,
) -> dict[str, Any]:
    """Return times and rates, the warm ones apart from those that hold a compilation.

    Parameters
    ----------
    config : of the model.
    blocks : all of the run.
    frame_tokens, text_keys : tokens of a latent frame, and text keys that are attended to.
    compiled : the first forward of each block length compiles.
    """
    seen: set[int] = set()
    steady: list[BlockTimes] = []
    denoise: list[float] = []
    clean: list[float] = []
    flops: list[int] = []
    for index, block in enumerate(blocks):
        cold = compiled and block.latent_frames not in seen
        seen.add(block.latent_frames)
        if index and not cold:
            steady.append(block)
        *steps, rerun = block.forwards
        warm = steps[1:] if cold else steps
        count = forward_flops(
            config,
            frames=block.latent_frames,
            frame_tokens=frame_tokens,
            kv_frames=block.kv_frames,
            text_keys=text_keys,
        )
        denoise += warm
        flops += [count] * len(warm)
        clean.append(rerun)
    stages = ("denoise", "decode", "write", "total")
    frames = sum(b.pixel_frames for b in steady)
    return {
        "first_block": blocks[0].total,
        "steady_block": {s: _median(getattr(b, s) for b in steady) for s in stages},
        "steady_blocks": len(steady),
        "frames_per_second": frames / sum(b.total for b in steady) if steady else None,
        "forward": _median(denoise),
        "clean_forward": _median(clean),
        "warm_forwards": len(denoise),
        "forward_flops": _median(flops),
        "flops_per_second": _median(f / s for f, s in zip(flops, denoise, strict=True)),
        "blocks": [asdict(block) for block in blocks],
    }


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None


def as_text(report: dict[str, Any]) -> str:
    """Lay the report out for reading."""
    model, video, schedule = report["model"], report["video"], report["schedule"]
    output, memory = report["output"], report["memory"]
    height, width = video["size"]
    count = video["given_latent_frames"]
    given = f", {count} of them given" if count else ""
    sink = f" with a sink of {video['sink']}" if video["sink"] else ""
    kernels = [f"{op}: {text}" for op, text in report["kernels"].items()]
    rows = [
        (
            "model",
            f"{model['config']}, {_count(model['parameters'])} parameters, {model['weights']}, "
            f"{model['dtype']}",
        ),
        (
            "device",
            f"{model['device']}, {model['device_name']}, {plural(model['threads'], 'thread')}",
        ),
        ("prompt", report["prompt"]["source"]),
        (
            "video",
            f"{video['frames']} frames of {height}x{width} at {video['fps']:g} fps: "
            f"{video['latent_frames']} latent frames{given}, blocks of "
            f"{_runs(video['blocks'])}, cache of {video['window']}{sink}",
        ),
        (
            "sampler",
            f"timesteps {' '.join(f'{t:.4g}' for t in schedule['timesteps'])}, shift "
            f"{schedule['shift']:g}, then a clean re-run; seed {schedule['seed']}",
        ),
        *_cache(report["cache"]),
        ("decoder", report["decoder"] or "none, latents are written"),
        ("graphs", _graphs(report["compile"])),
        *(("kernels" if i == 0 else "", text) for i, text in enumerate(kernels)),
        *_times(report),
        ("memory", _memory(memory)),
        (
            "wrote",
            f"{output['path']} ({bytes_text(output['bytes'])}, {output['codec']}), "
            f"{_seconds(report['times']['total'])} after start-up",
        ),
        *(("note", text) for text in report["notes"]),
    ]
    return "\n".join(f"{name:9}{text}" for name, text in rows)


def _cache(cache: dict[str, Any]) -> list[tuple[str, str]]:
    recipe = cache["recipe"]
    return [("cache", f"{cache['kind']}, keys quantised by the recipe {recipe}")] if recipe else []


def _times(report: dict[str, Any]) -> list[tuple[str, str]]:
    times, matmul = report["times"], report["matmul_flops_per_second"]
    cold = " with compilation" if report["compile"]["compiled"] else ""
    rates = ", ".join(f"{name} {_rate(rate)}" for name, rate in matmul.items())
    best = max(matmul, key=lambda name: matmul[name])
    rows = [("block", f"first {_seconds(times['first_block'])}{cold}, no other to time")]
    if times["steady_blocks"]:
        median = times["steady_block"]
        stages = ("denoise", "decode", "write") if report["decoder"] else ("denoise",)
        parts = ", ".join(f"{name} {_seconds(median[name])}" for name in stages)
        rows = [
            (
                "block",
                f"first {_seconds(times['first_block'])}{cold}, then "
                f"{_seconds(median['total'])} (median of {times['steady_blocks']})",
            ),
            ("", f"{parts}: {times['frames_per_second']:.3g} frames/s"),
        ]
    if times["forward"] is not None:
        rows.append(
            (
                "forward",
                f"{_seconds(times['forward'])} (median of {times['warm_forwards']}; clean re-run "
                f"{_seconds(times['clean_forward'])}), {_count(times['forward_flops'])}FLOP, "
                f"{_rate(times['flops_per_second'])}",
            )
        )
        share = times["flops_per_second"] / matmul[best]
        rates += f"; the forwards reached {share:.0%} of {best}"
    load = report["load_average"]["after"][0]
    rows.append(("matmul", f"{rates} (measured in this run, load average {load:.1f})"))
    return rows


def plural(count: int, noun: str) -> str:
    """Return `1 block`, `2 blocks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _runs(blocks: Sequence[int]) -> str:
    """Return `1, 3, 3, 3, 3` as `1, 3 (4 times)`."""
    runs = [(size, len(list(group))) for size, group in itertools.groupby(blocks)]
    return ", ".join(f"{size} ({count} times)" if count > 1 else str(size) for size, count in runs)


def _graphs(compiled: dict[str, Any]) -> str:
    if not compiled["compiled"]:
        return f"none, run eagerly ({compiled['reason']})"
    recompiles = compiled["recompiles"]
    text = (
        f"{compiled['graphs']} compiled, {plural(compiled['breaks'], 'break')}, "
        f"{plural(len(recompiles), 'recompilation')}"
    )
    return "; ".join([text, *(" ".join(reason.split()) for reason in recompiles)])


def _memory(memory: dict[str, Any]) -> str:
    text = f"{bytes_text(memory['peak'])} at most in the process"
    if memory["peak_cuda"] is not None:
        text += f", {bytes_text(memory['peak_cuda'])} on the GPU"
    return (
        f"{text}; weights {bytes_text(memory['weights'])}, cache {bytes_text(memory['cache'])}, "
        f"{memory['key_row']:.4g} B a key"
    )


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} P"


def _rate(value: float) -> str:
    return f"{_count(value)}FLOP/s"
