"""Scripts of their own, as a user runs them: they start everything, end everything, and obey Ctrl-C."""

from __future__ import annotations

import contextlib
import re
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.cluster

# What the scripts write down: lines in a file, from whichever process.
NOTE = """
import os

def note(*words):
    fd = os.open(os.path.join(os.environ["FOLDER"], "ledger"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)
"""

SHOP = """
    import enum
    import os
    from dataclasses import dataclass

    import gworker as gw
    from notes import note

    app = gw.App("scripts")

    class Colour(enum.Enum):
        RED = 1

    @dataclass
    class Order:
        colour: Colour
        weight: float = 1.0

    class SoldOut(Exception):
        def __init__(self, order):
            super().__init__(order)
            self.order = order

    @app.cls(cpu=0.1)
    class Shop:
        @gw.on_enter()
        def open(self):
            note("enter Shop", os.getpid())

        @gw.on_exit()
        def close(self):
            note("exit Shop", os.getpid())

        @gw.method()
        def sell(self, order):
            assert isinstance(order, Order)
            assert order.colour is Colour.RED
            if order.weight > 2:
                try:
                    raise SoldOut(order)
                except SoldOut as error:
                    assert error.order is order
                    raise
            return Order(order.colour, 2 * order.weight)
"""


@pytest.fixture
def notes(ledger: Any) -> Callable[..., list[list[str]]]:
    """What the script and its workers have written down with this first word: the words after it."""

    def read(first: str) -> list[list[str]]:
        return [words[1:] for line in ledger.lines() if (words := line.split())[0] == first]

    return read


def left_of(folder: Path) -> list[str]:
    """The processes that a script has left behind, whoever started them for it: they have its environment."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("FOLDER") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{process.pid} {process.name()}")
    return left


def run(script: Any, source: str, **modules: str) -> Any:
    """Start a script that finds `note`, and the modules given by name, beside it."""
    texts = {name: textwrap.dedent(text) for name, text in {"notes": NOTE, **modules}.items()}
    lines = ["import os", *(f"open('{name}.py', 'w').write(os.environ['{name}'])" for name in texts)]
    return script("\n".join([*lines, textwrap.dedent(source)]), GWORKER_GPU="", **texts)


def test_a_script_needs_no_start_and_leaves_nothing_undone_and_nobody_behind(
    script: Any, ledger: Any, notes: Any, tmp_path: Path, eventually: Any
) -> None:
    ran = run(
        script,
        """
        import enum
        import sys
        import time

        import gworker as gw
        import shop
        from notes import note

        class Mood(enum.Enum):
            GOOD = "good"

        class Note:
            def __init__(self, mood):
                self.mood = mood

        class OutOfTune(Exception):
            pass

        class Wrapped(Exception):
            def __init__(self, inner):
                super().__init__("wrapped")
                self.inner = inner

        @shop.app.cls(cpu=0.1, max_workers=1)
        class Singer:
            @gw.on_enter()
            def warm_up(self):
                note("enter Singer", os.getpid())

            @gw.on_exit()
            async def bow(self):
                note("exit Singer", os.getpid())

            @gw.method()
            def sing(self, sheet):
                assert isinstance(sheet, Note), type(sheet)
                assert sheet.mood is Mood.GOOD
                return Note(sheet.mood)

            @gw.method()
            def fail(self):
                try:
                    raise OutOfTune("too high")
                except OutOfTune as error:
                    raise error

            @gw.method()
            def hum(self, n):
                time.sleep(0.05)
                note("hummed", n)

            @gw.method()
            def buy(self, order):
                try:
                    shop.Shop().sell.remote(order)
                except shop.SoldOut as error:
                    assert isinstance(error.order, shop.Order)
                    return error.order.colour is shop.Colour.RED

        # In __main__, by value.
        back = Singer().sing.remote(Note(Mood.GOOD))
        assert isinstance(back, Note)
        assert back.mood is Mood.GOOD
        try:
            Singer().fail.remote()
        except OutOfTune as error:
            assert type(error) is OutOfTune and error.args == ("too high",)
            assert "raise OutOfTune" in str(error.__cause__) or "fail" in str(error.__cause__)
            note("caught OutOfTune")

        # In a module beside the script, by reference.
        back = shop.Shop().sell.remote(shop.Order(shop.Colour.RED))
        assert isinstance(back, shop.Order) and back.weight == 2.0
        assert back.colour is shop.Colour.RED
        try:
            shop.Shop().sell.remote(shop.Order(shop.Colour.RED, 3.0))
        except shop.SoldOut as error:
            assert isinstance(error.order, shop.Order) and error.order.colour is shop.Colour.RED
            note("caught SoldOut")

        # From the one to the other.
        assert Singer().buy.remote(shop.Order(shop.Colour.RED, 5.0)) is True

        for n in range(20):
            Singer().hum.spawn(n)
        note("main-ends")
        """,
        shop=SHOP,
    )
    assert ran.wait(90) == 0, ran.err
    assert notes("caught") == [["OutOfTune"], ["SoldOut"]]
    assert sorted(int(n) for (n,) in notes("hummed")) == list(range(20)), "spawned calls are finished first"
    assert ledger.lines().index("hummed 19") > ledger.lines().index("main-ends")
    entered = notes("enter")
    assert sorted(name for name, _ in entered).count("Singer") == 1
    assert sorted(notes("exit")) == sorted(entered), "each worker that came up ran its on_exit hook"
    assert eventually(lambda: not left_of(tmp_path), 15), left_of(tmp_path)
    of_ray = re.compile(r"\d{4}-\d\d-\d\d \S+\s+(INFO|WARNING) \w+\.py:\d+ -- ")
    assert [line for line in ran.err.splitlines() if not of_ray.match(line)] == [], "there is nothing to tell the user"


def test_a_gpu_that_a_laptop_lacks_is_dropped_with_one_warning_and_required_where_that_is_wanted(
    script: Any, tmp_path: Path, eventually: Any
) -> None:
    ran = run(
        script,
        """
        import gworker as gw

        app = gw.App("laptop")

        @app.cls(gpu=gw.Gpu("A100"), cpu=0.1)
        class Model:
            size: int = gw.parameter(default=1, scope="worker")

            @gw.method()
            def twice(self, x):
                return 2 * x

        assert Model().twice.remote(4) == 8
        assert list(Model().twice.map(range(10))) == list(range(0, 20, 2))
        assert Model(size=2).twice.remote(4) == 8

        os.environ["GWORKER_GPU"] = "required"
        strict = gw.App("strict")

        @strict.cls(gpu=gw.Gpu("A100"), cpu=0.1, name="Strict")
        class Demanding:
            @gw.method()
            def twice(self, x):
                return 2 * x

        try:
            Demanding().twice.remote(4)
        except gw.Unschedulable as error:
            print(error, flush=True)
        """,
    )
    assert ran.wait(90) == 0, ran.err
    warnings = [line for line in ran.err.splitlines() if "A100" in line]
    assert len(warnings) == 1, ran.err
    assert "Model needs GPU A100 x1; this machine has none: it runs without a GPU" in warnings[0]
    assert "GWORKER_GPU=required" in warnings[0]
    assert "Strict needs GPU A100 x1; this cluster has none" in ran.out.splitlines()
    assert eventually(lambda: not left_of(tmp_path), 15), left_of(tmp_path)


# A worker that works until `FOLDER/finish` appears, and one that has nothing to do.
TWO_WORKERS = """
    import logging
    import time

    import gworker as gw
    from notes import note

    logging.basicConfig(level=logging.INFO)
    app = gw.App("interrupted")

    @app.cls(cpu=0.1, max_workers=1)
    class Busy:
        @gw.on_exit()
        def bye(self):
            note("exit Busy")

        @gw.method()
        def pid(self):
            return os.getpid()

        @gw.method()
        def work(self, name):
            note("working", name)
            end = time.monotonic() + 25
            while time.monotonic() < end and not os.path.exists(os.path.join(os.environ["FOLDER"], "finish")):
                time.sleep(0.02)
            note("finished", name)

    @app.cls(cpu=0.1)
    class Idle:
        @gw.on_exit()
        def bye(self):
            note("exit Idle")

        @gw.method()
        def pid(self):
            return os.getpid()

    note("pids", Busy().pid.remote(), Idle().pid.remote())
"""


def test_ctrl_c_lets_what_runs_finish_and_runs_the_exit_hooks(
    script: Any, notes: Any, gone: Any, tmp_path: Path, eventually: Any
) -> None:
    ran = run(
        script,
        textwrap.dedent(TWO_WORKERS)
        + textwrap.dedent(
            """
            running = Busy().work.spawn("first")
            queued = Busy().work.spawn("second")
            Busy().work.remote("third")
            """
        ),
    )
    assert eventually(lambda: notes("working"), 60), ran.err
    ran.interrupt()
    assert eventually(lambda: ["Idle"] in notes("exit")), "the worker that has nothing to do goes at once"
    assert ran.process.poll() is None
    assert notes("finished") == [], "what runs goes on"
    (tmp_path / "finish").touch()
    assert ran.wait(20) != 0
    assert notes("working") == notes("finished") == [["first"]], "what waited is not begun any more"
    assert sorted(notes("exit")) == [["Busy"], ["Idle"]]
    assert "KeyboardInterrupt" in ran.err
    assert eventually(lambda: not left_of(tmp_path), 15), left_of(tmp_path)
    assert gone(*map(int, notes("pids")[0]))


def test_ctrl_c_at_the_end_of_a_script_drains_and_a_second_one_stops_at_once(
    script: Any, notes: Any, gone: Any, tmp_path: Path, eventually: Any
) -> None:
    ran = run(
        script,
        textwrap.dedent(TWO_WORKERS)
        + textwrap.dedent(
            """
            running = Busy().work.spawn("first")
            queued = Busy().work.spawn("second")
            """
        ),
    )
    assert eventually(lambda: notes("working") and "finishing 2 calls before exit" in ran.err, 60), ran.err
    assert ran.process.poll() is None, "spawned calls are waited for"
    ran.interrupt()
    assert eventually(lambda: ["Idle"] in notes("exit")), "the first drains"
    assert ran.process.poll() is None
    ran.interrupt()
    begun = time.monotonic()
    ran.wait(20)
    assert time.monotonic() - begun < 10, "the second stops"
    assert notes("working") == [["first"]]
    assert notes("finished") == []
    assert notes("exit") == [["Idle"]], "a worker that was killed runs no hooks"
    assert eventually(lambda: not left_of(tmp_path), 15), left_of(tmp_path)
    assert gone(*map(int, notes("pids")[0]))


def test_another_ray_in_the_place_of_the_first_is_noticed_by_the_next_call(script: Any) -> None:
    ran = run(
        script,
        """
        import ray

        import gworker as gw
        from shop import Colour, Order, Shop

        for number in range(3):
            ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
            weight = Shop().sell.remote(Order(Colour.RED, number)).weight
            print("Ray", number, "sold", weight, flush=True)
            ray.shutdown()
        """,
        shop=SHOP,
    )
    assert ran.wait(120) == 0, ran.err
    assert [line for line in ran.out.splitlines() if line.startswith("Ray ")] == [
        f"Ray {number} sold {2 * number}" for number in range(3)
    ]
