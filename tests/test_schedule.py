"""A stream at its source's rate, on a clock that is moved by hand."""

import numpy as np
import pytest

from whycam.runtime.live.schedule import Schedule


class Machine:
    """Processes frames: ``base`` seconds a frame, ``one`` an evaluation, times its load."""

    def __init__(self, base: float, one: float, live: bool = False) -> None:
        self.now = 100.0
        self.base, self.one, self.load = base, one, 1.0
        self.schedule = Schedule(live, lambda: self.now)
        self.evaluations: list[int] = []
        self.done: list[float] = []

    def explain(self, seconds: float, arrived: float, interval: float) -> None:
        self.now += self.load * self.base
        limit = self.schedule.limit(seconds, arrived)
        assert 0 <= limit.average <= limit.most
        spent = 0
        cost = self.load * self.one
        while spent < 10 and (spent + 1) * cost <= limit.most and spent * cost < limit.average:
            self.now += cost
            spent += 1
        self.evaluations.append(spent)
        self.done.append(self.now)
        self.schedule.finish(seconds, interval)

    def play_file(self, frames: int, fps: float) -> None:
        first = len(self.done)
        for index in range(first, first + frames):
            self.explain(index / fps, self.now, 1 / fps if index else 0.0)

    def play_camera(self, frames: int, fps: float) -> list[float]:
        """Explain the newest frame whenever free; return the latencies."""
        latencies = []
        start, last = self.now, 0
        while len(latencies) < frames:
            self.now = max(self.now, start + (last + 1) / fps)
            newest = int((self.now - start) * fps + 1e-9)
            arrived = start + newest / fps
            self.explain(newest / fps, arrived, 1 / fps)
            latencies.append(self.now - arrived)
            self.dropped = newest - len(latencies)
            last = newest
        return latencies


def test_a_file_on_a_fast_machine_has_every_threshold_at_every_frame():
    machine = Machine(base=0.005, one=0.002)
    machine.play_file(100, fps=25)
    assert set(machine.evaluations[20:]) == {10}
    assert machine.done[-1] - 100.0 <= 99 / 25


def test_a_file_on_a_slow_machine_has_none_and_loses_no_time():
    machine = Machine(base=0.060, one=0.020)
    machine.play_file(100, fps=25)
    assert set(machine.evaluations) == {0}
    assert machine.done[-1] - 100.0 == pytest.approx(100 * 0.060)


@pytest.mark.parametrize(("base", "one"), [(0.020, 0.004), (0.030, 0.009), (0.010, 0.007)])
def test_a_file_in_between_has_what_the_rate_leaves(base, one):
    machine = Machine(base, one)
    machine.play_file(300, fps=25)
    assert np.mean(machine.evaluations[50:]) == pytest.approx((0.040 - base) / one, rel=0.05)
    late = np.array(machine.done) - 100.0 - np.arange(300) / 25
    assert late[5:].max() <= 0


def test_what_an_expensive_start_costs_is_made_up_for():
    machine = Machine(base=0.020, one=0.005)
    machine.now += 0.5  # opening the engine
    machine.play_file(100, fps=25)
    assert machine.done[-1] - 100.0 <= 99 / 25
    assert machine.evaluations[0] == 0
    assert np.mean(machine.evaluations[60:]) == pytest.approx(4, rel=0.1)


def test_load_that_comes_and_goes_takes_thresholds_and_gives_them_back():
    machine = Machine(base=0.016, one=0.004)
    machine.play_file(100, fps=25)
    machine.load = 2.0
    machine.play_file(100, fps=25)
    machine.load = 1.0
    machine.play_file(100, fps=25)
    before, during, after = (
        np.mean(machine.evaluations[begin : begin + 70]) for begin in (30, 130, 230)
    )
    assert (before, during, after) == pytest.approx((6, 1, 6), abs=0.3)
    assert machine.done[-1] - 100.0 <= 299 / 25


def test_after_a_stall_five_seconds_are_made_up_for_and_no_more():
    machine = Machine(base=0.030, one=0.005)
    machine.play_file(100, fps=25)
    machine.now += 30.0  # a laptop that slept
    machine.play_file(600, fps=25)
    # At 0.01 s a frame five seconds take 500 frames; then thresholds are back.
    assert set(machine.evaluations[101:595]) == {0}
    assert np.mean(machine.evaluations[650:]) == pytest.approx(2, rel=0.1)


def test_slides_have_every_threshold_when_they_change():
    machine = Machine(base=0.010, one=0.009)
    for index in range(300):
        if index % 15 == 0:
            machine.explain(index / 25, machine.now, 1 / 25)
        else:  # unchanged: nothing but decoding and writing
            machine.now += 0.005
            machine.schedule.finish(index / 25, 1 / 25)
    assert set(machine.evaluations[1:]) == {10}
    assert machine.now - 100.0 <= 299 / 25


def test_slack_that_is_saved_up_is_bounded():
    machine = Machine(base=0.001, one=0.001)
    machine.play_file(500, fps=25)
    slack = machine.schedule.slack(499 / 25, 0.0)
    assert slack == pytest.approx(10 / 25)
    machine.load = 100.0  # 0.1 s a frame: late as soon as that slack is spent, 7 frames on
    machine.play_file(10, fps=25)
    assert machine.evaluations[-1] == 0


def test_uneven_times_are_kept():
    machine = Machine(base=0.010, one=0.005)
    seconds = np.cumsum(np.tile([0.02, 0.02, 0.08], 60))
    for time, interval in zip(seconds, np.tile([0.02, 0.02, 0.08], 60), strict=True):
        machine.explain(float(time), machine.now, float(interval))
    assert (np.array(machine.done)[10:] - 100.0 <= seconds[10:]).all()
    assert np.mean(machine.evaluations[60:]) == pytest.approx((0.04 - 0.01) / 0.005, rel=0.1)


@pytest.mark.parametrize(("base", "one"), [(0.005, 0.002), (0.020, 0.004), (0.030, 0.009)])
def test_thresholds_of_a_camera_drop_no_frame_and_end_before_the_next(base, one):
    machine = Machine(base, one, live=True)
    latencies = machine.play_camera(100, fps=25)
    assert machine.dropped == 0
    assert max(latencies) <= 1 / 25
    spare = min(10, int((0.9 * 0.040 - base) / one + 1e-9))
    assert set(machine.evaluations[1:]) == {spare}


def test_a_camera_faster_than_the_machine_has_no_thresholds_and_short_latency():
    machine = Machine(base=0.060, one=0.020, live=True)
    latencies = machine.play_camera(100, fps=25)
    assert set(machine.evaluations) == {0}
    assert max(latencies) <= 2 * 0.060
    assert machine.dropped == pytest.approx(50, abs=5)


@pytest.mark.parametrize(("behind", "late"), [(-0.05, False), (0.05, False), (0.15, True)])
def test_a_frame_is_late_when_it_is_more_than_an_interval_behind(behind, late):
    machine = Machine(base=0.05, one=1.0)
    machine.play_file(10, fps=10)
    machine.now += machine.schedule.slack(0.9, machine.now) + behind
    assert machine.schedule.slack(0.9, machine.now) == pytest.approx(-behind)
    assert machine.schedule.is_late(0.9, machine.now) == late
