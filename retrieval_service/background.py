"""Long work beside searches that must not wait for it."""

from __future__ import annotations

from collections.abc import Callable
import concurrent.futures
import os
import sys
import threading
from typing import TypeVar

Answer = TypeVar('Answer')
_LOWEST = 19


def run(work: Callable[[], Answer], name: str = 'background') -> Answer:
  """Does the work in a fresh thread of lowest priority; raises what it raises.

  On Linux a priority belongs to a thread, and threads inherit it from the one that starts them:
  OpenMP's, which FAISS and its BLAS start at the first parallel loop of a thread, end with it and
  are lowly too. It can only be raised again by a privileged user, hence a fresh thread. Elsewhere
  the work is done at the usual priority.
  """

  def lower() -> None:
    if sys.platform == 'linux':
      os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)

  with concurrent.futures.ThreadPoolExecutor(1, name, initializer=lower) as pool:
    return pool.submit(work).result()
