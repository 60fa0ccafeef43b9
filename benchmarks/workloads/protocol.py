"""How a workload answers: one JSON line at a time on what was standard output, with all other output in the log."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any


class Channel:
    """Answers to the program that started this one. Frameworks may print what they like; it goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **answer: Any) -> None:
        """Sends one answer."""
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()

    def orders(self) -> Iterator[str]:
        """Lines as they come in; ends when the other side does."""
        for line in sys.stdin:
            yield line.strip()
