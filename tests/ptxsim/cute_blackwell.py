"""What CuTe 4.x prints of Blackwell's matrix instructions: layouts and descriptors.

As in `cute`: printed on a host, by `MMA_Traits`, `UMMA::make_instr_desc`,
`UMMA::make_instr_desc_block_scaled`, `UMMA::make_umma_desc` and `UMMA::tmem_sf_frg`.
"""

from __future__ import annotations

# (lane, value) -> row + rows * k of A, column + columns * k of B, row + rows * column of C; then
# (lane, k) -> row + rows * k of the scale factors of A, column + columns * k of those of B.
BLOCK_SCALED = {
    "m16n8k64": (
        "((4,8),(8,2,2)):((128,1),(16,8,512))",
        "((4,8),(8,2)):((64,1),(8,256))",
        "((4,8),(2,2)):((32,1),(16,8))",
        "((2,2,8),64):((8,0,1),16)",
        "((4,8),64):((0,1),8)",
    ),
    "m16n8k32": (
        "((4,8),(4,2,2)):((64,1),(16,8,256))",
        "((4,8),(4,2)):((32,1),(8,128))",
        "((4,8),(2,2)):((32,1),(16,8))",
        "((2,2,8),32):((8,0,1),16)",
        "((4,8),32):((0,1),8)",
    ),
}
# Instruction descriptors of tcgen05.mma, all of 128 rows: what A, B, D and N are, and what else.
INSTRUCTION = {
    "f16 f16 f32 128": 0x08200010,
    "bf16 bf16 f32 64, B along N": 0x08110490,
    "bf16 bf16 f32 256, A along M": 0x08408490,
    "f16 f16 f16 8": 0x08020000,
    "bf16 bf16 f32 32, -A": 0x08082490,
    "bf16 bf16 f32 32, -B": 0x08084490,
    "e4m3 e5m2 f32 96": 0x08180410,
    "e2m1 e2m1 ue4m3 128": 0x08200480,
    "e2m1 e2m1 ue4m3 64": 0x08100480,
    "e2m1 e2m1 ue8m0 128, ids 2 2": 0x48A004A0,
    "e4m3 e5m2 ue8m0 128, ids 1 3": 0x28A00430,
}
# (major, bytes of the swizzle) -> (x, k) -> 16-bit element of tiles of 128 x k, before the swizzle,
# and the shared memory descriptor of a tile at address 0.
TILES = {
    ("K", 128): ("(128,64):(64,1)", 0x4000404000010000),
    ("K", 64): ("(128,32):(32,1)", 0x8000402000010000),
    ("K", 32): ("(128,16):(16,1)", 0xC000401000010000),
    ("K", None): ("((8,16),(8,2)):((8,64),(1,1024))", 0x0000400800800000),
    ("MN", 128): ("((64,2),(8,2)):((1,512),(64,1024))", 0x4000408000400000),
    ("MN", 64): ("((32,4),(8,2)):((1,256),(32,1024))", 0x8000408000200000),
    ("MN", 32): ("((16,8),(8,2)):((1,128),(16,1024))", 0xC000408000100000),
    ("MN", None): ("((8,16),(8,2)):((1,64),(8,1024))", 0x0000400800800000),
}
# The same for elements of eight bits, and for e2m1.
FP8_TILES = {
    ("K", 128): ("(128,128):(128,1)", 0x4000404000010000),
    ("MN", 128): ("((128,1),(8,4)):((1,0),(128,1024))", 0x4000404000000000),
    ("MN", None): ("((16,8),(8,4)):((1,128),(16,1024))", 0x0000400800400000),
}
FP4_TILES = {
    ("K", 128): ("(128,256):(256,1)", 0x4000404000010000),
    ("K", 64): ("(128,128):(128,1)", 0x8000402000010000),
    ("K", 32): ("(128,64):(64,1)", 0xC000401000010000),
}
# (row, k) -> byte of the atom of scale factors in global and shared memory, 128 rows of four.
SCALE_ATOM = {
    16: "((32,4),(16,4)):((16,4),(0,1))",
    32: "((32,4),(32,4)):((16,4),(0,1))",
}
# ((row, copy), k) -> byte of tensor memory, 2^18 to a lane, of the factors of one instruction.
SCALE_TENSOR = {
    (16, 128): "(((32,4),4),(16,4)):(((262144,4),8388608),(0,1))",
    (16, 256): "(((32,8),4),(16,4)):(((262144,4),8388608),(0,1))",
    (32, 128): "(((32,4),4),(32,1)):(((262144,4),8388608),(0,1))",
}
