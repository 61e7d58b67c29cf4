"""One caller as a worker sees it: its inputs, and the messages that wait to be taken to it. Knows no transport.

A transport creates a session per router, feeds it bundles with `receive`, sets `wake`, and takes what is to be sent
with `take`. When the router has gone silent, `close` cancels all it asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gworker import clock
from gworker.wire import Cancel, Credit, Down, InOrder, Submit, Up, count_within

if TYPE_CHECKING:
    from gworker.worker.engine import Engine, Input

# A router that waits for results opens exchanges all the time: one silent for this long takes no more of them.
SILENT_S = 5.0
# What was sent this long ago has arrived, whether the router acknowledged it or had no reason to speak again.
ARRIVED_S = 1.0


class Session:
    """The inputs and the outgoing messages of one router."""

    def __init__(self, name: str, engine: Engine, wake: Callable[[], None]) -> None:
        self.name = name
        self.stages = False
        self.inputs: dict[int, Input] = {}
        self.last_heard = clock.now()
        self.last_sent = clock.now()
        self._engine = engine
        self._wake = wake
        self._outbox: list[Any] = []
        self._arrivals = InOrder()
        self._sent = -1
        self._acknowledged = -1
        self._nudged = False

    def receive(self, bundle: Up) -> None:
        """Handle a bundle, and those that waited for it to come."""
        self.last_heard = clock.now()
        for up in self._arrivals.feed(bundle.sequence, bundle):
            self.stages = up.stages
            self._acknowledged = max(self._acknowledged, up.acknowledged)
            for message in up.messages:
                if type(message) is Submit:
                    self._engine.submit(self, message)
                elif isinstance(message, Cancel):
                    self._engine.cancel(self, message.call_id)
                elif isinstance(message, Credit):
                    self._engine.credit(self, message.call_id, message.more)
            self._engine.caller_waits(self.name, up.waiting)

    def send(self, message: Any) -> None:
        """Queue a message for the router."""
        self._outbox.append(message)
        self._wake()

    def nudge(self) -> None:
        """See that the router hears from us even if there is no message: it has room now, or we drain."""
        self._nudged = True
        self._wake()

    @property
    def last_received(self) -> int:
        """The number of the last bundle that was handled, -1 before the first."""
        return self._arrivals.last

    @property
    def has_news(self) -> bool:
        """Whether there is something to send."""
        return bool(self._outbox) or self._nudged

    @property
    def owes_answers(self) -> bool:
        """Whether the router waits for something: inputs that have not ended, or messages that have not left."""
        return bool(self.inputs or self._outbox)

    @property
    def settled(self) -> bool:
        """Whether all has been sent and acknowledged, or long enough ago that it has arrived or nobody listens."""
        if self._outbox:
            return clock.now() - self.last_heard > SILENT_S
        return self._acknowledged >= self._sent or clock.now() - self.last_sent > ARRIVED_S

    def take(self, most_bytes: int | None = None) -> Down:
        """What waits to be sent, as one bundle: all of it, or as many messages as have about `most_bytes`."""
        messages, self._outbox = self._outbox, []
        if most_bytes is not None and len(messages) > 1:
            count = count_within(messages, len(messages), most_bytes)
            messages, self._outbox = messages[:count], messages[count:]
        self._nudged = False
        self._sent += 1
        self.last_sent = clock.now()
        return Down(
            sequence=self._sent,
            acknowledged=self._arrivals.last,
            room=self._engine.room_for(self.name),
            draining=self._engine.draining,
            messages=messages,
        )

    def close(self) -> None:
        """The router is gone: nobody waits for its inputs any more."""
        self._engine.caller_left(self.name)
        for call_id in list(self.inputs):
            self._engine.cancel(self, call_id)
        self._outbox.clear()
