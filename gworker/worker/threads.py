"""Where user code runs: one main thread, a pool of threads, one event loop. Never on a loop that carries traffic."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import queue
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from gworker.mailbox import Mailbox
from gworker.router.loop import new_loop

T = TypeVar("T")
log = logging.getLogger("gworker.worker")

# Told what a function returned, or what it raised.
Done = Callable[[Any, BaseException | None], object]


class UserLoop:
    """The event loop that asynchronous methods and hooks of one instance share, on a thread of its own."""

    def __init__(self) -> None:
        self.loop = new_loop()
        self._mailbox = Mailbox(self.loop)
        self._thread = threading.Thread(target=self._run, name="gworker-user-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self.loop.is_closed():
            try:
                self.loop.run_forever()
                return
            except BaseException:  # SystemExit or KeyboardInterrupt out of a task the user's code started
                log.exception("a task on the user event loop tried to end the process; the loop goes on")

    def launch(self, coroutine: Coroutine[Any, Any, Any], done: Done) -> Launched:
        """Run `coroutine` on the loop, in an empty context, from any thread; `done` is called there."""
        launched = Launched(coroutine, done, self._mailbox)
        self._mailbox.post(launched.start)
        return launched

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """The same with a future; to cancel it asks the task to stop, and the future ends when the task has."""
        future = _TaskFuture[T]()
        future.launched = self.launch(coroutine, future.settle)
        return future

    def stop(self) -> None:
        """End the loop once its ready callbacks have run; safe from any thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)


def _in_empty_context(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of the running loop."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 11):
        return loop.create_task(coroutine, context=contextvars.Context())
    return contextvars.Context().run(loop.create_task, coroutine)


class Launched:
    """A coroutine on its way through another thread's loop.

    `asked_to_stop` is set once its task has been asked: on a loop that is blocked, never.
    """

    __slots__ = ("_begun", "_coroutine", "_done", "_mailbox", "_task", "asked_to_stop")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], done: Done, mailbox: Mailbox) -> None:
        self._coroutine = coroutine
        self._done = done
        self._mailbox = mailbox
        self._task: asyncio.Task[Any] | None = None
        self._begun = False
        self.asked_to_stop = False

    def start(self) -> None:
        """Make the task; called on its loop."""
        run = self._run()
        try:
            self._task = _in_empty_context(run)
        except Exception as error:  # out of a task factory of the user's, which may not know of `context`
            run.close()
            self._coroutine.close()
            self._done(None, error)

    def cancel(self) -> None:
        """Ask the task to stop."""
        self._mailbox.post(self._ask_to_stop)

    def _ask_to_stop(self) -> None:
        self.asked_to_stop = True
        if self._task is not None:
            self._task.cancel()
            if not self._begun:  # then nothing of it ever runs
                self._begun = True
                self._coroutine.close()
                self._done(None, asyncio.CancelledError())

    async def _run(self) -> None:
        # The last thing the task does: cheaper than a callback, which would take a turn of the loop of its own.
        self._begun = True
        try:
            result = await self._coroutine
        except GeneratorExit:  # its loop has ended, and it is thrown away
            raise
        except BaseException as error:  # whatever it is, it is told, and does not end the loop
            self._done(None, error)
        else:
            self._done(result, None)


class _TaskFuture(concurrent.futures.Future[T]):
    """The outcome of a coroutine that was launched."""

    launched: Launched

    def cancel(self) -> bool:
        """Ask the task to stop."""
        self.launched.cancel()
        return not self.done()

    def settle(self, result: T, error: BaseException | None) -> None:
        """The task has ended."""
        if isinstance(error, asyncio.CancelledError):
            super().cancel()
            self.set_running_or_notify_cancel()
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(result)


class Crew:
    """Up to `size` threads that are started when they are needed, and stay. Lighter than an executor: no futures."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._tasks: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Done] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._members: list[threading.Thread] = []
        self._lock = threading.Lock()

    def run(self, done: Done, function: Callable[..., Any], *args: Any) -> None:
        """Run `function(*args)` on a thread of the crew, in an empty context; `done` is called there."""
        self._tasks.put((function, args, done))
        if len(self._members) >= self._size or self._idle.acquire(blocking=False):
            return
        with self._lock:
            if len(self._members) < self._size:
                name = f"{self._name}_{len(self._members)}"
                self._members.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._members[-1].start()

    def stop(self) -> None:
        """End the threads once all that was handed over has run; waits for that."""
        with self._lock:
            members, self._size = self._members, 0
        for _ in members:
            self._tasks.put(None)
        for member in members:
            member.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            function, args, done = task
            try:
                result = contextvars.Context().run(function, *args)
            except BaseException as error:  # user code may raise SystemExit: the thread goes on
                done(None, error)
            else:
                done(result, None)
            # Nothing is kept alive by a thread that waits.
            task = function = args = done = result = None  # type: ignore[assignment]
            if len(self._members) < self._size:
                self._idle.release()


class UserThreads:
    """The main thread (sync hooks, and sync methods where only one can run), the others, and the user loop.

    The loop is made at first use: a class without asynchronous code never has one.
    """

    def __init__(self, max_threads: int) -> None:
        self.main = Crew("gworker-main", 1)
        self.others = Crew("gworker-input", max(1, max_threads))
        self._user_loop: UserLoop | None = None
        self._lock = threading.Lock()

    @property
    def user_loop(self) -> UserLoop:
        """The user loop, started at first use."""
        if self._user_loop is None:
            with self._lock:
                if self._user_loop is None:
                    self._user_loop = UserLoop()
        return self._user_loop

    def on_main(self, function: Callable[..., T], *args: Any) -> concurrent.futures.Future[T]:
        """Run on the one main thread, in an empty context."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.main.run(lambda result, error: _settle(future, result, error), function, *args)
        return future


def run_on_own_thread(function: Callable[[], T], name: str) -> concurrent.futures.Future[T]:
    """Run `function` on a new daemon thread that nothing else waits for: a probe that hangs holds up nobody."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


def _settle(future: concurrent.futures.Future[T], result: T, error: BaseException | None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
