"""Trackers: where the progress of a search goes, in addition to the screen. One member a file.

A tracker is opened once the run is ready, before anything is trained, and follows it to its end. It only looks on: what
it raises is reported once, the tracker is left out, and the search goes on.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from kdnas.controller.events import Event, Note, Observer, Ready
from kdnas.plugins import short_name
from kdnas.record.records import RunRecord
from kdnas.registry import Registry
from kdnas.study.config import Member
from kdnas.user_code import blamed


class Tracker(ABC):
    """Follows one call of a search.

    A member's constructor is `__init__(self, run: RunRecord, *, options)`. It raises ConfigError where it cannot
    follow, such as where a package is missing, which ends the search before anything is trained. A search that
    continues opens its trackers anew, with a run that holds trials.
    """

    def __init__(self, run: RunRecord):
        self.run = run
        """As it was when the tracker was opened."""

    @abstractmethod
    def take(self, event: Event) -> None:
        """Take what has happened: any of the events of `kdnas.controller.events`, those of the preparation first."""

    def close(self) -> None:  # noqa: B027 - many hold nothing
        """Let go of what is held: the search has ended, or was interrupted, or failed."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker", __name__, Tracker)
"""Members: subclasses of `Tracker`."""


class _Tracking:
    """An observer that hands every event to another one and to the trackers of a study."""

    def __init__(self, members: Sequence[Member], observe: Observer):
        self._members, self._observe = members, observe
        self._before: list[Event] = []
        """What happened before the run was ready."""
        self._open: dict[str, Tracker] = {}
        self._is_ready = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Ready):
            for place, member in enumerate(self._members):
                tracker = TRACKERS.build(member.type, event.run, **member.options)
                self._open[f"trackers.{place}: {short_name(member.type)}"] = tracker
            self._is_ready = True
        self._observe(event)
        if not self._is_ready:
            self._before.append(event)
            return
        for earlier in self._before:
            self._hand(earlier)
        self._before.clear()
        self._hand(event)

    def _hand(self, event: Event) -> None:
        for name, tracker in list(self._open.items()):
            try:
                tracker.take(event)
            except (Exception, SystemExit) as error:  # a full disk, a server that is away, code of the user's
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: BaseException) -> None:
        self._open.pop(name, None)
        reason = blamed(error) or f"{type(error).__name__}: {(str(error) or 'without a message').splitlines()[0][:300]}"
        self._observe(Note(f"{name} follows no more: {reason}; the search goes on"))

    def close(self) -> None:
        """Close every tracker."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.close()
            except (Exception, SystemExit) as error:
                self._leave_out(name, error)


@contextlib.contextmanager
def tracked(members: Sequence[Member], observe: Observer) -> Iterator[Observer]:
    """Give an observer that hands events to `observe` and to the trackers `members`, which are closed in the end."""
    if not members:
        yield observe
        return
    tracking = _Tracking(members, observe)
    try:
        yield tracking
    finally:
        tracking.close()
