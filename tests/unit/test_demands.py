"""What routers need of a pool: the latest of each counts, and expires with its router."""

from __future__ import annotations

from gworker.control.demands import DEMAND_EXPIRES_S, Demands
from gworker.router.membership import Demand


def test_the_demand_of_a_router_that_fell_silent_is_forgotten() -> None:
    demands = Demands()
    demands.report("dead", Demand(5, 2, (("w1", 2),)), 0.0)
    assert demands.total(DEMAND_EXPIRES_S) == Demand(5, 2)
    demands.report("alive", Demand(1, 0), DEMAND_EXPIRES_S)
    assert demands.total(DEMAND_EXPIRES_S + 0.01) == Demand(1, 0)
    assert demands.alive(DEMAND_EXPIRES_S + 0.01) == [("alive", Demand(1, 0), DEMAND_EXPIRES_S)]
    assert demands.inflight() == {}


def test_a_report_replaces_the_routers_last_one_and_an_empty_one_withdraws_it() -> None:
    demands = Demands()
    demands.report("a", Demand(5, 2), 0.0)
    demands.report("a", Demand(1, 1), 0.0)
    assert demands.total(0.0) == Demand(1, 1)
    demands.report("a", Demand(0, 0), 0.0)
    assert demands.alive(0.0) == []


def test_the_inputs_in_each_worker_are_those_of_all_routers() -> None:
    demands = Demands()
    demands.report("a", Demand(0, 3, (("w1", 2), ("w2", 1))), 0.0)
    demands.report("b", Demand(0, 1, (("w1", 1),)), 0.0)
    assert demands.inflight() == {"w1": 3, "w2": 1}


def test_errors_that_a_router_does_not_repeat_have_ended() -> None:
    demands = Demands()
    assert demands.report("a", Demand(1, 0, errors=(("w1", 2),)), 0.0) == {"w1": 2}
    assert demands.report("a", Demand(1, 0, errors=(("w2", 1),)), 0.0) == {"w1": 0, "w2": 1}
    assert demands.report("b", Demand(1, 0), 0.0) == {}
