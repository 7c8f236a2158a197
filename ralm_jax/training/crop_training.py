"""Warm start: a contrastive retriever from independent crops of a corpus.

From a weak start distillation has nothing to sharpen: no retrieved passage
helps the reader. A short contrastive training on unlabelled crops (Contriever)
gives it something.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data import ragged
from ralm_jax.data.pretext import crops as crops_lib
from ralm_jax.data.pretext.crops import CropConfig
from ralm_jax.files import progress as progress_lib
from ralm_jax.losses import contrastive
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import Partitioner

PyTree = Any
# (batch rows, generator) -> ((tokens, mask) of queries, of passages).
PairSampler = Callable[
  [int, np.random.Generator], tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
]


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """How long and how.

  Attributes:
    steps: of training.
    batch_size: pairs; all others of the batch are negatives.
    query_length: retriever tokens of one crop.
    passage_length: of the other.
    temperature: of the contrastive loss, on inner products / sqrt(dim).
    query_crops: how the first crop of a pair is drawn, from the text.
    passage_crops: how the second is drawn, from title and text.
    symmetric: both sides of a pair look for each other.
    seed: of the pairs.
  """

  steps: int = 500
  batch_size: int = 128
  query_length: int = 32
  passage_length: int = 64
  temperature: float = 0.05
  query_crops: CropConfig = CropConfig()
  passage_crops: CropConfig = CropConfig()
  symmetric: bool = False
  seed: int = 0


class CropSampler:
  """Draws pairs of crops from the passages of a corpus."""

  def __init__(self, store: Any, config: WarmStartConfig):
    """Reads nothing yet.

    Args:
      store: a `corpus.PassageStore`.
      config: lengths and crops.
    """
    self._store = store
    self._config = config
    vocabulary = store.retriever_vocabulary
    self._prefix = [vocabulary.cls_id] if hasattr(vocabulary, 'cls_id') else []
    self._vocabulary = vocabulary

  def __call__(self, size: int, generator: np.random.Generator):
    config = self._config
    rows = generator.choice(len(self._store), size, replace=len(self._store) < size)
    text = self._store.tokens(rows, 'retriever_text')
    whole = ragged.concatenate([self._store.tokens(rows, 'retriever_title'), text])

    def side(tokens, crops: CropConfig, length: int):
      return crops_lib.frame(
        crops_lib.random_crops(tokens, crops, generator),
        length,
        prefix=self._prefix,
        suffix=[self._vocabulary.eos_id],
        pad_id=self._vocabulary.pad_id,
      )

    return (
      side(text, config.query_crops, config.query_length),
      side(whole, config.passage_crops, config.passage_length),
    )


def warm_start(
  model: RetrievalLM,
  params: PyTree,
  sampler: PairSampler,
  optimizer: Optimizer,
  config: WarmStartConfig,
  *,
  partitioner: Partitioner | None = None,
  checkpoints: Checkpoints | None = None,
  checkpoint_period: int = 1000,
  progress: bool = True,
) -> PyTree:
  """Trains the retriever's towers on pairs.

  Args:
    model: with the retriever.
    params: of the model, on the mesh; the reader's are not touched.
    sampler: draws the pairs; step i draws from a generator of (seed, i).
    optimizer: of the retriever.
    config: how long and how.
    partitioner: of the mesh; None takes all devices.
    checkpoints: where to save, and to resume from; None saves nothing.
    checkpoint_period: steps between checkpoints; the last step always saves.
    progress: show a progress bar.

  Returns:
    The parameters with a trained retriever.
  """
  if jax.process_count() > 1:
    raise ValueError(
      'The warm start runs on one process (with all its devices); start it without --multihost.'
    )
  partitioner = partitioner or Partitioner()
  transformation = optimizer.transformation
  if optimizer.clip_norm is not None:
    transformation = optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), transformation)

  def loss_fn(tower: PyTree, queries, passages):
    both = {'retriever': tower}
    loss, correct = contrastive.in_batch_contrastive(
      model.encode_queries(both, *queries),
      model.encode_passages(both, *passages),
      temperature=config.temperature,
      symmetric=config.symmetric,
    )
    return loss.mean, correct.mean

  def step(tower, opt_state, queries, passages):
    (loss, correct), grads = jax.value_and_grad(loss_fn, has_aux=True)(tower, queries, passages)
    updates, opt_state = transformation.update(grads, opt_state, tower)
    return optax.apply_updates(tower, updates), opt_state, loss, correct

  step_fn = partitioner.partition(step, donate_argnums=(0, 1))
  # Donation must not reach the caller's arrays.
  tower = jax.tree.map(jnp.copy, params['retriever'])
  # Under the mesh, so that every part of it can be restored onto the mesh.
  opt_state = partitioner.partition(transformation.init)(tower)
  opt_state = jax.tree.map(
    lambda x: x if x.ndim else jax.device_put(x, partitioner.replicated), opt_state
  )
  first = 0
  if checkpoints is not None and checkpoints.latest_step():
    first = checkpoints.latest_step()
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      {'params': {**params, 'retriever': tower}, 'opt_state': opt_state},
    )
    state = checkpoints.restore(first, abstract).state
    tower, opt_state = state['params']['retriever'], state['opt_state']
    logging.info('Warm start resumed from checkpoint_%d.', first)
  loss = correct = None
  bar = progress_lib.bar(
    range(first, config.steps),
    desc='warm start',
    unit=' steps',
    initial=first,
    total=config.steps,
    show=progress,
  )
  for index in bar:
    generator = np.random.default_rng((config.seed, index))
    pairs = sampler(config.batch_size, generator)
    tower, opt_state, loss, correct = step_fn(tower, opt_state, *partitioner.put_batch(pairs))
    if index % 50 == 0:
      bar.set_postfix(loss=f'{float(loss):.3f}', right=f'{float(correct):.2f}', refresh=False)
    done = index + 1
    if checkpoints is not None and (done % checkpoint_period == 0 or done == config.steps):
      state = {'params': {**params, 'retriever': tower}, 'opt_state': opt_state}
      checkpoints.save(done, state, {}, {'warm_start_steps': done})
  if checkpoints is not None:
    checkpoints.wait()
  if loss is not None:
    logging.info(
      'Warm start: loss %.3f, %.0f %% of the crops find their partner.',
      float(loss),
      100 * float(correct),
    )
  return {**params, 'retriever': tower}
