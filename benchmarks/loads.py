"""What is asked of the peers: one client, clients in a closed loop, arrivals by Poisson. No two requests to a peer have the same seed or prompt,
so no cache of anybody helps."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, product

from peers import Peer

COLOURS = ("black", "white", "gray", "red", "green", "blue", "yellow", "purple", "orange", "pink")
THINGS = ("cat", "tree", "house", "heart", "car", "sailboat", "rocket", "banana", "lemon", "pear", "mushroom", "tulip", "fish", "owl", "pig", "fox", "frog")
PROMPTS = [f"a {size} {thing} on a {colour} background" for size, thing, colour in product(("large", "small"), THINGS, COLOURS)]
random.Random(1).shuffle(PROMPTS)
NUMBER = count(1)


def body(side: int, steps: int, cfg: float = 7.0) -> dict:
    """A request that none before was equal to (there are 340 prompts; seeds never repeat)."""
    number = next(NUMBER)
    return {"prompt": PROMPTS[number % len(PROMPTS)], "steps": steps, "width": side, "height": side, "cfg_scale": cfg, "seed": 1000 + number}


@dataclass(frozen=True)
class Run:
    """The latencies of one load in order, and the seconds from its first request to its last answer."""

    latencies: list[float]
    seconds: float
    bodies: list[dict]

    @property
    def a_minute(self) -> float:
        return 60 * len(self.latencies) / self.seconds


def one_client(peers: list[Peer], side: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a picture by peer; in each round every peer draws the same one, in turn."""
    found: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        same = body(side, steps)
        for peer in peers:
            found[peer.name].append(peer.ask(same).seconds)
    return found


def closed_loop(peers: list[Peer], side: int, steps: int, clients: int, each: int, rounds: int) -> dict[str, list[Run]]:
    """Clients that ask again as soon as they are answered, one peer after the other, round by round."""
    found: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        bodies = [body(side, steps) for _ in range(clients * each)]
        for peer in peers:
            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                latencies = list(pool.map(lambda b, p=peer: p.ask(b).seconds, bodies))
            found[peer.name].append(Run(latencies, time.perf_counter() - start, bodies))
    return found


def mixed(sides: tuple[int, ...], rng: random.Random) -> dict:
    return body(rng.choice(sides), rng.choice([10, 20, 30, 50]), rng.choice([1.0, 7.0]))


def mean_cost(peer: Peer, sides: tuple[int, ...]) -> float:
    """Mean seconds of a mixed job at a peer that does one at a time: steps are 27.5 in the mean, and each costs the same."""
    tens = [min(peer.ask(body(side, 10, cfg)).seconds for _ in range(2)) for side in sides for cfg in (1.0, 7.0)]
    return 2.75 * sum(tens) / len(tens)


def poisson(peers: list[Peer], sides: tuple[int, ...], seconds: float, load: float, cost: float, rounds: int) -> dict[str, list[Run]]:
    """Mixed jobs that arrive for `seconds`, at the same instants for every peer, `load / cost` a second in the mean."""
    found: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    for i in range(rounds):
        rng = random.Random(7 + i)
        gaps = list(arrivals(seconds, load / cost, rng))
        bodies = [mixed(sides, rng) for _ in gaps]
        for peer in peers:
            found[peer.name].append(arrive(peer, bodies, gaps))
    return found


def arrivals(seconds: float, rate: float, rng: random.Random) -> Iterator[float]:
    """Gaps between arrivals, the last of which comes within `seconds`; at least one."""
    gap = passed = rng.expovariate(rate)
    yield gap
    while (passed := passed + (gap := rng.expovariate(rate))) < seconds:
        yield gap


def arrive(peer: Peer, bodies: list[dict], gaps: list[float]) -> Run:
    latencies = [0.0] * len(bodies)

    def send(i: int) -> None:
        latencies[i] = peer.ask(bodies[i]).seconds

    threads, start = [], time.perf_counter()
    for i, gap in enumerate(gaps):
        time.sleep(gap)
        threads.append(threading.Thread(target=send, args=(i,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return Run(latencies, time.perf_counter() - start, bodies)
