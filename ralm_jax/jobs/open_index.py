"""The index that evaluation jobs search: served once, in the state of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import logging
from typing import Any

from ralm_jax.jobs import search_time
from ralm_jax.jobs.config import Index, JobOptions
from ralm_jax.jobs.inputs import IndexState
from ralm_jax.retrieval import connect
from ralm_jax.retrieval.connect import Connection
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

  def arguments(self, index: Index | None, state: IndexState | None) -> dict[str, Any]:
    """Those of `eval.evaluate` that name an index in a state.

    Args:
      index: None for cells that search none.
      state: that the cell is of.
    """
    if index is None:
      return {}
    if index.backend == 'device':
      return {
        'index': index.path,
        'corpus': index.corpus,
        'backend': index.backend,
        'device_dtype': index.device_dtype,
      }
    connected = self._connect(index, state)
    return {
      'retrieval_address': connected.client.address,
      'corpus': str(connected.store.directory),
      'generation': searched_generation(index, state),
    }

  def milliseconds_a_query(
    self,
    opened: OpenedCheckpoint,
    index: Index | None,
    state: IndexState | None,
    questions: Sequence[str],
    k: int,
  ) -> float | None:
    """Median time of a search; None where there is no process to ask.

    Args:
      opened: whose encoder embeds the questions.
      index: as of `arguments`.
      state: as of `arguments`.
      questions: to search with.
      k: passages to find.
    """
    if index is None or index.backend == 'device' or not questions:
      return None
    client = self._connect(index, state).client
    try:
      return search_time.milliseconds_a_query(
        opened.spec,
        opened.partitioner,
        opened.params,
        client,
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
      own = (
        {}
        if index.path is None
        else {'nprobe': index.nprobe, 'rerank': index.rerank, 'threads': index.threads}
      )
      self._connected = self._stack.enter_context(
        connect.connect(
          index=index.path,
          address=index.retrieval_address,
          corpus=index.corpus,
          retry_for_s=self._options.retry_for_s,
          follow_swaps=True,
          **own,
        )
      )
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
  """Raises RuntimeError where answers are of another state of the index.

  Args:
    records: of predictions.jsonl.
    index: that was searched.
    state: what it was when the cell was begun.
    now: what it is at its end.
  """
  moved = (
    now.id != state.id
    or now.edits != state.edits
    or (index.path is None and now.generation != state.generation)
  )
  others = sorted(
    {
      f'{record.get("index")} generation {record.get("generation")}'
      for record in records
      if record.get('index') not in (None, '', state.id)
      or record.get('generation') not in (None, state.generation)
    }
  )
  if moved or others:
    found = f'; answers are from {", ".join(others)}' if others else ''
    raise RuntimeError(
      f'the index changed meanwhile, from {state} to {now}{found}; start '
      'again, or set JobOptions.follow_index'
    )
