"""The callers of a simulation: calls, routers that queue, send and retry them, and loads that make them."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from gworker.router.choice import ASK_MORE_S, Choice
from gworker.router.membership import Demand, PoolView
from gworker.router.router import DEMAND_PERIOD_S, RELINK_AFTER_S
from tests.simulation.agenda import Entry

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.simulator import Simulation

# How soon a worker finds out that a caller of its is gone.
LEASE_S = 10.0

Curve = Callable[[float], float]


class Call:
    """One call. `runs` counts how often it was begun; it ends once, with an outcome."""

    __slots__ = ("began", "lost", "number", "outcome", "retries", "router", "runs", "tries")

    def __init__(self, number: int, router: Router, retries: int) -> None:
        self.number = number
        self.router = router
        self.retries = retries
        self.runs = 0
        self.began = 0.0
        self.lost = 0
        self.tries = 0
        self.outcome: str | None = None


class Link:
    """A worker as a router uses it. `full`: it refused a call, and has not said since that there is room."""

    __slots__ = ("calls", "full", "process", "ready")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.calls: dict[Call, None] = {}
        self.ready = True
        self.full = False

    @property
    def load(self) -> float:
        """How full this router has made it."""
        return len(self.calls) / self.process.capacity

    def has_room(self) -> bool:
        """Whether it would take a call, as far as the router knows."""
        return not self.full and len(self.calls) < self.process.capacity


class Router:
    """The calls of one caller. It follows `gworker.router.router`, less what needs bytes, threads and deadlines."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.name = name
        self.dead = False
        self.live: dict[Call, None] = {}
        self.links: dict[str, Link] = {}
        self.view: PoolView | None = None
        self.on_end: Callable[[Call], None] = lambda call: None
        self._simulation = simulation
        self._agenda = simulation.agenda
        self._pending: deque[Call] = deque()
        self._choice: Choice[Link] = Choice(simulation.dice.random)
        self._asking: Entry | None = None
        self._errors: dict[str, int] = {}
        self._lost_at: dict[str, float] = {}
        self._reported = Demand(0, 0)
        self._finished_lately = False
        self._timer: Entry | None = None

    # --- the queue ------------------------------------------------------------------------------------------------

    def submit(self, *, retries: int = 0) -> Call:
        """A new call."""
        call = Call(self._simulation.next_call(), self, retries)
        self.live[call] = None
        if self.view is not None and self.view.failure is not None and not len(self._choice):
            # Not before the caller holds it: as in life, the outcome comes through the loop.
            self._agenda.after(0.0, self._end, call, type(self.view.failure).__name__)
        else:
            self._pending.append(call)
            self._pump()
        return call

    def _pump(self) -> None:
        while True:
            while self._pending and (link := self._next_link()) is not None:
                self._send(link, self._pending.popleft())
            waiting = len(self._pending)
            asked = self._choice.ask(waiting) if waiting else []
            for link in asked:
                link.process.want(self, waiting)
            if not asked:
                break
        if not waiting:
            self._choice.ask_no_more()
        elif self._asking is None and not self._choice.all_asked:
            self._asking = self._agenda.after(ASK_MORE_S, self._ask_more)
        self._report()

    def _next_link(self) -> Link | None:
        while self._pending and self._pending[0].outcome is not None:
            self._pending.popleft()
        return self._choice.pick(tries=self._pending[0].tries) if self._pending else None

    def _send(self, link: Link, call: Call) -> None:
        link.calls[call] = None
        if not link.process.alive:
            self._agenda.after(0.0, self.broken, link.process.id)
        elif not link.process.accept(call):
            del link.calls[call]
            link.full = True
            call.tries += 1
            self._pending.appendleft(call)
            self._choice.heard(link)

    def _ask_more(self) -> None:
        self._asking = None
        self._choice.ask_more()
        self._pump()

    # --- what processes say -----------------------------------------------------------------------------------------

    def room_in(self, worker_id: str) -> None:
        """A worker keeps room for a call."""
        link = self.links.get(worker_id)
        if link is not None and not self.dead:
            link.full = False
            self._choice.heard(link)
            self._pump()
            if not self._pending:
                link.process.want(self, 0)

    def answered(self, worker_id: str, call: Call, outcome: str) -> None:
        """A call has run to its end."""
        if outcome == "result":
            self._errors.pop(worker_id, None)
        else:
            self._errors[worker_id] = self._errors.get(worker_id, 0) + 1
        link = self.links.get(worker_id)
        if link is not None:
            link.calls.pop(call, None)
            self._choice.heard(link)
        if not self.dead:
            self._end(call, outcome)
            self._pump()

    def broken(self, worker_id: str) -> None:
        """A worker is gone: its calls may have begun, and are begun again only where retries allow it."""
        link = self.links.pop(worker_id, None)
        if link is None or self.dead:
            return
        self._choice.remove(link)
        self._lost_at[worker_id] = self._agenda.now
        self._errors[worker_id] = self._errors.get(worker_id, 0) + 1
        again = []
        for call in link.calls:
            call.lost += 1
            if call.lost <= call.retries:
                again.append(call)
            else:
                self._end(call, "WorkerLost")
        self._pending.extendleft(reversed(again))
        self._pump()

    def _end(self, call: Call, outcome: str) -> None:
        if call.outcome is not None:
            return
        call.outcome = outcome
        del self.live[call]
        self._finished_lately = True
        self._simulation.call_ended(call)
        self.on_end(call)

    # --- the pool -------------------------------------------------------------------------------------------------

    def see(self, view: PoolView) -> None:
        """The controller tells the state of the pool."""
        if self.dead:
            return
        self.view = view
        seen = {worker.id: worker for worker in view.workers}
        self._lost_at = {w: at for w, at in self._lost_at.items() if w in seen}
        self._errors = {w: count for w, count in self._errors.items() if w in seen and seen[w].ready}
        for worker_id, link in list(self.links.items()):
            now_seen = seen.get(worker_id)
            link.ready = now_seen is not None and now_seen.ready
            if link.ready:
                self._choice.add(link)
            else:
                self._choice.remove(link)
            if now_seen is None and not link.calls:
                del self.links[worker_id]
        for worker in view.workers:
            lost_at = self._lost_at.get(worker.id, -math.inf)
            if worker.ready and worker.id not in self.links and self._agenda.now - lost_at > RELINK_AFTER_S:
                link = self.links[worker.id] = Link(worker.actor)
                self._choice.add(link)
        if view.failure is not None and not len(self._choice):
            running = {call for link in self.links.values() for call in link.calls}
            for call in [call for call in self.live if call not in running]:
                self._end(call, type(view.failure).__name__)
        self._pump()

    def _report(self) -> None:
        if self._pending and not self._reported.queued and not len(self._choice):
            self._send_report()
        elif self._timer is None and (self.live or self._finished_lately or not self._reported.idle):
            self._timer = self._agenda.after(DEMAND_PERIOD_S, self._send_report)

    def _send_report(self) -> None:
        if self.dead:
            return
        inflight = tuple((worker_id, len(link.calls)) for worker_id, link in self.links.items() if link.calls)
        running = sum(count for _, count in inflight)
        finished, self._finished_lately = int(self._finished_lately), False
        errors = tuple(self._errors.items())
        self._reported = Demand(len(self.live) - running, running or finished, inflight, errors)
        self._simulation.report(self.name, self._reported)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._reported.idle:
            self._timer = self._agenda.after(DEMAND_PERIOD_S, self._send_report)

    def die(self) -> None:
        """The caller's process is gone without a word; its workers cancel its calls when they notice."""
        self.dead = True
        for link in self.links.values():
            for call in link.calls:
                self._agenda.after(LEASE_S, link.process.drop, call)
        for call in list(self.live):
            self._end(call, "caller gone")


# --- loads -----------------------------------------------------------------------------------------------------------


class Users:
    """So many calls are open at any time as the curve says; where one ends, the next one begins."""

    def __init__(self, simulation: Simulation, router: Router, level: Curve, *, retries: int = 0) -> None:
        self._simulation = simulation
        self._router = router
        self._level = level
        self._retries = retries
        self._began = simulation.agenda.now
        self._stopped = False
        router.on_end = lambda call: self._follow(call)
        self._turn()

    def stop(self) -> None:
        """No more calls."""
        self._stopped = True

    def _turn(self) -> None:
        if not self._stopped and not self._router.dead:
            self._fill()
            self._simulation.agenda.after(0.25, self._turn)

    def _follow(self, call: Call) -> None:
        if call.outcome == "result":
            # A moment later: a caller whose calls fail thinks before it tries again, at the next turn.
            self._simulation.agenda.after(0.001, self._fill)

    def _fill(self) -> None:
        wanted = 0 if self._stopped else round(self._level(self._simulation.agenda.now - self._began))
        while not self._router.dead and len(self._router.live) < wanted:
            self._router.submit(retries=self._retries)


class Arrivals:
    """Calls arrive by chance, so many a second as the curve says, whether or not earlier ones have ended."""

    def __init__(self, simulation: Simulation, router: Router, rate: Curve, *, retries: int = 0) -> None:
        self._simulation = simulation
        self._router = router
        self._rate = rate
        self._retries = retries
        self._began = simulation.agenda.now
        self._stopped = False
        self._turn(0)

    def stop(self) -> None:
        """No more calls."""
        self._stopped = True

    def _turn(self, arrived: int) -> None:
        if self._stopped or self._router.dead:
            return
        for _ in range(arrived):
            self._router.submit(retries=self._retries)
        now, dice = self._simulation.agenda.now, self._simulation.dice
        rate = self._rate(now - self._began)
        wait_s = dice.expovariate(rate) if rate > 0 else math.inf
        # The curve is looked at again soon; waiting has no memory, so that cutting it short changes nothing.
        self._simulation.agenda.after(min(wait_s, 0.25), self._turn, int(wait_s <= 0.25))


class Reports:
    """A router that only reports: a demand as the curve says, without calls."""

    def __init__(self, simulation: Simulation, level: Curve, name: str = "reports") -> None:
        self._simulation = simulation
        self._level = level
        self._name = name
        self._began = simulation.agenda.now
        self._stopped = False
        self._turn(0)

    def stop(self) -> None:
        """It falls silent."""
        self._stopped = True

    def _turn(self, last: int) -> None:
        if self._stopped:
            return
        level = max(0, round(self._level(self._simulation.agenda.now - self._began)))
        if level or last:
            self._simulation.report(self._name, Demand(level // 2, level - level // 2))
        self._simulation.agenda.after(DEMAND_PERIOD_S, self._turn, level)


def steady(level: float) -> Curve:
    """Always the same."""
    return lambda t: level


def steps(*levels: tuple[float, float]) -> Curve:
    """From each of these times on, that level: `steps((0, 3), (60, 20))`."""
    return lambda t: next((level for since, level in reversed(levels) if t >= since), 0.0)


def bursts(low: float, high: float, *, every_s: float, for_s: float) -> Curve:
    """High for a while, again and again."""
    return lambda t: high if t % every_s < for_s else low


def sine(middle: float, swing: float, *, period_s: float) -> Curve:
    """A wave that begins at its lowest."""
    return lambda t: middle - swing * math.cos(2 * math.pi * t / period_s)


def noise(middle: float, spread: float, *, seed: int, every_s: float = 0.25) -> Curve:
    """Independent draws around a level: the same at the same time, whoever asks."""
    return lambda t: random.Random(f"{seed}/{int(t / every_s)}").gauss(middle, spread)
