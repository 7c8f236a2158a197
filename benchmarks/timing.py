"""Timing two ways of doing one thing, side by side."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import os
import statistics
import time


@dataclasses.dataclass(frozen=True)
class Seconds:
  """Median seconds of a call: on the clock, and of CPU over all threads.

  On a machine that others use, CPU seconds on one core (`use_cores(1)`) are the
  steadier of the two; on several cores they include threads that spin.
  """

  wall: float
  cpu: float


def use_cores(count: int | None) -> None:
  """Keeps this process on its first `count` cores; before JAX and torch start."""
  if count is not None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def compare(
  sides: dict[str, Callable[[], object]], *, repetitions: int, warm_up: int = 1, pause: float = 0.25
) -> dict[str, Seconds]:
  """Times a call of each side.

  Calls alternate, so that whatever else the machine does slows all sides, and
  every other round runs backwards. Between calls the process pauses, since
  idle threads of one library may spin for a while and take cores from the
  other.

  Args:
    sides: name to a function that returns once its work is done.
    repetitions: timed calls of each.
    warm_up: calls of each that are not timed.
    pause: seconds between calls.
  """
  wall: dict[str, list[float]] = {name: [] for name in sides}
  cpu: dict[str, list[float]] = {name: [] for name in sides}
  for round_number in range(-warm_up, repetitions):
    names = list(sides)
    if round_number % 2:
      names.reverse()
    for name in names:
      time.sleep(pause)
      start, cpu_start = time.perf_counter(), time.process_time()
      sides[name]()
      if round_number >= 0:
        wall[name].append(time.perf_counter() - start)
        cpu[name].append(time.process_time() - cpu_start)
  return {
    name: Seconds(statistics.median(wall[name]), statistics.median(cpu[name])) for name in sides
  }
