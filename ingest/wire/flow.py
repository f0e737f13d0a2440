"""The transport of one connection, and what holds up the bytes on it.

Owns pausing and going on, in both directions, and how a transport ends. Promises that every call is harmless once the
transport is gone. Never looks at a byte, and knows no request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ingest.wire.limits import SLICE

if TYPE_CHECKING:
    import asyncio

UNSENT_ANSWERS: Final = 65536
"""With more bytes of answers than this unsent, no request is read: the limit that a loop's transports come with."""
LINGER_BYTES: Final = 65536
"""How much is read and left of what comes after a refusal, before the last answer is written and then."""
SENT_BYTES: Final = 64 << 20
"""And of the rest of a sound request: four times the largest body that any setting takes. Many a client reads no answer
before all of its body is sent, and a reset in the midst would take the answer from it."""
NEVER: Final = float("inf")


class Flow:
    """One transport."""

    __slots__ = ("_lingered", "_transport", "ended", "stalled_until")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport: asyncio.Transport | None = transport
        self.stalled_until: float | None = None
        """Set while nothing is read: the client reads too slowly, which it may until then; or `NEVER` while too many of
        its answers wait for a group commit, which is not its fault."""
        self.ended = False
        """From the end of input on: the client has closed its half."""
        self._lingered = 0

    def __repr__(self) -> str:
        if self._transport is None:
            return "gone"
        stalled = "" if self.stalled_until is None else f", stalled until {self.stalled_until:.1f}"
        return f"{'reading' if self._transport.is_reading() else 'paused'}{', ended' * self.ended}{stalled}"

    @property
    def is_over(self) -> bool:
        """Nothing is written any more."""
        return self._transport is None or self._transport.is_closing()

    @property
    def unsent(self) -> int:
        """Bytes that were written and are not in the kernel's hands yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def pause(self) -> None:
        """Read no more for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    def half_close(self) -> None:
        """End our half, and read on."""
        if self._transport is not None:
            self._transport.resume_reading()
            self._transport.write_eof()

    def drop(self, size: int, most: int, *, lingering: bool) -> bool:
        """Leave bytes that came after the end, and tell whether to come again: none waits for who sends a lot.

        Until the last answer nothing is closed, and little is read; then `most`.
        """
        self._lingered += size
        if not lingering:
            if self._lingered > LINGER_BYTES:
                self.pause()
        elif self._lingered > most or self.ended:
            self.close()
        elif size > SLICE:
            self.pause()
            return True
        else:
            self.go_on()
        return False

    def close(self) -> None:
        """Close once all that was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def lost(self) -> None:
        """Let go of a transport that is gone."""
        self._transport = None
