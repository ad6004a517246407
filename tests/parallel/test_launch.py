"""`vidk generate` on several processes: one writer, and errors that every rank tells in time."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.helpers import MODEL
from vidk.cli import job, main
from vidk.parallel.launch import RanksError, place_of
from vidk.rollout import Session

from .ranks import CONTEXT

VIDEO = (*MODEL, "--frames", "21", "--window", "4", "--sink", "1")


def die_at(forward: int, how: int) -> None:
    """Let this process end by a signal, or stand still, before one of its forwards."""
    run, count = Session._run, 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == forward:
            os.kill(os.getpid(), how)
        return run(*args, **kwargs)

    Session._run = dying  # type: ignore[method-assign]


def one_rank(
    rank: int, environment: dict[str, str], words: list[str], fault: Any, pipe: Any
) -> None:
    """Run the command line as one process of torchrun would."""
    torch.set_num_threads(1)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    job.matmul_rate = lambda dtype, device: 1e11
    if fault:
        fault[0](*fault[1:])
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["generate", *words])
    pipe.send((code, out.getvalue(), err.getvalue()))


class Run:
    """Exit code, stdout and stderr of each rank, None for one that was killed; and the time."""

    def __init__(
        self,
        ranks: int,
        *words: object,
        own: dict[int, tuple[object, ...]] | None = None,
        faults: dict[int, Any] | None = None,
        world_size: int | None = None,
        wait: float = 60,
    ) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = {
            "WORLD_SIZE": str(world_size or ranks),
            "LOCAL_WORLD_SIZE": str(world_size or ranks),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self.silent = {r for r, fault in (faults or {}).items() if fault and fault[0] is die_at}
        begin, processes = time.monotonic(), []
        for rank in range(ranks):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            all_words = [*VIDEO, *map(str, words), *map(str, (own or {}).get(rank, ()))]
            args = (rank, environment, all_words, (faults or {}).get(rank), theirs)
            process = CONTEXT.Process(target=one_rank, args=args)
            process.start()
            theirs.close()
            processes.append((process, ours))
        self.results: list[tuple[int, str, str] | None] = []
        for rank, (_, pipe) in enumerate(processes):
            # Nothing comes from a rank with a signal; it may even stand still for ever.
            left = 0.0 if rank in self.silent else begin + wait - time.monotonic()
            answered = pipe.poll(max(0, left))
            try:
                self.results.append(pipe.recv() if answered else None)
            except EOFError:
                self.results.append(None)
        self.seconds = time.monotonic() - begin
        for process, _ in processes:
            process.kill()
            process.join()

    def errors(self) -> list[str]:
        """Return the sentences of the ranks that ended by themselves, all with an error."""
        ended = [result for result in self.results if result is not None]
        assert all(code == 2 for code, _, _ in ended), ended
        return [err.splitlines()[-1] for _, _, err in ended]


def test_only_rank_0_writes_and_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *VIDEO, "--out", "one.safetensors"]) == 0
    # A rank that writes would fail: only rank 0 is given a folder that exists.
    several = Run(3, "--layout", "contiguous", "--out", tmp_path / "three.safetensors")
    (code, out, err), *others = several.results
    assert code == 0, err
    assert "3 ranks (gather): each has 6 of 18 tokens (contiguous tokens)" in out
    assert "qk_norm_rope_pack: vidk C++" in out
    assert others == [(0, "", "")] * 2
    one, three = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "three"))
    assert (one["latents"] - three["latents"]).abs().max() <= 1e-5


def test_a_quantised_cache(tmp_path: Path) -> None:
    words = ("--config", "bundled", "--frames", "13", "--kv", "nvfp4", "--fp4-recipe", "accurate")
    run = Run(2, *words, "--out", tmp_path / "two.safetensors")
    (code, out, err), other = run.results
    assert code == 0, err
    assert other == (0, "", "")
    assert "2 ranks (heads)" in out
    assert "cache    nvfp4, keys quantised by the recipe accurate" in out
    assert "qk_norm_rope_pack: vidk C++" in out and "nvfp4_quantize: vidk C++" in out
    found = {}
    for name, more in (("one", words), ("plain", words[:4])):
        out_file = str(tmp_path / f"{name}.safetensors")
        assert main(["generate", *VIDEO, *more, "--out", out_file]) == 0
        found[name] = load_file(out_file)["latents"]
    two = load_file(tmp_path / "two.safetensors")["latents"]
    lost = (found["one"] - found["plain"]).abs().mean()
    assert lost > 0 and (two - found["one"]).abs().mean() <= lost


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank(victim: int, tmp_path: Path) -> None:
    run = Run(
        4, "--out", tmp_path / "a.safetensors", "--timeout", 30,
        faults={victim: (die_at, 7, signal.SIGKILL)},
    )  # fmt: skip
    assert run.results[victim] is None
    errors = run.errors()
    assert len(errors) == 3
    for rank, text in zip([r for r in range(4) if r != victim], errors, strict=True):
        assert text.startswith(f"vidk generate: rank {rank} of 4 has lost another rank"), text
    assert run.seconds < 30
    assert not list(tmp_path.iterdir())


def test_a_rank_that_stands_still(tmp_path: Path) -> None:
    run = Run(
        2, "--out", tmp_path / "a.safetensors", "--timeout", 3,
        faults={1: (die_at, 2, signal.SIGSTOP)}, wait=25,
    )  # fmt: skip
    (error,) = run.errors()
    assert error.startswith("vidk generate: rank 0 of 2 has lost another rank")


def fail_at_load(sentence: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ValueError(sentence)

    Session.generate = fail  # type: ignore[method-assign]


def test_a_rank_that_fails_is_named(tmp_path: Path) -> None:
    fault = {1: (fail_at_load, "the disk is full")}
    run = Run(2, "--out", tmp_path / "a.safetensors", faults=fault)
    assert sorted(run.errors()) == [
        "vidk generate: rank 0 of 2 has lost another rank (rank 1: the disk is full)",
        "vidk generate: the disk is full",
    ]


def other_version(name: str) -> None:
    from vidk.cli import ranks

    ranks.__version__ = name


def other_weights() -> None:
    from vidk.cli import ranks

    before = ranks.fingerprint
    job.fingerprint = lambda *args: before(*args)[::-1]


@pytest.mark.parametrize(
    ("own", "fault", "text"),
    [
        (("--seed", 4), None, "--seed: got 0 on rank 0 and 4 on rank 1"),
        (("--size", "64x48"), None, "--size: got (32, 48) on rank 0 and (64, 48) on rank 1"),
        ((), (other_version, "0.0"), "vidk: got "),
        ((), (other_weights,), "weights, prompt and first frames: got "),
        (("--window", 2), None, "--window: got 2, expected at least 4"),
    ],
)
def test_ranks_that_differ(own: tuple[object, ...], fault: Any, text: str, tmp_path: Path) -> None:
    run = Run(2, "--out", tmp_path / "a.safetensors", own={1: own}, faults={1: fault})
    errors = run.errors()
    assert len(errors) == 2
    assert all(text in error for error in errors), errors
    assert not list(tmp_path.iterdir())


def test_too_few_processes(tmp_path: Path) -> None:
    run = Run(2, "--out", tmp_path / "a.safetensors", "--timeout", 2, world_size=3)
    for error in run.errors():
        assert "ranks: got no answer from all 3 ranks within 2 s" in error
    assert len(run.errors()) == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--exchange", "heads"), "got heads for 3 ranks, expected a number that divides the 2"),
        (("--exchange", "hybrid"), "got hybrid for 3 ranks, expected a number with a smaller"),
        (("--exchange", "ring"), "--exchange: got ring, expected heads, hybrid or gather"),
    ],
)
def test_what_cannot_work_is_refused(words: tuple[str, ...], text: str, tmp_path: Path) -> None:
    for error in Run(3, *words, "--out", tmp_path / "a.safetensors").errors():
        assert text in error


ENVIRONMENT = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
}  # fmt: skip


def test_place() -> None:
    assert place_of({}) is None
    assert place_of({"WORLD_SIZE": "1"}) is None
    place = place_of(ENVIRONMENT)
    assert place is not None and (place.rank, place.ranks, place.local_rank) == (1, 4, 1)
    for change, text in (
        ({"RANK": "4"}, "got rank 4 of 4"),
        ({"RANK": "x"}, "expected whole numbers"),
        ({"MASTER_PORT": "", "RANK": ""}, "got WORLD_SIZE=4 without RANK, MASTER_PORT"),
    ):
        with pytest.raises(RanksError, match=text):
            place_of({**ENVIRONMENT, **change})


def test_torchrun(tmp_path: Path) -> None:
    """The real thing."""
    words = [*VIDEO, "--out", str(tmp_path / "two.safetensors")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "vidk", "generate", *words],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr
    assert "ranks    2 ranks (heads): each has 9 of 18 tokens" in done.stdout
    assert main(["generate", *VIDEO, "--out", str(tmp_path / "one.safetensors")]) == 0
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert (one["latents"] - two["latents"]).abs().max() <= 1e-5
