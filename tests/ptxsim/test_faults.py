"""Every check of the simulator catches a kernel with a planted fault, and lets its repair pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ptxsim import Fault, Output, SyntaxError, compile_cuda, has_nvcc, run

pytestmark = pytest.mark.skipif(not has_nvcc(), reason="no nvcc to compile CUDA sources")

HEADER = """
#include <cstdint>
#define KERNEL extern "C" __global__ void kernel
// Hides a pointer or a number from the compiler, which would drop what is plainly wrong.
template <class T> __device__ T opaque(T x) { asm volatile("" : "+l"(x)); return x; }
__device__ int opaque(int x) { asm volatile("" : "+r"(x)); return x; }
"""


def execute(body: str, *args: Any, block: int = 64, grid: int = 1, **options: Any) -> dict:
    arch = options.pop("arch", "sm_80")
    return run(compile_cuda(HEADER + body, arch), "kernel", grid, block, args, **options)


def ints(n: int = 64) -> np.ndarray:
    return np.arange(n, dtype=np.int32)


def expect(kind: str, text: str, body: str, *args: Any, **options: Any) -> None:
    with pytest.raises(Fault, match=text) as caught:
        execute(body, *args, **options)
    assert caught.value.kind == kind
    # Reports name the place: block, warp, PTX line, source line.
    assert kind in ("deadlock", "launch", "runaway", "divergence") or " [" in str(caught.value)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "text"),
    [("i + 1", "4 bytes past the end of argument 0"), ("i - 1", "4 bytes before argument 0")],
)
@pytest.mark.parametrize("access", ["a[{}] = i;", "a[i] = a[{}];"])
def test_out_of_bounds(index: str, text: str, access: str) -> None:
    body = "KERNEL(int* a) {{ int i = threadIdx.x; {} }}"
    execute(body.format(access.format("i")), ints())
    expect("bounds", text, body.format(access.format(index)), ints())


def test_shared_out_of_bounds() -> None:
    body = """KERNEL(int* a) {{ extern __shared__ int s[];
      int i = threadIdx.x; s[opaque(i + {})] = i; a[i] = s[opaque(i + {})]; }}"""
    execute(body.format(0, 0), ints(), shared_bytes=256)
    expect("bounds", "offset 256 of 256", body.format(1, 1), ints(), shared_bytes=256)


def test_misaligned() -> None:
    body = """KERNEL(int* a, float* b) {{ int i = threadIdx.x;
      float4 x = *(const float4*)((char*)b + 16 * i + {0}); a[i] = x.x + x.w; }}"""
    b = np.zeros(65 * 4 + 4, np.float32)
    b = b[(-b.ctypes.data // 4) % 4 :]  # its first byte is 16-byte aligned
    execute(body.format(0), ints(), b)
    expect("alignment", "not a multiple of 16", body.format(4), ints(), b)


def test_store_to_an_input() -> None:
    a = ints()
    a.flags.writeable = False
    expect("bounds", "which is an input", "KERNEL(int* a) { a[threadIdx.x] = 1; }", a)


def test_two_blocks_write_one_address() -> None:
    body = "KERNEL(int* a) {{ a[threadIdx.x + 64 * blockIdx.x {}] = 1; }}"
    execute(body.format(""), ints(128), grid=2)
    expect("cross-block", "block 0 wrote too", body.format("/ 2"), ints(128), grid=2)


def test_block_reads_what_another_writes() -> None:
    body = """KERNEL(const int* a, int* b) {{
      int i = threadIdx.x + 64 * blockIdx.x; b[i] = {}[i ^ 64]; }}"""
    execute(body.format("a"), ints(128), ints(128), grid=2)
    expect("cross-block", "in this launch", body.format("b"), ints(128), ints(128), grid=2)


def test_block_reads_what_a_later_one_writes() -> None:
    body = """KERNEL(int* a, int* b) {{ int i = threadIdx.x;
      if (blockIdx.x == 0) a[i] = opaque(b)[i + {}]; else b[i] = i; }}"""
    execute(body.format(64), ints(), ints(128), grid=2)
    expect("cross-block", "block 0", body.format(0), ints(), ints(128), grid=2)


def test_read_only_path_on_written_memory() -> None:
    body = "KERNEL(int* a) {{ int i = threadIdx.x; a[i] = i; a[i] = {}; }}"
    execute(body.format("opaque(a)[i] + 1"), ints())
    expect("race", "read-only path", body.format("__ldg(opaque(a) + i) + 1"), ints())


# --- what was never written -----------------------------------------------------------------------


def test_uninitialised_output() -> None:
    body = "KERNEL(int* a) {{ int i = threadIdx.x; {} a[i] = opaque(a)[i] + 1; }}"
    execute(body.format("opaque(a)[i] = 0;"), Output(ints()))
    expect("uninitialised", "stored value", body.format(""), Output(ints()))


def test_uninitialised_shared_memory() -> None:
    body = """KERNEL(int* a) {{ __shared__ int s[64]; int i = threadIdx.x;
      if (opaque(i) < {}) s[i] = i; __syncthreads(); a[i] = s[63 - i]; }}"""
    execute(body.format(64), ints())
    expect("uninitialised", "stored value", body.format(63), ints())


def test_uninitialised_local_array() -> None:
    body = """KERNEL(int* a) {{ volatile int mine[8]; int i = threadIdx.x;
      for (int n = 0; n < {}; n++) mine[opaque(n)] = i; a[i] = mine[opaque(7)]; }}"""
    a = np.zeros(64, np.int32)
    execute(body.format(8), a)
    assert (a == ints()).all()
    expect("uninitialised", "stored value", body.format(7), ints())


@pytest.mark.parametrize(
    ("use", "text"),
    [
        ("st.global.u32 [%rd1], %r1;", "stored value in register %r1"),
        ("cvt.u64.u32 %rd2, %r1; add.s64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], 0;", "address"),
        ("setp.eq.s32 %p1, %r1, 0; @%p1 bra END;", "predicate in register %p1"),
        ("shfl.sync.bfly.b32 %r2, %r3, 1, 31, %r1;", "member mask"),
    ],
)
def test_uninitialised_register(use: str, text: str) -> None:
    ptx = """.version 8.0\n.target sm_80\n.address_size 64
    .visible .entry kernel(.param .u64 a) {{
      .reg .pred %p<3>; .reg .b32 %r<4>; .reg .b64 %rd<4>;
      ld.param.u64 %rd1, [a]; {}
      mov.u32 %r3, 7; {}
    END: ret; }}"""
    run(ptx.format("mov.u32 %r1, -1;", use.replace("add.s64", "//")), "kernel", 1, 32, [ints()])
    with pytest.raises(Fault, match=text) as caught:
        run(ptx.format("", use), "kernel", 1, 32, [ints()])
    assert caught.value.kind == "uninitialised"


# --- order ----------------------------------------------------------------------------------------

REVERSE = """KERNEL(int* a) {{ __shared__ int s[64]; int i = threadIdx.x;
  s[i] = i; {} int x = s[63 - i]; {} s[i] = x + 1; {} a[i] = s[63 - i]; }}"""


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_barrier(missing: int, seed: int) -> None:
    barriers = ["__syncthreads();"] * 3
    a = ints()
    execute(REVERSE.format(*barriers), a, seed=seed)
    assert (a == ints() + 1).all()
    barriers[missing] = 'asm volatile("" ::: "memory");'
    expect("race", "not ordered against", REVERSE.format(*barriers), ints(), seed=seed)


def test_missing_warp_barrier() -> None:
    body = """KERNEL(int* a) {{ volatile __shared__ int s[32]; int i = threadIdx.x;
      s[i] = i; {} a[i] = s[31 - i]; }}"""
    execute(body.format("__syncwarp();"), ints(), block=32)
    expect("race", "without a bar.warp.sync", body.format(""), ints(), block=32)


COPY = """KERNEL(const int4* a, int4* b) {{ __shared__ int4 s[64]; int i = threadIdx.x;
  unsigned to = __cvta_generic_to_shared(s + i);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(a + i) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  {} {} b[i] = s[{}]; }}"""
WAIT = 'asm volatile("cp.async.wait_group 0;" ::: "memory");'


@pytest.mark.parametrize("policy", ["eager", "late", "random"])
def test_copy_that_nobody_waited_for(policy: str) -> None:
    def arrays() -> tuple[np.ndarray, np.ndarray]:
        return np.arange(256, dtype=np.int32), np.zeros(256, np.int32)

    a, b = arrays()
    execute(COPY.format(WAIT, "__syncthreads();", "63 - i"), a, b, policy=policy)
    assert (b.reshape(64, 4) == a.reshape(64, 4)[::-1]).all()
    expect("async", "nobody waited for", COPY.format("", "__syncthreads();", "i"), *arrays(),
           policy=policy)  # fmt: skip
    # The wait is each thread's own: others need a barrier behind it.
    expect("race", "not ordered", COPY.format(WAIT, "", "i & 31"), *arrays(), policy=policy)


# --- barriers -------------------------------------------------------------------------------------


def test_barrier_in_divergent_code() -> None:
    body = """KERNEL(int* a) {{ int i = threadIdx.x;
      if (opaque(i) % {} < 32) {{ a[i] = 1; asm volatile("bar.sync 1;" ::: "memory"); }}
      else {{ a[i] = 2; asm volatile("bar.sync 1;" ::: "memory"); }} }}"""
    execute(body.format(64), ints())
    expect("divergence", "lanes of a warp wait at different", body.format(48), ints())


def test_barrier_of_two_warps_orders_no_third() -> None:
    # Warps 0 and 1 exchange through barrier 1; warp 2 spins long enough to come after them.
    body = """KERNEL(int* a) {{ __shared__ int s[64]; int i = threadIdx.x;
      if (i < 64) {{
        s[i] = i; asm volatile("bar.sync 1, 64;" ::: "memory"); a[i] = s[63 - i]; {0}
      }} else {{
        {0} for (int n = 0; opaque(n) < 2000; n++) {{}}
        a[i] = s[i - 64];
      }} }}"""
    a = ints(96)
    execute(body.format('asm volatile("bar.sync 2, 96;" ::: "memory");'), a, block=96)
    assert (a[:64] == ints()[::-1]).all()
    assert (a[64:] == ints(32)).all()
    expect("race", "not ordered", body.format(""), ints(96), block=96)


HANDOVER = """KERNEL(int* a) {{ __shared__ int s[32]; int i = threadIdx.x;
  if (i < 32) {{ {} {} {} }}
  else {{ asm volatile("bar.sync 1, 64;" ::: "memory"); a[i] = s[i - 32]; }} }}"""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_arrival_releases_what_came_before_it(seed: int) -> None:
    write, arrive = "s[i] = i;", 'asm volatile("bar.arrive 1, 64;" ::: "memory");'
    a = ints()
    execute(HANDOVER.format(write, arrive, ""), a, seed=seed)
    assert (a[32:] == ints(32)).all()
    spin = "for (int n = 0; opaque(n) < 2000; n++) {}"
    twice = HANDOVER.format(write, arrive, spin + "s[i] = i + 1;")
    expect("race", "not ordered", twice, ints(), seed=seed)


def test_who_has_exited_is_not_awaited() -> None:
    body = """KERNEL(int* a) {{ __shared__ int s[64]; int i = threadIdx.x;
      if (opaque(i) / 32 == 1) return;
      s[i] = i; asm volatile("{}" ::: "memory"); a[i] = s[31 - i]; }}"""
    for seed in range(3):
        a = ints()
        execute(body.format("bar.sync 0;"), a, seed=seed)
        assert (a[:32] == ints(32)[::-1]).all()
    # With a count all of it must come.
    expect("deadlock", "barrier 0: 1 warps of 2", body.format("bar.sync 0, 64;"), ints())


def test_deadlock() -> None:
    body = """KERNEL(int* a) {{ int i = threadIdx.x;
      asm volatile("bar.sync %0, 64;" :: "r"(opaque(i) / 32 * {} + 1) : "memory"); a[i] = 1; }}"""
    execute(body.format(0), ints())
    expect("deadlock", "barrier 2: 1 warps of 2", body.format(1), ints())


def test_barrier_with_two_counts() -> None:
    body = """KERNEL(int* a) {{ int i = threadIdx.x;
      asm volatile("bar.sync 1, %0;" :: "r"(opaque(i) / 32 * {} + 64) : "memory"); a[i] = 1; }}"""
    execute(body.format(0), ints())
    expect("barrier", "different counts", body.format(32), ints())


def test_shuffle_from_a_lane_that_does_not_take_part() -> None:
    body = """KERNEL(int* a) {{ int i = threadIdx.x;
      if (opaque(i) < 16) a[i] = __shfl_xor_sync(0xffff, i, {}); }}"""
    a = ints()
    execute(body.format(8), a, block=32)
    assert (a[:16] == ints()[:16] ^ 8).all()
    expect("divergence", "does not take part", body.format(16), ints(), block=32)


def test_member_mask_that_nobody_can_meet() -> None:
    body = """KERNEL(int* a) {{ int i = threadIdx.x; if (opaque(i) >= {}) return;
      a[i] = __shfl_xor_sync(0xffffffff, i, 1); }}"""
    execute(body.format(32), ints(), block=32)
    expect("divergence", "have exited: 0x80000000", body.format(31), ints(), block=32)


def test_spinning_for_nobody() -> None:
    body = """KERNEL(volatile int* a) {{ int i = threadIdx.x;
      if (i == {}) a[0] = 1; while (a[0] == 0) {{}} }}"""
    execute(body.format(63), np.zeros(1, np.int32))
    expect("deadlock", "nobody can go on", body.format(64), np.zeros(1, np.int32))


WAIT_LOOP = """.version 8.0\n.target sm_90a\n.address_size 64
.visible .entry kernel(.param .u64 a) {{ .reg .pred P; .reg .b64 %rd<2>;
  .shared .align 8 .b64 barrier;
  mbarrier.init.shared::cta.b64 [barrier], 1;
  {}
WAIT: mbarrier.try_wait.parity.shared::cta.b64 P, [barrier], 0;
  @P bra DONE;
  bra WAIT;
DONE: ret; }}"""


@pytest.mark.parametrize("policy", ["eager", "late", "random"])
def test_waiting_for_an_arrival_that_never_comes(policy: str) -> None:
    arrive = "mbarrier.arrive.shared::cta.b64 _, [barrier];"
    run(WAIT_LOOP.format(arrive), "kernel", 1, 1, [ints()], policy=policy)
    with pytest.raises(Fault, match="pending 1 of 1, bytes 0") as caught:
        run(WAIT_LOOP.format(""), "kernel", 1, 1, [ints()], policy=policy)
    assert caught.value.kind == "deadlock"


def test_lane_spins_for_another_lane_of_its_warp() -> None:
    body = """KERNEL(volatile int* a) { int i = threadIdx.x;
      if (i == 0) { while (a[0] == 0) {} } else { a[0] = 1; } }"""
    a = np.zeros(1, np.int32)
    execute(body, a, block=2)
    assert a[0] == 1


def test_endless_loop() -> None:
    body = "KERNEL(int* a) { int i = 0; while (opaque(0) == 0) i++; a[0] = i; }"
    expect("runaway", "no end", body, ints(), max_instructions=10_000)


def test_a_lane_does_not_speak_for_its_warp() -> None:
    """Lane 0 arrives for what the whole warp wrote: right behind a bar.warp.sync, else a race."""
    body = """KERNEL(int* a) {{ __shared__ int s[32]; __shared__ unsigned long long bar;
      int i = threadIdx.x; unsigned at = __cvta_generic_to_shared(&bar);
      if (i == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(at) : "memory");
      __syncthreads();
      if (i < 32) {{ s[i] = i; {}
        if (i == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(at) : "memory");
      }} else {{
        asm volatile("{{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;"
                     "@!p bra W; }}" :: "r"(at) : "memory");
        a[i] = s[i - 32]; }} }}"""
    sync = "__syncwarp();"
    execute(body.format(sync), ints(), arch="sm_90a")
    expect(
        "race", "not ordered against the write by warp 0", body.format(""), ints(), arch="sm_90a"
    )


def test_a_store_over_a_live_mbarrier() -> None:
    body = """KERNEL(int* a) {{ __shared__ unsigned long long s[2];
      unsigned at = __cvta_generic_to_shared(s);
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(at) : "memory");
      s[opaque({})] = 1; a[0] = s[opaque({})]; }}"""
    execute(body.format(1, 1), ints(), block=1, arch="sm_90a")
    expect("barrier", "live mbarrier", body.format(0, 0), ints(), block=1, arch="sm_90a")


def test_atomics_and_plain_accesses_need_an_order() -> None:
    body = """KERNEL(int* a) {{ __shared__ int s[1]; int i = threadIdx.x;
      if (i == 0) s[0] = 5; {} atomicAdd(s, 1); __syncthreads(); a[i] = s[0]; }}"""
    a = ints()
    execute(body.format("__syncthreads();"), a)
    assert (a == 69).all()
    expect("race", "atomic of shared byte", body.format(""), ints())


def test_instructions_that_let_others_run_are_no_deadlock() -> None:
    loads = "".join(f"x += p[{i}];" for i in range(20))
    body = f"KERNEL(int* a) {{ volatile int* p = a; int x = 0; {loads} a[0] = x; }}"
    a = ints()
    execute(body, a, block=1)
    assert a[0] == sum(range(20))


# --- the rest -------------------------------------------------------------------------------------


def test_assert_and_trap() -> None:
    body = "#include <cassert>\nKERNEL(int* a) { assert(a[threadIdx.x] < 63); }"
    expect("assert", "a\\[threadIdx.x\\] < 63", body, ints())
    expect("trap", "trap", "KERNEL(int* a) { if (a[threadIdx.x] == 63) __trap(); }", ints())


def test_printf() -> None:
    body = """#include <cstdio>
    KERNEL(int* a) { if (threadIdx.x < 2)
      printf("%d %s %5.2f %llu%%\\n", a[threadIdx.x + 5], "text", 1.5f, 1ull << 40); }"""
    report = execute(body, ints())
    assert report["printed"] == b"5 text  1.50 1099511627776%\n6 text  1.50 1099511627776%\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"block": 1056}, "a block of 1056 threads"),
        ({"shared_bytes": 163 * 1024 + 1}, "sm_80 has 166912"),
    ],
)
def test_launch(options: dict[str, int], text: str) -> None:
    expect("launch", text, "KERNEL(int* a) { a[0] = 1; }", ints(), **options)


@pytest.mark.parametrize("line", ["frob.u32 %r1, %r2;", "add.frob.u32 %r1, %r2, %r2;"])
def test_unknown_instruction(line: str) -> None:
    ptx = f""".version 8.0\n.target sm_80\n.address_size 64
    .visible .entry kernel() {{ .reg .b32 %r<3>;
      {line}
      ret; }}"""
    with pytest.raises(SyntaxError, match=r"line 5: .*frob"):
        run(ptx, "kernel", 1, 32, [])
