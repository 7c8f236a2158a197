"""Which generations of an index a run needs, and keeps on disk."""
from __future__ import annotations

from collections.abc import Callable
import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from ralm_jax.retrieval import retriever as retriever_lib
from ralm_jax.training import checkpoints as checkpoints_lib


def stay_with_generation(
    retriever: retriever_lib.PassageRetriever,
    generation: int | None,
    model_dir: str,
) -> None:
  """Searches one generation from now on, whichever becomes current.

  Args:
    retriever: of the run.
    generation: that of the checkpoint; None takes the current one, and keeps it
      on disk until a first checkpoint names it.
    model_dir: names the run.
  """
  if generation is None:
    generation = retriever.client.status().generation
    if jax.process_count() > 1:
      generation = int(multihost_utils.broadcast_one_to_all(
          np.asarray(generation, np.int32)))
    if jax.process_index() == 0:
      retriever.client.pin(os.path.abspath(model_dir), [generation])
  retriever.generation = generation


def pinner(
    checkpoints: checkpoints_lib.Checkpoints,
    retriever: retriever_lib.PassageRetriever | None,
    model_dir: str,
) -> Callable[[int, int], None] | None:
  """Keeps every generation on disk that a kept checkpoint names.

  Every process calls it, since reading a checkpoint is an act of all.
  """
  if retriever is None:
    return None
  owner = os.path.abspath(model_dir)
  generations: dict[int, int] = {}

  def pin(step: int, generation: int) -> None:
    generations[step] = generation
    for kept in checkpoints.steps():
      if kept not in generations:
        generations[kept] = checkpoints.metadata(kept)['generation']
    wanted = {generations[kept] for kept in (*checkpoints.steps(), step)}
    if jax.process_index() == 0:
      retriever.client.pin(owner, sorted(wanted))

  return pin
