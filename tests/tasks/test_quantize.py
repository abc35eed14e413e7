"""Stage quantize: what ships is never worse than the budget, never slower than fp32, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from contracts.settings import QuantizeSettings
from contracts.workload import Arrays, Metric
from serving.runtime import open_run
from tasks import quantize
from tasks.quantize import Calibration, recorded_calibration, verdict
from tasks.shipping.latency import interleaved
from tasks.shipping.quantizing import static_int8
from tasks.shipping.recording import Call, spread
from tasks.trained import Trained
from tests.tasks.digit_workload import NAME

EXPORTED, OUTPUT = Path("data/export") / NAME, Path("data/quantize") / NAME


def configure(**settings: Any) -> None:
    write_json(Path("params.yaml"), {NAME: {"quantize": settings}})


def ship(**settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the stage; candidates by name and the comparison. The clock refuses nobody unless a test asks for it."""
    calibration = settings.pop("calibration", None)
    configure(**settings)
    quantize.run(NAME, calibration=calibration)
    candidates = read_json(OUTPUT / "candidates.json")
    assert (
        candidates["chosen"]
        == read_json(OUTPUT / "comparison.json")["chosen"]
        == read_json(OUTPUT / "artifact.json")["recipe"]
    )
    return {row["name"]: row for row in candidates["rows"]}, read_json(OUTPUT / "comparison.json")


def noise(graph: str) -> Iterator[Arrays]:
    """A covered lens: no picture, two levels of noise."""
    rng = np.random.default_rng(0)
    return ({"pixels": rng.integers(0, 2, (1, 16, 16), dtype=np.uint8)} for _ in range(16))


def not_scaled(graph: str) -> Iterator[Arrays]:
    """Pictures as another network wants them, between 0 and 1."""
    trained = Trained.open(NAME)
    right = recorded_calibration(trained, open_run(EXPORTED), trained.records.split("train"))
    return ({"pixels": (arrays["pixels"] / 255).astype(np.uint8)} for arrays in right(graph))


@pytest.mark.parametrize("calibration", [noise, not_scaled])
def test_a_wrong_calibration_is_refused_and_fp32_ships(exported: Path, calibration: Calibration) -> None:
    rows, comparison = ship(calibration=calibration, recipes=["int8"], budget=0.01)
    assert rows["int8"]["status"] == "refused" and rows["int8"]["reason"].startswith("loses ")
    assert [row["name"] for row in comparison["rows"]] == ["torch", "fp32"] and comparison["passed"]
    assert (OUTPUT / "graphs" / "classify.onnx").read_bytes() == (EXPORTED / "graphs" / "classify.onnx").read_bytes()


def test_the_right_calibration_loses_less_than_the_budget(exported: Path) -> None:
    rows, _ = ship(recipes=["int8"], budget=0.01)
    assert rows["int8"]["loss_share"] <= 0.01
    assert rows["int8"]["bytes"] < 0.5 * (EXPORTED / "graphs" / "classify.onnx").stat().st_size


def test_what_is_too_slow_does_not_ship(exported: Path) -> None:
    rows, comparison = ship(recipes=["int8"], min_speedup=1000)
    assert comparison["chosen"] == "fp32"
    assert "at least 1000 is wanted" in rows["int8"]["reason"] and "times as fast as fp32" in rows["int8"]["reason"]


def test_what_the_target_cannot_use_is_skipped_with_the_reason(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, comparison = ship(recipes=["fp16", "int4"])
    assert {row["status"] for row in rows.values()} == {"skipped"} and comparison["chosen"] == "fp32"
    assert "language decoders" in rows["int4"]["reason"] and "fp16" in rows["fp16"]["reason"]
    assert "int4: skipped: int4 is for the weights of language decoders" in capsys.readouterr().out


def test_the_wider_head_is_followed_by_the_first_layer_only_where_it_is_not_enough(exported: Path) -> None:
    rows, _ = ship(recipes=["int8_wide_head"], calibration=noise, budget=0.0)
    assert list(rows) == ["int8_wide_head", "int8_wide_head_and_first"] or rows["int8_wide_head"]["loss_share"] <= 0
    rows, _ = ship(recipes=["int8_wide_head", "int8_dynamic"], budget=0.5)
    assert list(rows) == ["int8_wide_head", "int8_dynamic"]


@pytest.mark.parametrize(
    ("value", "speedup", "status", "words"),
    [
        (0.90, 1.5, "inside", "1.50 times as fast"),
        (0.892, 1.06, "inside", "0.8920"),
        (0.88, 9.0, "refused", "loses 2.2% of accuracy, the budget is 1.0%"),
        (0.90, 1.04, "refused", "at least 1.05 is wanted"),
        (0.95, 0.5, "refused", "0.50 times as fast"),
        (float("nan"), 2.0, "refused", "loses nan"),
    ],
)
def test_the_gate(value: float, speedup: float, status: str, words: str) -> None:
    found = verdict(Metric("accuracy"), QuantizeSettings(), value, 0.9, speedup)
    assert found[0] == status and words in found[1]


def test_a_lower_metric_may_be_the_better_one() -> None:
    error = Metric("error", higher_is_better=False)
    assert verdict(error, QuantizeSettings(), 0.099, 0.1, 2)[0] == "inside"
    assert verdict(error, QuantizeSettings(), 0.102, 0.1, 2)[0] == "refused"


def test_a_model_that_has_learnt_nothing_ships_as_fp32_and_does_not_pass(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trained, "metrics", lambda *arguments: {"accuracy": 0.0})
    rows, comparison = ship(recipes=["int8", "int8_dynamic"])
    assert comparison["chosen"] == "fp32" and comparison["passed"] is False
    assert comparison["reason"] == "fp32 on val: its accuracy is 0, so it has learnt nothing"
    assert {row["status"] for row in rows.values()} == {"skipped"} and "learnt nothing" in rows["int8"]["reason"]
    assert "will not be published: fp32 on val" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("higher", "value", "words"),
    [
        (True, 0.0, "learnt nothing"),
        (True, float("nan"), "is nan"),
        (False, float("inf"), "is inf"),
        (False, 0.0, None),
        (True, 0.5, None),
    ],
)
def test_a_metric_without_a_share_to_lose_passes_no_gate(higher: bool, value: float, words: str | None) -> None:
    metric = Metric("score", higher_is_better=higher)
    rows = [{"name": name, "metric": value} for name in ("torch", "fp32", "int8")]
    for reference in (value, 0.5):
        found = quantize.objection(metric, 0.01, reference, rows)
        assert found is None if words is None else found and words in found and "score" in found
    status, reason = verdict(metric, QuantizeSettings(), value, value, 2.0)
    assert status == ("refused" if words else "inside") and (words or "2.00 times") in reason


def test_what_loses_more_than_the_budget_on_test_does_not_pass() -> None:
    rows = [{"name": "torch", "metric": 0.5}, {"name": "fp32", "metric": 0.4}]
    assert quantize.objection(Metric("accuracy"), 0.01, 0.5, rows) == (
        "fp32 loses 20.0% of torch's accuracy on test, the budget is 1.0%"
    )


def candidate(name: str, speedup: float) -> quantize.Candidate:
    return quantize.Candidate(name, "inside", f"{speedup} times as fast", 0.9, 0.0, 1 / speedup, 1.0, speedup, 10)


def test_the_fastest_that_is_good_enough_wins() -> None:
    slow, fast = candidate("int8_wide_head", 1.2), candidate("int8", 1.4)
    assert quantize.best([slow, fast]) is fast and quantize.best([]) is None


@pytest.mark.parametrize(
    ("metric", "latency", "ships"),
    [(0.899, 0.7, True), (0.80, 0.7, False), (0.9, 1.3, False)],
)
def test_the_test_split_has_the_last_word(exported: Path, metric: float, latency: float, ships: bool) -> None:
    trained, winner = Trained.open(NAME), candidate("int8", 1.4)
    bench = quantize.Bench(trained, EXPORTED, trained.records, 0.9, [], noise)
    rows = [{"name": "fp32", "metric": 0.9, "latency_ms": 1.0}, {"name": "int8", "metric": metric, "latency_ms": latency}]
    candidates, chosen = quantize.last_word(bench, [winner], winner, rows)
    assert (chosen is not None) == ships and candidates[0].status == ("chosen" if ships else "refused")
    assert ships or candidates[0].reason.startswith("on test: ")


def test_a_chosen_candidate_is_what_ships(exported: Path) -> None:
    trained = Trained.open(NAME)
    fp32 = open_run(EXPORTED)
    home = Path("candidate")
    bench = quantize.make_bench(trained, EXPORTED, fp32, None)
    build = quantize.variants("int8", bench)[0][1]
    quantize.scored("int8", build, bench, home)
    quantize.ship(Path("shipped"), home / "int8")
    assert open_run(Path("shipped")).artifact.recipe == "int8"
    assert open_run(Path("shipped"))("classify", pixels=np.zeros((2, 16, 16), np.uint8))["scores"].shape == (2, 10)


def test_calibration_sees_what_measuring_feeds_to_the_graph(exported: Path) -> None:
    configure(num_calibration=5)
    trained = Trained.open(NAME)
    train = trained.records.split("train")
    samples = list(recorded_calibration(trained, open_run(EXPORTED), train)("classify"))
    assert len(samples) == 5 and all(sample["pixels"].shape == (1, 16, 16) for sample in samples)
    from tests.tasks.digit_workload import enlarged

    assert np.array_equal(samples[0]["pixels"][0], enlarged(spread(train, 5)[0]))


def test_what_is_quantized_dynamically_finds_the_same_alone_and_among_others(exported: Path) -> None:
    trained, fp32 = Trained.open(NAME), open_run(EXPORTED)
    bench = quantize.make_bench(trained, EXPORTED, fp32, None)
    quantize.scored("int8_dynamic", quantize.variants("int8_dynamic", bench)[0][1], bench, Path())
    run = open_run(Path("int8_dynamic"))
    pixels = np.random.default_rng(0).integers(0, 17, (5, 16, 16)).astype(np.uint8)
    pixels[0] //= 8  # a pale one among bright ones
    alone = [run("classify", pixels=pixels[row : row + 1])["scores"] for row in range(5)]
    assert np.array_equal(run("classify", pixels=pixels)["scores"], np.concatenate(alone))
    [at_once] = run.session("classify").run(["scores"], {"pixels": pixels})
    assert np.abs(np.asarray(at_once)[0] - alone[0][0]).max() > 1e-4, "ONNX Runtime scales over the batch"
    assert run("classify", pixels=pixels[:0])["scores"].shape == (0, 10)


def test_the_same_calibration_gives_the_same_bytes(exported: Path) -> None:
    source = EXPORTED / "graphs" / "classify.onnx"
    for name in ("one.onnx", "two.onnx"):
        static_int8(source, Path(name), noise("classify"))
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


def test_a_recipe_that_fails_on_a_graph_is_refused_and_the_others_go_on(exported: Path) -> None:
    def broken(graph: str) -> Iterator[Arrays]:
        return iter([{"pixels": np.zeros((1, 16), np.uint8)}])

    rows, comparison = ship(recipes=["int8", "int8_dynamic"], calibration=broken, budget=0.5)
    assert rows["int8"]["status"] == "refused" and rows["int8"]["reason"].startswith("could not be built: ")
    assert rows["int8_dynamic"]["metric"] is not None and comparison["chosen"] in ("fp32", "int8_dynamic")


def test_an_export_that_did_not_pass_is_not_quantized(exported: Path) -> None:
    write_json(EXPORTED / "parity.json", {"passed": False})
    with pytest.raises(SlipwayError, match=r"no export that passed its parity check: run python -m tasks\.export"):
        quantize.run(NAME)


def test_contestants_take_turns_on_the_same_records() -> None:
    turns: list[tuple[str, str]] = []

    def contestant(name: str) -> Any:
        return lambda graph, **arrays: turns.append((name, str(arrays["key"])))

    laps = [[Call("", "graph", {"key": np.array(key)}, {})] for key in "ab"]
    times = interleaved({"fp32": contestant("fp32"), "int8": contestant("int8")}, laps, seconds=0)
    assert set(times) == {"fp32", "int8"}
    rounds = turns[4:]
    assert rounds[:4] == [("fp32", "a"), ("int8", "a"), ("int8", "b"), ("fp32", "b")]
