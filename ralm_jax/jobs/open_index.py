"""The index that evaluation jobs search: served once, in the state of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import logging
from typing import Any

from ralm_jax.evaluation import option_fields
from ralm_jax.jobs import search_time
from ralm_jax.jobs.config import Index, JobOptions
from ralm_jax.jobs.inputs import IndexState
from ralm_jax.retrieval import connect
from ralm_jax.retrieval.connect import Connection
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs.opening import OpenedCheckpoint


class OpenIndex:
  """Stays open until another index is asked for, or the folder has moved on."""

  def __init__(self, options: JobOptions):
    """Opens nothing yet."""
    self._options = options
    self._stack = contextlib.ExitStack()
    self._key: Any = None
    self._connected: Connection | None = None

  def close(self) -> None:
    self._key = self._connected = None
    self._stack.close()

  def source(self, index: Index | None, state: IndexState | None) -> IndexSource | None:
    """Where to search an index in the state that a cell is of; None for none."""
    if index is None or state is None:
      return None
    if index.backend == 'device':
      return option_fields.fill(IndexSource, vars(index))
    connected = self._connect(index, state)
    return IndexSource(
      address=connected.client.address,
      corpus=str(connected.store.directory),
      generation=searched_generation(index, state),
      retry_for_s=self._options.retry_for_s,
    )

  def milliseconds_a_query(
    self,
    opened: OpenedCheckpoint,
    index: Index | None,
    state: IndexState | None,
    questions: Sequence[str],
    k: int,
  ) -> float | None:
    """Median time of finding k passages; None where there is no process to ask."""
    if index is None or state is None or index.backend == 'device' or not questions:
      return None
    try:
      return search_time.milliseconds_a_query(
        opened,
        self._connect(index, state).client,
        questions,
        k=k,
        batch_size=self._options.batch_size,
        generation=searched_generation(index, state),
      )
    except (ValueError, LookupError) as error:
      logging.warning('The search is not timed: %s', error)
      return None

  def _connect(self, index: Index, state: IndexState) -> Connection:
    key = (index,) if index.path is None else (index, state.id, state.generation)
    if self._connected is None or self._key != key:
      self.close()
      source = dataclasses.replace(index, retry_for_s=self._options.retry_for_s)
      self._connected = self._stack.enter_context(connect.connect(source, follow_swaps=True))
      self._key = key
    return self._connected


def searched_generation(index: Index, state: IndexState) -> int | None:
  """The one that is asked for by its number; None asks for whatever is current.

  Our own process could serve an older one than the folder has now, or a newer
  one than the cell is of.
  """
  return index.generation if index.path is None else state.generation


def check_answers(
  records: Sequence[Mapping[str, Any]], index: Index, state: IndexState, now: IndexState
) -> None:
  """Raises RuntimeError where answers are not of the state that the cell was begun with."""
  moved = (
    now.id != state.id
    or now.edits != state.edits
    or (index.path is None and now.generation != state.generation)
  )
  answered = {(record.get('index'), record.get('generation')) for record in records}
  others = sorted(
    f'{index} generation {generation}'
    for index, generation in answered
    if index not in (None, '', state.id) or generation not in (None, state.generation)
  )
  if moved or others:
    found = f'; answers are from {", ".join(others)}' if others else ''
    raise RuntimeError(
      f'the index changed meanwhile, from {state} to {now}{found}; start again, or set '
      'JobOptions.follow_index'
    )
