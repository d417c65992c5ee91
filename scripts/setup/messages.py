# SPDX-License-Identifier: Apache-2.0
"""What the set-up says: errors with a hint, and progress, on stderr; stdout belongs to the program started later."""

import shutil
import sys
import time

LOG_TAIL_LINES = 12
PLAIN_UPDATE_S = 20  # without a terminal: one line now and then shows that it still works


class SetupError(Exception):
    """Set-up cannot go on; its text is what was attempted, what was found, and a hint."""

    def __init__(self, attempted: str, found: str, hint: str, log_path: str = "") -> None:
        lines = ["Could not %s." % attempted, "Found: %s" % found]
        if log_path:
            tail = _tail(log_path)
            lines += ["Last %d log lines:" % len(tail), "```"] + tail + ["```", "Log: %s" % log_path]
        super().__init__("\n".join(lines + ["Hint: %s" % hint]))
        self.found, self.log_path = found, log_path


def _tail(path: str) -> list:
    """Return the last lines of a log that say something; pip's remarks on unused locations do not."""
    with open(path, errors="replace") as file:
        lines = [line.rstrip() for line in file if line.strip() and "is ignored: it is" not in line]
    return lines[-LOG_TAIL_LINES:]


def say(text: str) -> None:
    """Print a line for the person who waits."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Phase:
    """One line of progress: a live bar on a terminal, else a line at the end and now and then in between."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = self.said = time.monotonic()
        self.live = sys.stderr.isatty()
        self.show(0, 0, "")

    def show(self, done: int, total: int, note: str) -> None:
        """Show `done` of `total` steps."""
        elapsed = time.monotonic() - self.began
        count = "%d/%d" % (done, total) if total else ""
        if self.live:
            filled = int(20 * done / total) if total else 0
            bar = "[%s%s] " % ("#" * filled, "." * (20 - filled)) if total else ""
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(("\r\033[K  %-12s %s%s %s %.0f s" % (self.name, bar, count, note, elapsed))[: width + 4])
            sys.stderr.flush()
        elif time.monotonic() - self.said > PLAIN_UPDATE_S:
            self.said = time.monotonic()
            say("  %-12s %s %s, %.0f s so far" % (self.name, count, note, elapsed))

    def end(self, text: str) -> None:
        """Replace the bar by the outcome."""
        if self.live:
            sys.stderr.write("\r\033[K")
        say("  %-12s %-52s %5.1f s" % (self.name, text, time.monotonic() - self.began))
