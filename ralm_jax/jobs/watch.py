"""Following the checkpoints of a run that is being trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import time

_CHECKPOINT = re.compile(r'checkpoint_(\d+)')


@dataclasses.dataclass(frozen=True)
class NewCheckpoint:
  """A whole checkpoint."""

  path: str  # MODEL_DIR/checkpoint_<step>
  step: int


def follow(
  run: str | os.PathLike[str],
  *,
  until_step: int | None = None,
  idle_s: float | None = None,
  poll_s: float = 10.0,
  sleep: Callable[[float], None] = time.sleep,
) -> Iterator[NewCheckpoint]:
  """Each checkpoint of a MODEL_DIR once, in the order of steps, those there are first.

  One that the run removes before its turn is passed over; one that is replaced (the run
  began anew) comes again. It ends with the first checkpoint of `until_step` or later (by
  default the last step of the run's own configuration, once it is known), or when nothing
  new has come for `idle_s`; None waits for ever. Between looks it sleeps `poll_s`.
  """
  if poll_s <= 0 or (idle_s is not None and idle_s < 0):
    raise ValueError(f'poll_s must be above 0 and idle_s not below, got {poll_s} and {idle_s}.')
  run = os.path.abspath(os.fspath(run))
  seen: dict[int, tuple[int, ...]] = {}
  said = ''
  waited_s = 0.0
  while True:
    found = _steps(run)
    # What was removed and is there again is another checkpoint.
    seen = {step: folder for step, folder in seen.items() if step in found}
    new = sorted(step for step in found if seen.get(step) != found[step])
    for step in new:
      seen[step] = found[step]
      path = os.path.join(run, f'checkpoint_{step}')
      if os.path.isdir(path):
        yield NewCheckpoint(path, step)
        last = until_step if until_step is not None else last_step(run)
        if last is not None and step >= last:
          return
      waited_s = 0.0
    if new:
      continue  # more may have come while the caller was at those
    # Of a run that has said only now where it ends.
    last = until_step if until_step is not None else last_step(run)
    if last is not None and any(step >= last for step in seen):
      return
    if idle_s is not None and waited_s >= idle_s:
      logging.info('Nothing new in %s for %.0f s.', run, waited_s)
      return
    which = f'checkpoint after {max(seen)}' if seen else 'first checkpoint'
    message = f'Waiting for a {which} in {run}.'
    if message != said:
      logging.info('%s', message)
      said = message
    sleep(poll_s)
    waited_s += poll_s


def last_step(run: str | os.PathLike[str]) -> int | None:
  """The step at which a run ends by its `config.gin`; None where not known."""
  try:
    text = pathlib.Path(run, 'config.gin').read_text('utf-8')
  except FileNotFoundError:
    return None
  match = re.search(r'^(?:\w+\.)*train\.total_steps = (%?\w+)$', text, re.M)
  if match is None:
    return None
  value = match[1]
  if value.startswith('%'):
    bound = re.search(rf'^{value[1:]} = (\w+)$', text, re.M)
    value = bound[1] if bound else ''
  return int(value) if value.isdecimal() else None


def _steps(run: str) -> dict[int, tuple[int, ...]]:
  """Steps of the checkpoints, with what tells a folder from its successor."""
  steps: dict[int, tuple[int, ...]] = {}
  with contextlib.suppress(FileNotFoundError), os.scandir(run) as entries:
    for entry in entries:
      match = _CHECKPOINT.fullmatch(entry.name)
      if match:
        with contextlib.suppress(FileNotFoundError):
          stat = os.stat(entry.path)
          steps[int(match[1])] = (stat.st_dev, stat.st_ino, stat.st_mtime_ns)
  return steps
