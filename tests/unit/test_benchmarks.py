"""The harness must tell noise from signal, and a miss from a hit; the figures are its own affair."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import cpu
from benchmarks.__main__ import MEASUREMENTS
from benchmarks.cpu import Load
from benchmarks.figures import Figure, Report, line
from benchmarks.rounds import Lap, Patience, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_BURN = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"


def took(wall_s: float, others: Iterator[float], lap: Lap) -> None:
    lap.load = Load(wall_s, cpu_s=wall_s, others_cores=next(others))


def always(cores: float) -> Iterator[float]:
    while True:
        yield cores


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_the_time_of_a_child_that_ended_is_ours() -> None:
    meter = cpu.Meter()
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    assert meter.stop().cpu_s >= 0.45


def test_the_time_of_a_process_outside_our_tree_is_not_ours(tmp_path: Path) -> None:
    done = tmp_path / "done"
    burn = f"{_BURN}\nopen({str(done)!r}, 'w').close()"
    meter = cpu.Meter()
    # Its parent ends at once: the kernel gives it to init, and nobody of ours ever waits for it.
    subprocess.run(["/bin/sh", "-c", '"$0" -c "$1" & exit 0', sys.executable, burn], check=True)
    wait_for(done.exists)
    load = meter.stop()
    assert load.cpu_s < 0.3
    assert load.others_cores * load.wall_s >= 0.4


def test_noisy_rounds_are_repeated_and_do_not_count() -> None:
    noise = iter([0.0, 0.9, 0.0, 0.9, 0.0])
    rounds = Plan(wanted=3).run({"ours": partial(took, 1.0, noise)})
    assert (len(rounds.laps), rounds.discarded, rounds.dirty) == (3, 2, 0)
    assert [lap["ours"].others_cores for lap in rounds.laps] == [0.0, 0.0, 0.0]


def test_a_round_is_noisy_when_any_of_its_sides_was_disturbed() -> None:
    sides = {"ours": partial(took, 1.0, always(0.0)), "limit": partial(took, 1.0, always(0.5))}
    rounds = Plan(wanted=2).run(sides)
    assert rounds.dirty == 2


def test_too_few_clean_rounds_are_filled_up_with_the_least_noisy_and_it_is_said() -> None:
    noise = iter([0.9, 0.0, 0.5, 0.8, 0.7, 0.6])
    rounds = Plan(wanted=2).run({"ours": partial(took, 1.0, noise)})
    assert [lap["ours"].others_cores for lap in rounds.laps] == [0.0, 0.5]
    assert "ONLY 1 OF 2 ROUNDS" in rounds.remark


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds() -> None:
    seconds = {"limit": iter([1.0, 2.0, 1.0]), "ours": iter([2.0, 3.0, 1.0])}

    def side(name: str, lap: Lap) -> None:
        took(next(seconds[name]), always(0.0), lap)

    rounds = Plan(wanted=3).run({name: partial(side, name) for name in seconds})
    assert rounds.ratio("limit", "ours") == 2.0 / 3.0


def test_every_side_begins_a_round_in_turn() -> None:
    begun: list[str] = []

    def side(name: str, lap: Lap) -> None:
        begun.append(name)
        took(1.0, always(0.0), lap)

    Plan(wanted=2).run({"a": partial(side, "a"), "b": partial(side, "b")})
    assert begun == ["a", "b", "b", "a"]


def test_a_figure_is_held_to_its_goal_and_one_without_a_goal_is_never_in_the_way() -> None:
    verdicts = {
        Figure("fast", 0.5, "x", at_least=0.45).ok,
        Figure("small", 3, "files", at_most=3).ok,
        Figure("just so", 3, "ms").ok,
    }
    assert verdicts == {True}
    assert not Figure("slow", 0.4, "x", at_least=0.45).ok
    assert not Figure("large", 4, "files", at_most=3).ok
    assert not Figure("broken", None, "x", at_least=0.45).ok
    assert line(Figure("slow", 0.4, "x", at_least=0.45)).startswith("MISS slow")


def test_latest_json_is_a_list_of_five_fields(tmp_path: Path) -> None:
    report = Report()
    report.add(Figure("fast", 0.5, "x", at_least=0.45, remark="for people"))
    report.write(tmp_path / "latest.json")
    written: list[dict[str, Any]] = json.loads((tmp_path / "latest.json").read_text())
    assert written == [{"name": "fast", "value": 0.5, "unit": "x", "goal": ">= 0.45", "ok": True}]


def test_an_unknown_measurement_names_the_ones_there_are() -> None:
    command = [sys.executable, "-m", "benchmarks", "end_to_end", "nothing"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert all(name in run.stderr for name in MEASUREMENTS)


def test_repetitions_end_when_patience_does_and_the_wanted_rounds_are_always_run() -> None:
    plan = Plan(wanted=3, patience=Patience(left_s=0.0))
    rounds = plan.run({"ours": partial(took, 1.0, always(0.9))})
    assert (len(rounds.laps), rounds.discarded, rounds.dirty) == (3, 0, 3)
