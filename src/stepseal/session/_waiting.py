"""Waits for a publication: looks at the root again and again, until it is there or nobody makes it.

Invariant: only a manifest that is there shows a publication; no pointer and no name does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepseal.errors import (
    CheckpointError,
    CoordinatorLost,
    InvalidInput,
    StepNotFound,
    WaitTimeout,
)
from stepseal.layout import Area, check_step
from stepseal.steps import refuse_newer

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from stepseal.layout import Manifest
    from stepseal.steps import PublisherWatch, ReadSteps

__all__ = ["PublishedWait"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _GROWTH = 0.05, 2.0, 1.5


class PublishedWait:
    """One wait for a publication.

    Args:
        steps: the root.
        run_id: its run.
        watch: what is known of the publisher.
        min_version: lowest version that will do.
        timeout_s: seconds to wait at most.
        clock: monotonic time.

    Raises:
        InvalidInput: `min_version` is no version, or `timeout_s` no number of at least 0.
    """

    def __init__(
        self,
        steps: ReadSteps,
        run_id: str,
        watch: PublisherWatch,
        min_version: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or timeout_s < 0:
            raise InvalidInput(f"timeout_s={timeout_s!r}: expected seconds of at least 0")
        self._min = check_step(min_version, "min_version")
        self._steps = steps
        self._run_id = run_id
        self._watch = watch
        self._timeout_s = timeout_s
        self._clock = clock
        self._end_s = clock() + timeout_s
        self._pause_s = _FIRST_PAUSE_S / _GROWTH
        self._problems: dict[int, str] = {}

    def look(self) -> Manifest | None:
        """Look once; return the newest publication that will do, or None to wait on.

        Raises:
            WaitTimeout: the time is over.
            CoordinatorLost: the publisher died, or does not reach the root any more.
            StepNotFound: the publisher has finished.
            IncompatibleFormat: a newer release wrote a publication that would do.
        """
        found = self._find()
        if found is not None:
            return found
        state = self._watch.look()
        if state in ("finished", "lost"):
            found = self._find()  # it may have published this as the last thing it did
            if found is not None:
                return found
            raise self._nobody_will(state)
        if self._clock() >= self._end_s:
            raise self._over()
        return None

    def pause_s(self) -> float:
        """Return how long to wait before the next look; longer each time."""
        self._pause_s = min(self._pause_s * _GROWTH, _LONGEST_PAUSE_S)
        return max(0.0, min(self._pause_s, self._end_s - self._clock()))

    def _find(self) -> Manifest | None:
        for version in reversed(self._steps.versions()):
            if version < self._min:
                return None
            try:
                entry = self._steps.entry(version, self._run_id, Area.PUBLISHED)
            except StepNotFound:
                continue  # pruned, because there is a newer one
            refuse_newer(entry)
            if entry.state == "committed":
                return entry.manifest
            self._problems[version] = f"{entry.name} is {entry.state}: {entry.problem}"
        return None

    def _over(self) -> CheckpointError:
        return WaitTimeout(
            f"{self._what()} within {self._timeout_s:g} s, {self._newest()}. Wait again, or see "
            "whether the job that publishes runs.",
            **self._facts(),
        )

    def _nobody_will(self, state: Literal["finished", "lost"]) -> CheckpointError:
        if state == "finished":
            return StepNotFound(
                f"{self._what()}, {self._newest()}, and the job that publishes has finished.",
                **self._facts(),
            )
        return CoordinatorLost(
            f"{self._what()}, {self._newest()}, and the job that publishes gives no sign of life: "
            "it died, or does not reach the root. Restart it, then wait again.",
            **self._facts(),
        )

    def _what(self) -> str:
        return f"wait_published: expected version {self._min} or a higher one"

    def _newest(self) -> str:
        versions = self._steps.versions()
        if not versions:
            return "found none at all"
        damaged = [text for version, text in sorted(self._problems.items())][:3]
        return "; ".join([f"found {Area.PUBLISHED.key(versions[-1])} as the newest", *damaged])

    def _facts(self) -> dict[str, object]:
        versions = self._steps.versions()
        return {
            "expected": f">= {self._min}",
            "found": versions[-1] if versions else None,
            "problems": tuple(self._problems.values()),
        }
