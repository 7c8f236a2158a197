"""The first process leads the others in what they search together."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
from orbax.checkpoint import multihost as orbax_multihost

from ralm_jax.training.multihost import Agreement

# No two leads of a program may use the same names.
_numbers = itertools.count()


class State(NamedTuple):
  """What a search is answered from: a generation (0 for none) and its last edit."""

  generation: int
  edits: int


class Lead:
  """Passes the first process's state on, through the coordination service.

  Every process makes its leads, and calls them, in the same order.
  """

  def __init__(self, timeout_s: float = 3600.0):
    """A process waits so long for the first one, which may be reading a generation."""
    self.agreement = Agreement(timeout_s)
    self.leads = jax.process_index() == 0
    self._timeout_ms = int(timeout_s * 1000)
    self._client = orbax_multihost.get_jax_distributed_client()
    self._name = f'ralm_jax/device_index_{next(_numbers)}'
    self._count = 0

  def follow(self, state: State) -> State:
    """The first process's state, whichever is given."""
    self._count += 1
    key = f'{self._name}/{self._count}'
    if self.leads:
      self._client.key_value_set(key, f'{state.generation} {state.edits}')
      if self._count > 1:  # all have read the former one and agreed since
        self._client.key_value_delete(f'{self._name}/{self._count - 1}')
      return state
    found = self._client.blocking_key_value_get(key, self._timeout_ms)
    return State(*map(int, found.split()))
