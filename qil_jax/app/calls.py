"""The calls of the page: what each takes, which of them wait or run, and whether anybody waits for their answer.

The only module that knows gradio's queue from within, and what else gradio keeps.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gradio import Blocks
from gradio.block_function import BlockFunction
from gradio.queueing import Event
from gradio.routes import file_upload_statuses

from qil_jax.app.streams import Streams
from qil_jax.errors import QilError, shown

DECOMPOSE = "decompose"
"""The name of the app's one call."""
MOST_WATCHED = 1000
"""Uploads that ended and whose progress is kept for those who watch it."""


class UnknownCallError(QilError):
    """There is no call of this name or number."""


class Calls:
    """What a page's queue holds.

    Attributes:
      page: the page.
      streams: the answers that clients listen to.
    """

    def __init__(self, page: Blocks, streams: Streams):
        self.page, self.streams, self._queue = page, streams, page._queue

    def check(self, kind: str, name: str | None, body: Any, check: Callable[[Mapping[str, Any]], Any]) -> None:
        """Refuse what gradio would not understand, and what `check` refuses of a decomposition's values.

        Args:
          kind: how the call is made: `call/v2` gives values by name, `call`, `run` and `queue/join` as a list.
          name: the call's name; None, or `predict`: the body has its number.
          body: what the client sent, of JSON.
          check: function that raises a QilError for values that a decomposition cannot have, given by name.

        Raises:
          UnknownCallError: if there is no such call.
          QilError: if the body does not fit it.
        """
        if not isinstance(body, dict):
            raise QilError(f"the call must be a JSON object, got {shown(body)}")
        function = self._function(name, body)
        names = list(function.input_keyword_names)
        if kind == "call/v2":
            unknown = [key for key in body if key not in names]
            if unknown:
                raise QilError(f"unknown parameter {shown(unknown[0])}: {name} has {', '.join(names)}")
            values = body
        else:
            data = body.get("data")
            if not isinstance(data, list) or len(data) != len(function.inputs):
                wanted = f"{len(function.inputs)} values" + (f" ({', '.join(names)})" if names else "")
                got = f"{len(data)} values" if isinstance(data, list) else shown(data)
                raise QilError(f"data must be a list of {wanted}, got {got}")
            values = dict(zip(names, data, strict=False))
        if function.api_name == DECOMPOSE and kind != "run":
            check(values)

    def _function(self, name: str | None, body: Mapping[str, Any]) -> BlockFunction:
        functions = [function for function in self.page.fns.values() if function.fn is not None]
        if name in (None, "predict"):
            number = body.get("fn_index")
            found = [function for function in functions if type(number) is int and function._id == number]
            what = f"fn_index {shown(number)}"
        else:
            found = [f for f in functions if f.api_name == name and f.api_visibility == "public"]
            what = shown(name)
        if not found:
            raise UnknownCallError(f"there is no call {what}: this app has {DECOMPOSE} (docs/app.md)")
        return found[0]

    def require_answer(self, name: str) -> None:
        """Refuse a call or a session that has no answer to listen to.

        Raises:
          UnknownCallError: if there is none of this number.
        """
        queue = self._queue
        event = queue.event_ids_to_events.get(name)
        sessions = [session for session, numbers in queue.pending_event_ids_session.items() if name in numbers]
        session = event.session_hash if event is not None else next(iter(sessions), name)
        if session not in queue.pending_messages_per_session:
            raise UnknownCallError(
                f"there is no call {shown(name)}: it was never started, its answer has been given, or nobody "
                f"listened to it for {self.streams.patience:.0f} seconds"
            )

    def is_wanted(self, number: str) -> bool:
        """Whether a client waits for a running call: it listens or has only just called, and did not cancel it."""
        return any(event._id == number and self._wanted(event, self.streams.patience) for event in self._running())

    def uploads(self) -> set[str]:
        """Paths of the pictures of all calls that wait or run."""
        found = [event.data.data[0] for event in [*self._running(), *self._waiting()] if event.data and event.data.data]
        return {picture["path"] for picture in found if isinstance(picture, dict) and "path" in picture}

    def abandon(self) -> None:
        """Drop waiting calls that nobody wants, and what is left of answers that nobody can get any more.

        To be called by the server's thread, before a call.
        """
        queue, waiting = self._queue, list(self._waiting())
        is_full = queue.max_size is not None and len(waiting) >= queue.max_size
        patience = self.streams.haste if is_full else self.streams.patience
        for event in [event for event in waiting if not self._wanted(event, patience)]:
            queue.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
            queue.event_ids_to_events.pop(event._id, None)
            numbers = queue.pending_event_ids_session.get(event.session_hash, set())
            numbers.discard(event._id)
            if not numbers:
                queue.pending_messages_per_session.pop(event.session_hash, None)
        kept = queue.pending_messages_per_session
        for session in [session for session in queue.pending_event_ids_session if session not in kept]:
            del queue.pending_event_ids_session[session]

    def forget_uploads(self) -> None:
        """Drop what gradio would keep of every upload until the end: its path, and how far it is.

        Whoever watches an upload sees its end unless `MOST_WATCHED` others came.
        """
        self.page.upload_file_set.clear()
        statuses, signals = file_upload_statuses._statuses, file_upload_statuses._signals
        if len(statuses) > MOST_WATCHED:
            for number in [number for number, status in list(statuses.items()) if status.is_done]:
                file_upload_statuses.stop_tracking(number)
        for number in [number for number, signal in list(signals.items()) if not signal._waiters]:
            if number not in statuses:
                signals.pop(number, None)

    def _wanted(self, event: Event, patience: float) -> bool:
        is_new = time.monotonic() - event.enqueue_time < patience
        return event.alive and (is_new or self.streams.any((event._id, event.session_hash)))

    def _running(self) -> Iterator[Event]:
        return (event for events in list(self._queue.active_jobs) for event in events or ())

    def _waiting(self) -> Iterator[Event]:
        queues = list(self._queue.event_queue_per_concurrency_id.values())
        return (event for queue in queues for event in list(queue.queue))
