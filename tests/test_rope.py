"""Frequency tables, and the time table that never ends."""

from __future__ import annotations

import pytest
import torch

from vidk.rope import RopeTable, band_pairs, freq_table


@pytest.mark.parametrize(
    ("head_dim", "bands"),
    [(128, (22, 21)), (96, (16, 16)), (64, (12, 10)), (32, (6, 5)), (2, (1, 0))],
)
def test_bands(head_dim: int, bands: tuple[int, int]) -> None:
    assert band_pairs(head_dim) == bands
    assert 2 * (bands[0] + 2 * bands[1]) == head_dim


def test_positions_below_the_ring_are_their_own_rows() -> None:
    table = RopeTable(128, 3, 5)
    before = table.time.clone()
    assert table.rows_of([0, 5, 1023]) == [0, 5, 1023]
    assert torch.equal(table.time, before)


def test_the_ring_goes_on_past_its_rows() -> None:
    table = RopeTable(32, 3, 5, rows=8)
    address = table.time.data_ptr()
    for start in (0, 6, 1021, 100_000, 3):
        positions = list(range(start, start + 3))
        rows = table.rows_of(positions)
        expected = freq_table(torch.tensor(positions), table.time_pairs)
        assert torch.equal(table.time[rows], expected)
    assert table.time.data_ptr() == address


def test_fractional_positions() -> None:
    table = RopeTable(64, 3, 5)
    positions = [2.25, 2.5, 2.75, 3.0]
    rows = table.rows_of(positions)
    assert len(set(rows)) == 4
    expected = freq_table(torch.tensor(positions, dtype=torch.float64), table.time_pairs)
    assert torch.equal(table.time[rows], expected)
    assert torch.equal(table.time[table.rows_of([2])[0]], freq_table(torch.tensor([2]), 12)[0])


def test_dtype_casts_leave_the_tables_alone() -> None:
    table = RopeTable(64, 3, 5)
    before = table.time.clone()
    table.to(torch.bfloat16).half()
    assert table.time.dtype == table.space.dtype == torch.float32
    assert torch.equal(table.time, before)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"head_dim: got 33, expected an even number"):
        RopeTable(33, 3, 5)
    with pytest.raises(ValueError, match=r"got 9 frames, expected at most the 8 rows"):
        RopeTable(32, 3, 5, rows=8).rows_of(range(9))
