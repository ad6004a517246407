"""One run of `vidk generate`: the weights, the rollout, and the report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidk._version import __version__
from vidk.bench.machine import cpu_model
from vidk.cache_kinds import Kind
from vidk.cli.inputs import ModelSource, model_ops
from vidk.cli.kv import DEFAULT_RECIPE
from vidk.cli.plan import Plan, stored
from vidk.cli.report import GraphCount, plural, summarize
from vidk.cli.stream import LatentOutput, Run, VideoOutput, cancelled_by_ctrl_c, stream
from vidk.cli.system import kernel, matmul_rate, peak_memory
from vidk.models.wan import CausalWan
from vidk.rollout import Schedule, Session
from vidk.text import PromptEmbeds
from vidk.vae import Decoder

Say = Callable[[str], None]


@dataclass
class Job:
    """A run whose inputs are checked and, the weights apart, loaded."""

    args: argparse.Namespace
    device: torch.device
    source: ModelSource
    decoder: Decoder
    plan: Plan
    kind: Kind
    given: Tensor | None
    prompt: PromptEmbeds
    prompt_source: str
    schedule: Schedule
    # Why the model is not compiled; None if it is.
    eager: str | None
    notes: list[str]

    @property
    def writes_latents(self) -> bool:
        """Whether the file holds latents, so that nothing is decoded."""
        return self.args.out.lower().endswith(".safetensors")

    def announcement(self) -> str:
        """Return what is about to run, in one line."""
        plan, source = self.plan, self.source
        forwards = len(plan.blocks) * (len(self.schedule.timesteps) + 1)
        height, width = plan.size
        how = "eagerly" if self.eager else "compiled"
        return (
            f"{source.name} ({source.weights}), {_name(source.dtype)}, {plan.frames} frames of "
            f"{height}x{width}: {plural(len(plan.blocks), 'block')}, {forwards} forwards, {how} "
            f"on {self.device}"
        )

    def run(self, say: Say, *, progress: bool) -> dict[str, Any]:
        """Make the file and return the report.

        Parameters
        ----------
        say : called with sentences for the user on the way.
        progress : show progress bars.
        """
        load_before = os.getloadavg()
        model = self.source.load(self.device)
        graphs = None
        if not self.eager:
            say("compiling for the first block, which takes a while the first time")
            graphs = GraphCount()
        try:
            result = self._attempt(model, progress)
        except RuntimeError as error:
            if self.eager or self.args.mode == "compile" or not _is_compile_error(error):
                raise
            self.eager = f"torch.compile failed: {str(error).strip().splitlines()[0]}"
            say(f"{self.eager}; running eagerly")
            graphs = None
            result = self._attempt(model, progress)
        cache = stored(self.source.config, self.plan, self.source.dtype, self.kind)
        # Before the rates are measured, which takes memory of its own.
        cuda = self.device.type == "cuda"
        memory = {
            "peak": peak_memory(),
            "peak_cuda": torch.cuda.max_memory_allocated(self.device) if cuda else None,
            "weights": self.source.parameters * self.source.dtype.itemsize,
            "cache": cache.bytes,
            "key_row": cache.key_row_bytes,
        }
        del model
        rates = {
            _name(dtype): matmul_rate(dtype, self.device)
            for dtype in dict.fromkeys((self.source.dtype, torch.float32))
        }
        return self._report(result, graphs, memory, rates, load_before)

    def _attempt(self, model: CausalWan, progress: bool) -> Run:
        args, plan = self.args, self.plan
        if not self.eager:
            torch._dynamo.reset()
        session = Session(
            model,
            self.prompt.embeds,
            self.prompt.context_lens,
            plan.latent,
            frames=plan.slots,
            sink=plan.sink,
            block_frames=args.block,
            independent_first_frame=args.independent_first_frame,
            schedule=self.schedule,
            kind=self.kind.name,
            recipe=args.fp4_recipe or DEFAULT_RECIPE,
            seed=args.seed,
            # Every shape of a run is fixed; a first frame of its own is a second graph.
            compile=False if self.eager else {"dynamic": False},
        )
        output: VideoOutput | LatentOutput
        if self.writes_latents:
            output = LatentOutput(
                args.out,
                {
                    "vidk": __version__,
                    "config": self.source.name,
                    "weights": self.source.weights,
                    "prompt": self.prompt_source,
                    "seed": args.seed,
                    "timesteps": self.schedule.timesteps,
                    "shift": args.shift,
                },
            )
        else:
            output = VideoOutput(args.out, args.fps, plan.frames, self.decoder)
        with output, cancelled_by_ctrl_c(session):
            result = stream(session, plan, output, self.given, progress=progress)
        result.codec, result.notes = output.codec, list(output.notes)
        return result

    def _report(
        self,
        result: Run,
        graphs: GraphCount | None,
        memory: dict[str, Any],
        rates: dict[str, float],
        load_before: tuple[float, float, float],
    ) -> dict[str, Any]:
        args, plan, source = self.args, self.plan, self.source
        config = source.config
        _, ph, pw = config.patch_size
        real = int(self.prompt.context_lens[0])
        device = self.device
        gpu = device.type == "cuda"
        times = summarize(
            config,
            result.blocks,
            frame_tokens=(plan.latent[0] // ph) * (plan.latent[1] // pw),
            text_keys=min(real + 1, config.text_len),
            compiled=graphs is not None,
        )
        counts = graphs.result() if graphs else {"graphs": 0, "breaks": 0, "recompiles": []}
        return {
            "versions": {"vidk": __version__, "torch": str(torch.__version__)},
            "model": {
                "config": source.name,
                "weights": source.weights,
                "parameters": source.parameters,
                "dtype": _name(source.dtype),
                "device": str(device),
                "device_name": torch.cuda.get_device_name(device) if gpu else cpu_model(),
                "threads": torch.get_num_threads(),
            },
            "prompt": {"source": self.prompt_source, "tokens": real},
            "video": {
                "size": plan.size,
                "frames": plan.frames,
                "fps": args.fps,
                "latent_frames": plan.given + sum(plan.blocks),
                "given_latent_frames": plan.given,
                "blocks": plan.blocks,
                "window": plan.slots,
                "sink": plan.sink,
            },
            "cache": {"kind": self.kind.name, "recipe": self.kind.recipe},
            "schedule": {
                "timesteps": self.schedule.timesteps,
                "shift": args.shift,
                "seed": args.seed,
            },
            "decoder": None if self.writes_latents else self.decoder.description,
            "compile": {"compiled": graphs is not None, "reason": self.eager, **counts},
            "kernels": {op: kernel(op, device.type) for op in model_ops(self.kind.name)},
            "times": {"condition": result.condition, **times},
            "matmul_flops_per_second": rates,
            "memory": memory,
            "load_average": {"before": load_before, "after": os.getloadavg()},
            "output": {
                "path": args.out,
                "bytes": os.path.getsize(args.out),
                "codec": result.codec,
            },
            "notes": [*self.notes, *result.notes],
        }


def _is_compile_error(error: RuntimeError) -> bool:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return isinstance(error, TorchDynamoException | CppCompileError | InvalidCxxCompiler)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
