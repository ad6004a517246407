"""A change is flagged only past both thresholds."""

import copy
import json

import pytest

from vidk.bench.compare import compare, load


def scaled(document, factor, op="rope_3d"):
    changed = copy.deepcopy(document)
    for case in changed["cases"]:
        if case["op"] == op:
            case["seconds"]["op"]["median"] *= factor
    return changed


def timed(document, seconds):
    """The document with `rope_3d` at a round time."""
    changed = copy.deepcopy(document)
    for case in changed["cases"]:
        if case["op"] == "rope_3d":
            case["seconds"]["op"]["median"] = seconds
    return changed


@pytest.mark.parametrize(
    ("factor", "percent", "absolute_s", "slower"),
    [
        (1.5, 10, 1e-3, True),  # both passed
        (1.5, 60, 1e-3, False),  # percent not
        (1.5, 10, 1.0, False),  # absolute not
        (1.05, 10, 1e-3, False),
        (0.5, 10, 1e-3, False),  # faster
    ],
)
def test_thresholds(tiny_document, factor, percent, absolute_s, slower):
    before = timed(tiny_document, 0.1)
    text, regressed = compare(before, scaled(before, factor), percent, absolute_s)
    assert regressed is slower
    assert ("SLOWER" in text) is slower
    assert ("faster" in text) is (factor < 1)


def test_same_file_is_no_change(tiny_document):
    text, regressed = compare(tiny_document, tiny_document, 0, 0)
    assert not regressed and "note:" not in text
    assert "+0.0%" in text and "end to end" in text


def test_slower_model_is_flagged(tiny_document):
    after = copy.deepcopy(tiny_document)
    after["end_to_end"]["seconds"]["vidk_compiled"]["median"] *= 2
    assert compare(tiny_document, after, 10, 1e-9)[1]


def test_lost_kernel_is_a_regression_and_a_lost_case_is_named(tiny_document):
    gone = copy.deepcopy(tiny_document)
    gone["cases"][0] |= {"status": "no kernel", "reason": "none"}
    text, regressed = compare(tiny_document, gone, 10, 1e-3)
    assert regressed and "KERNEL GONE" in text
    text, regressed = compare(gone, tiny_document, 10, 1e-3)
    assert not regressed
    fewer = copy.deepcopy(tiny_document)
    del fewer["cases"][0]
    text, regressed = compare(tiny_document, fewer, 10, 1e-3)
    assert not regressed and "not in the second run" in text
    assert "new" in compare(fewer, tiny_document, 10, 1e-3)[0]


def test_other_machine_is_noted(tiny_document):
    other = copy.deepcopy(tiny_document)
    other["environment"]["cpu"] = "another"
    assert "note: cpu differs" in compare(tiny_document, other, 10, 1e-3)[0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 99, "cases": []}', "\x80"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"other\.json") as error:
        load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "absent.json")


def test_written_file_is_read(tiny_document, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(tiny_document))
    assert load(path)["cases"]
