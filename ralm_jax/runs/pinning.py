"""Which generations of an index a run needs, and keeps on disk."""

from __future__ import annotations

import logging
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.retrieval.publisher import STARTED_WITH
from ralm_jax.training.multihost import Agreement


class Pins:
  """Keeps every generation on disk that a start of the run may go back to.

  These are those of the kept checkpoints. Until a checkpoint stands on the disk, it is the one the
  run began with too: a run that is killed before it begins anew with that, whatever it has
  published meanwhile. They stay pinned when the run has ended, for more steps.

  Every process makes the same calls, and learns when another's fail.
  """

  def __init__(self, client: Any, checkpoints: Checkpoints, model_dir: str | os.PathLike[str]):
    self._client = client
    self._checkpoints = checkpoints
    self._owner = os.path.abspath(model_dir)
    self._run = os.path.realpath(model_dir)
    self._agreement = Agreement()
    self._of_step: dict[int, int] = {}
    # Besides those of the checkpoints, since the last one and the one before.
    self._recent: list[set[int]] = [set(), set()]
    self.started_with = 0

  def begin(self, generation: int | None) -> int:
    """The generation to search: the checkpoint's, which must still exist; for None the current."""
    with self._agreement.together():
      status = self._client.status()
      if generation is not None and generation not in status.generations:
        raise LookupError(
          f'The checkpoint was made with generation {generation} of the index in '
          f'{status.index_directory}, which holds {status.generations} alone. To go on with '
          'whatever it serves: RetrievalConfig.follow_current = True (gin: FOLLOW_CURRENT).'
        )
    if generation is None:
      generation = self._start(status)
      if jax.process_count() > 1:
        generation = int(multihost_utils.broadcast_one_to_all(np.asarray(generation, np.int32)))
      self.started_with = generation
    else:
      own = status.metadata.get('run') == self._run
      self.started_with = status.metadata.get(STARTED_WITH, generation) if own else generation
    self.add(generation)
    return generation

  def _start(self, status: Any) -> int:
    """The current generation, or the one before this run's own ones."""
    if status.metadata.get('run') == self._run:
      started_with = status.metadata.get(STARTED_WITH)
      if started_with in status.generations:
        logging.info(
          f'Generation {status.generation} of the index is a refresh of this run, which begins '
          f'anew: with generation {started_with}, as it did.'
        )
        return started_with
    return status.generation

  def add(self, generation: int) -> None:
    """Also keeps a generation that no checkpoint names yet."""
    self._recent[-1].add(generation)
    self._pin()

  def at_checkpoint(self, step: int, generation: int) -> None:
    """A checkpoint is being written."""
    self._of_step[step] = generation
    # Until it is on disk, the older ones and what came since are needed.
    self._recent = [self._recent[-1], {generation}]
    self._pin()

  def end(self) -> None:
    """All checkpoints are on disk: keeps what they name and no more."""
    self._recent = [set(), set()]
    self._pin()

  def _pin(self) -> None:
    with self._agreement.together():
      kept = self._checkpoints.steps()
      for step in kept:
        if step not in self._of_step:
          metadata = self._checkpoints.metadata(step)
          self._of_step[step] = metadata['generation']
      wanted = {self._of_step[step] for step in kept}.union(*self._recent)
      if jax.process_index() == 0:
        # A run that followed others' generations pinned none: those of its
        # older checkpoints may be gone.
        gone = wanted.difference(self._client.status().generations)
        self._client.pin(self._owner, sorted(wanted - gone.difference(*self._recent)))
