"""The simulator of the benchmarks: its servers against what can be worked out by hand, and the scheduler's fairness by it."""

from __future__ import annotations

import pytest
from curves import CPU, SDXL, Curve, Kind, machine
from servers import SERVERS, HardKey, Job, Ours, Static
from simulate import mixed, poisson, simulate

HALF = Curve("half", "", {64: {1: 1.0, 2: 1.0, 4: 2.0}}, {64: 0.5})  # one picture with guidance a second, no gain from batches
PLAIN = Kind(64, 10, 2)


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_every_job_is_served_once_and_one_alone_takes_its_own_time(name: str) -> None:
    jobs = poisson(mixed(512, 768), 2.0, 200, seed=1)
    run = simulate(SERVERS[name](SDXL), jobs)
    assert sorted(run.jobs, key=lambda job: job.at) == jobs
    assert all(seconds >= SDXL.job_seconds(job.kind, 1) * 0.999 for job, seconds in zip(run.jobs, run.latencies, strict=True))
    alone = simulate(SERVERS[name](HALF), [Job(3.0, PLAIN)])
    assert alone.latencies == [pytest.approx(10.5 + (3.0 if "timer" in name else 0.0))]


def test_servers_do_as_they_are_called() -> None:
    long, short = Kind(64, 20, 2), Kind(64, 10, 2)
    jobs = [Job(0.0, long), Job(0.1, short), Job(0.2, long)]

    def served(server: Static | HardKey | Ours) -> list[tuple[int, float]]:
        run = simulate(server, jobs)
        return [(jobs.index(job), round(job.at + seconds, 6)) for job, seconds in zip(run.jobs, run.latencies, strict=True)]

    assert served(Static(HALF, most=1)) == [(0, 20.5), (1, 31.0), (2, 51.5)]
    assert served(Static(HALF)) == [(0, 20.5), (1, 31.0), (2, 51.5)]
    assert served(Static(HALF, timer=1.0)) == [(0, 42.0), (2, 42.0), (1, 52.5)]  # those of one kind waited for each other
    assert served(HardKey(HALF)) == [(0, 20.5), (1, 31.0), (2, 51.5)]
    assert served(Ours(HALF)) == [(1, 11.5), (0, 31.0), (2, 51.5)]


def test_curves_go_through_their_points_and_gain_nothing_beyond() -> None:
    curve = machine({"m 64 64": {"2": 1.0, "4": 1.5, "decode": 0.2}, "m 128 128": {"2": 4.0}}, "m", "")
    assert [curve.seconds(64, rows) for rows in (1, 2, 3, 4, 8)] == [0.75, 1.0, 1.25, 1.5, 3.0]
    assert curve.capacity([PLAIN]) == pytest.approx(1 / (10 * 1.5 / 2 + 0.2))
    assert CPU.seconds(256, 16) / 8 < CPU.seconds(256, 2)


@pytest.mark.parametrize(("curve", "sides"), [(CPU, (256, 384, 512)), (SDXL, (512, 768, 1024))], ids=["cpu", "h100"])
def test_mixed_work_takes_a_part_of_what_static_batches_take(curve: Curve, sides: tuple[int, ...]) -> None:
    jobs = poisson(mixed(*sides), 0.9 * curve.capacity(mixed(*sides)), 1000, seed=3)
    ours, static = simulate(Ours(curve), jobs), simulate(Static(curve), jobs)
    assert ours.mean <= 0.4 * static.mean


@pytest.mark.parametrize(("curve", "sides"), [(CPU, (256, 384, 512)), (SDXL, (512, 768, 1024))], ids=["cpu", "h100"])
def test_a_flood_of_one_party_holds_up_another_by_about_a_job(curve: Curve, sides: tuple[int, ...]) -> None:
    """Thousands of jobs of one at once; another's come now and then. A job is the longest in a full batch."""
    kinds = mixed(*sides)
    job_seconds = max(kind.steps * curve.seconds(kind.side, 16) + curve.decode_seconds(kind.side) for kind in kinds)
    flood = [Job(0.0, job.kind, "flood") for job in poisson(kinds, 1.0, 2000, seed=4)]
    few = [Job(job.at, job.kind, "few") for job in poisson(kinds, 0.2 / job_seconds, 15, seed=5)]
    run = simulate(Ours(curve), sorted([*flood, *few], key=lambda job: job.at))
    held_up = [seconds - curve.job_seconds(job.kind, 1) for job, seconds in zip(run.jobs, run.latencies, strict=True) if job.party == "few"]
    assert len(held_up) == 15
    assert max(held_up) <= 1.5 * job_seconds
    assert max(run.latencies) >= 10 * job_seconds  # it was a flood


def test_no_job_starves_below_capacity() -> None:
    kinds = mixed(256, 384, 512)
    run = simulate(Ours(CPU), poisson(kinds, 0.8 * CPU.capacity(kinds), 3000, seed=6))
    longest = max(CPU.job_seconds(kind, 1) for kind in kinds)
    assert max(run.latencies) <= 30 * longest
