"""Agreement between processes that does not pass through the devices.

A host whose search has finally failed must not leave the others waiting in a
collective. Before each step all processes therefore meet at a barrier of the
coordination service, and each learns of any other's failure.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import itertools

import jax
from orbax.checkpoint import multihost

_FAILURES = 'ralm_jax/failure/'
# No two agreements of a program may meet at a barrier of the same name.
_numbers = itertools.count()


class Agreement:
  """Agreement on success; nothing at all on a single process.

  Every process makes its agreements, and calls them, in the same order.
  """

  def __init__(self, timeout_s: float = 3600.0):
    """`timeout_s` bounds a step's barrier; it must exceed the retrieval client's own retries."""
    self._timeout_ms = int(timeout_s * 1000)
    self._name = f'ralm_jax/agreement_{next(_numbers)}'
    self._count = 0
    self._client = multihost.get_jax_distributed_client() if jax.process_count() > 1 else None

  def check(self, error: BaseException | None) -> None:
    """Meets the other processes; raises where any of them failed.

    On the process that has `error` that is raised, on all others a RuntimeError with its message.
    """
    if self._client is None:
      if error is not None:
        raise error
      return
    if error is not None:
      message = f'{type(error).__name__}: {error}'
      self._client.key_value_set(f'{_FAILURES}{jax.process_index()}', message, allow_overwrite=True)
    self._count += 1
    self._client.wait_at_barrier(f'{self._name}/{self._count}', self._timeout_ms)
    failures = self._client.key_value_dir_get(_FAILURES)
    if error is not None:
      raise error
    if failures:
      key, message = failures[0]
      raise RuntimeError(
        f'Process {key.rsplit("/", 1)[-1]} failed, so all processes stop: {message}'
      )

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """Runs a block that each process may fail in alone; then `check`s."""
    failure = None
    try:
      yield
    except Exception as e:
      failure = e
    self.check(failure)
