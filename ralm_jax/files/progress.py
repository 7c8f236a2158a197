"""Progress bars that suit a terminal and a log file alike."""

from __future__ import annotations

from collections.abc import Iterable
import sys
from typing import Any

import tqdm

_LOG_PERIOD_S = 30.0


def bar(iterable: Iterable[Any] | None = None, *, show: bool = True, **kwargs: Any) -> tqdm.tqdm:
  """A tqdm bar with rate and time left; in a log, a line every 30 seconds.

  Without an iterable, call `update`. Further arguments are tqdm's.
  """
  terminal = sys.stderr.isatty()
  return tqdm.tqdm(
    iterable,
    disable=not show,
    mininterval=0.1 if terminal else _LOG_PERIOD_S,
    maxinterval=10.0 if terminal else _LOG_PERIOD_S,
    **kwargs,
  )
