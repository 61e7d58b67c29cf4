"""Where user code runs: one main thread, a pool of threads, one event loop. Never on a loop that carries traffic."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger("gworker.worker")


class UserLoop:
    """The event loop that asynchronous methods and hooks of one instance share, on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
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

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> TaskFuture[T]:
        """Run `coroutine` on the loop, in an empty context, from any thread."""
        done: TaskFuture[T] = TaskFuture(self.loop)
        self.loop.call_soon_threadsafe(done.start, coroutine)
        return done

    def stop(self) -> None:
        """End the loop once its ready callbacks have run; safe from any thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)


class TaskFuture(concurrent.futures.Future[T]):
    """The outcome of a task on another thread's loop. `cancel` asks the task; the future ends when the task has.

    `asked_to_stop` is set once the task has been asked: on a loop that is blocked, never.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self.asked_to_stop = False

    def start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        """Make the task; called on its loop."""
        self._task = contextvars.Context().run(self._loop.create_task, coroutine)
        self._task.add_done_callback(self._finish)

    def cancel(self) -> bool:
        """Ask the task to stop."""
        self._loop.call_soon_threadsafe(self._ask_to_stop)
        return not self.done()

    def _ask_to_stop(self) -> None:
        self.asked_to_stop = True
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())


class UserThreads:
    """The main thread (sync hooks, and sync methods where only one can run), the others, and the user loop.

    The loop is made at first use: a class without asynchronous code never has one.
    """

    def __init__(self, max_threads: int) -> None:
        self._main = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="gworker-main")
        self._others = concurrent.futures.ThreadPoolExecutor(max(1, max_threads), thread_name_prefix="gworker-input")
        self._user_loop: UserLoop | None = None
        self._lock = threading.Lock()

    @property
    def user_loop(self) -> UserLoop:
        """The user loop, started at first use."""
        with self._lock:
            if self._user_loop is None:
                self._user_loop = UserLoop()
            return self._user_loop

    def on_main(self, function: Callable[..., T], *args: Any) -> concurrent.futures.Future[T]:
        """Run on the one main thread, in an empty context."""
        return self._main.submit(contextvars.Context().run, function, *args)

    def on_any(self, function: Callable[..., T], *args: Any) -> concurrent.futures.Future[T]:
        """Run on some thread of the pool, in an empty context."""
        return self._others.submit(contextvars.Context().run, function, *args)


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
