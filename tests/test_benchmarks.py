"""The benchmarks' parts: fits, files that can be resumed, naive masks, and one cell from end to end.

Whether something is fast is decided nowhere here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import scaling, speed
from benchmarks.bpr_model import BPR
from benchmarks.bpr_step import Batches, Variant, is_full, judge, packed, time_steps, time_update
from benchmarks.fits import affine_fit, power_fit
from benchmarks.journal import Journal, Run, key_of
from benchmarks.masking import NaiveMasks
from benchmarks.stopwatch import TimedLoader, peak_of_process, settle_memory

CPU = torch.device("cpu")


def test_power_laws_are_found() -> None:
    """Exactly, over the decades there are; one size has no exponent."""
    sizes = [10.0, 100.0, 1000.0, 10_000.0]
    fit = power_fit(sizes, [3 * s**0.5 for s in sizes])
    assert fit is not None and fit.points == 4
    assert (fit.exponent, fit.decades, fit.r2) == pytest.approx((0.5, 3.0, 1.0))
    assert power_fit([5.0, 5.0], [1.0, 2.0]) is None


@pytest.mark.parametrize(
    "slope, fixed", [(2.0, 30.0), (2.0, 0.0), (0.0, 30.0)], ids=["both", "all grows", "nothing grows"]
)
def test_fixed_and_growing_parts_are_told_apart(slope: float, fixed: float) -> None:
    """And neither is ever negative."""
    sizes = [1.0, 10.0, 100.0]
    fit = affine_fit(sizes, [slope * s + fixed for s in sizes])
    assert (fit.slope, fit.fixed) == pytest.approx((slope, fixed), abs=1e-9)
    assert fit.grows(10.0) == pytest.approx(slope * 10 / (slope * 10 + fixed))
    bent = affine_fit([1.0, 10.0, 100.0], [1.0, 20.0, 400.0])
    assert bent.fixed == 0 and bent.slope > 0


def line(cell: dict, turn: int, **more: object) -> dict:
    """A journal's line."""
    return {"cell": cell, "round": turn, "commit": "abc", "device": "cpu", **more}


def test_an_unfinished_line_is_replaced(tmp_path: Path) -> None:
    """A run that was killed while writing costs its own line only."""
    journal = Journal(tmp_path / "results.jsonl")
    assert journal.lines() == [] and journal.keys() == set()
    journal.append(line({"a": 1}, 0))
    with journal.path.open("a") as file:
        file.write('{"cell": {"a"')
    assert journal.lines() == [line({"a": 1}, 0)]
    journal.append(line({"a": 2}, 0))
    assert [told["cell"]["a"] for told in journal.lines()] == [1, 2]
    assert journal.keys() == {key_of({"a": n}, 0, "abc", "cpu") for n in (1, 2)}


def test_what_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds come back to all groups, and a cell that fails is told and tried again the next time."""
    journal = Journal(tmp_path / "results.jsonl")
    journal.append(line({"a": 1}, 0))
    asked: list[tuple[int, int]] = []

    def measured(_: Run, cells: list[dict], turn: int) -> list[dict]:
        asked.extend((cell["a"], turn) for cell in cells)
        return [{"cell": cell, "result": {}} for cell in cells if cell["a"] != 3]

    monkeypatch.setattr(Run, "measure", measured)
    run = Run(Path("script.py"), [], 1, "abc", "cpu")
    groups = [[{"a": 1}, {"a": 2}], [{"a": 3}]]
    assert run.in_turn(groups, 2, journal) == [{"a": 3}, {"a": 3}]
    assert asked == [(2, 0), (3, 0), (1, 1), (2, 1), (3, 1)]
    asked.clear()
    run.in_turn(groups, 2, journal)
    assert asked == [(3, 0), (3, 1)]


def test_naive_masks_keep_dead_weights_at_zero() -> None:
    """Through steps of Adam, for all of them, and live weights move."""
    torch.manual_seed(0)
    model = nn.Embedding(50, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    masks = NaiveMasks([model.weight], 0.3)
    masks.attach(optimizer)
    dead, before = masks.masks[0] == 0, model.weight.detach().clone()
    assert 0 < int(dead.sum()) < dead.numel() and masks.bytes == 4 * 50 * 8
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(50)).square().sum().backward()
        optimizer.step()
        assert not model.weight.detach()[dead].any()
        assert not optimizer.state[model.weight]["exp_avg"][dead].any()
    assert (model.weight.detach() != before)[~dead].all()


def test_a_timed_loader_hands_on_every_batch() -> None:
    """And knows whether it came to the end."""
    whole = TimedLoader([1, 2, 3], CPU)
    assert list(whole) == [1, 2, 3] and whole.whole and len(whole.each) == 3 and len(whole) == 3
    part = TimedLoader([1, 2, 3], CPU, steps=2)
    assert list(part) == [1, 2] and not part.whole
    late = TimedLoader([1, 2, 3, 4], CPU, seconds=0.0, least=3)
    assert list(late) == [1, 2, 3]


def test_memory_of_the_process_is_known() -> None:
    """A peak is no less than what is resident."""
    resident = settle_memory()
    assert peak_of_process() >= (resident or 1)


def test_a_cycle_of_the_bpr_step_is_made_of_its_parts() -> None:
    """900 steps outside the window, 100 inside, and one update."""
    variant = packed(200, 8, CPU, 0.2)
    batches = Batches(200, 16, CPU)
    time_steps(variant, "outside", batches, 2)
    time_steps(variant, "inside", batches, 2)
    time_update(variant, batches, window=3)
    assert variant.handle is not None and variant.handle.explorer.updates == 1
    assert {name: len(times) for name, times in variant.seconds.items()} == {
        "outside": 2,
        "inside": 2,
        "update": 1,
    }
    variant.seconds = {"outside": [1.0], "inside": [3.0], "update": [500.0]}
    assert variant.mean_of_cycle == pytest.approx((900 * 1 + 100 * 3 + 500) / 1000)
    assert is_full(variant, batches)


def test_the_criterion_is_judged_line_by_line() -> None:
    """At least, at most."""
    seconds = {"RecBole dense": 1.0, "dense, fused Adam": 0.09, "packed 0.1": 0.01, "limit 0.1": 0.004}
    ready = {name: Variant(lambda: None, seconds={"outside": [s]}) for name, s in seconds.items()}
    held = {"RecBole dense": {"a": 1000}, "packed 0.1": {"a": 100, "b": 10}}
    lines = judge(ready, held)
    assert [told["measured"] for told in lines] == pytest.approx([100, 9, 2.5, 0.11])
    assert [told["met"] for told in lines] == [True, False, True, True]


def test_the_grids_hold_what_the_page_promises() -> None:
    """Every model with every variant once; three decades of live weights and more in the scaling."""
    groups = speed.grid([], list(speed.VARIANTS), alone=False)
    cells = [json.dumps(cell) for group in groups for cell in group]
    assert len(cells) == len(set(cells)) == 12 * 7 and len(groups) == 24
    assert all(len(group) == 1 for group in speed.grid([], list(speed.VARIANTS), alone=True))
    assert len(speed.grid(["BPR/*"], ["recbole"], alone=False)) == 2
    assert speed.grid(["BPR/ml-100k"], ["recbole"], alone=False)[0][0]["dataset"] == "ml-100k"
    live = [2 * c["rows"] * c["columns"] * c["density"] for c in scaling.grid() if c["variant"] == "packed"]
    assert max(live) / min(live) >= 1000
    assert all(any(belongs(cell) for cell in scaling.grid()) for belongs in scaling.SERIES.values())


def test_the_middle_of_rounds() -> None:
    """Number by number."""
    rounds = [{"live": 4, "s": {"a": x}, "name": "n", "none": None} for x in (1.0, 9.0, 2.0)]
    assert scaling.middle(rounds) == {"live": 4, "s": {"a": 2.0}, "name": "n", "none": None}


def test_a_point_of_the_scaling_is_measured() -> None:
    """Packed with its update, dense beside it."""
    cell = {"variant": "packed", "rows": 300, "columns": 8, "density": 0.25}
    told = scaling.measure(cell, CPU, 0.0)
    assert told["live"] == 1200 and 500 < told["update"]["dropped"] <= 600
    assert set(told["step_s"]) == {"2048", "64"}
    beside = scaling.measure({**cell, "variant": "RecBole dense", "density": 1.0}, CPU, 0.0)
    assert beside["live"] == sum(p.numel() for p in BPR(300, 300, 8).parameters()) and "update" not in beside


@pytest.mark.parametrize("variant", ["dense", "packed", "packed 2", "packed x"])
def test_unknown_variants_are_refused(
    variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything runs."""
    monkeypatch.setattr(sys, "argv", ["speed.py", "--variants", f"recbole,{variant}"])
    with pytest.raises(SystemExit):
        speed.main()
    assert variant in capsys.readouterr().err


@pytest.mark.parametrize(
    "variants, updates, share",
    [
        pytest.param("packed 0.2,packed 0.1", True, 0.115, id="ours"),
        pytest.param("recbole,naive", False, 1.25, id="recbole", marks=pytest.mark.slow),
    ],
)
def test_cells_from_end_to_end(
    variants: str,
    updates: bool,
    share: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """BPR on ml-100k: a line for each variant, with times, bytes and updates; then nothing is left to do.

    ``share``: bytes of the last variant's training state / RecBole's (2,690,056).
    """
    out = tmp_path / "speed.jsonl"
    flags = ["--only", "BPR/ml-100k", "--quick", "--out", str(out), "--rounds", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags, "--variants", variants])
    assert speed.main() == 0 and "round 0: BPR ml-100k" in capsys.readouterr().out
    lines = {told["cell"]["variant"]: told["result"] for told in Journal(out).lines()}
    assert ",".join(lines) == variants
    for result in lines.values():
        assert result["step_s"] > 0 and result["steps_timed"] == 5 and not result["epoch_measured"]
        assert result["epoch_s"] == pytest.approx(result["step_with_updates_s"] * result["steps_per_epoch"])
        assert (result["updates"] is not None and result["updates"]["update_s"] > 0) == updates
    assert result["held_bytes"] == pytest.approx(share * 2_690_056, rel=0.05)
    assert speed.main() == 0 and not capsys.readouterr().out
