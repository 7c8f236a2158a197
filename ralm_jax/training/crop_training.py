"""Warm start: a contrastive retriever from independent crops of a corpus.

From a weak start distillation has nothing to sharpen: no retrieved passage helps the reader. A
short contrastive training on unlabelled crops (Contriever) gives it something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ralm_jax.checkpoints.store import WARM_START, Checkpoints
from ralm_jax.data import ragged
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.pretext import crops as crops_lib
from ralm_jax.data.pretext.crops import CropConfig
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.files import progress as progress_lib
from ralm_jax.losses import contrastive, option_types
from ralm_jax.losses.array_types import Array, Bool, Int, PyTree
from ralm_jax.losses.option_types import Count, Positive, Seed
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.skipping import SkippedSteps

# Tokens and their mask.
Texts = tuple[Int[np.ndarray, 'b p'], Bool[np.ndarray, 'b p']]
OnDevice = tuple[Int[Array, 'b p'], Bool[Array, 'b p']]
# (batch rows, generator) -> queries, passages.
PairSampler = Callable[[int, np.random.Generator], tuple[Texts, Texts]]


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """How long and how."""

  steps: Count = 500
  batch_size: Count = 128  #: pairs; all others of the batch are negatives
  query_length: Count = 32  #: retriever tokens of one crop
  passage_length: Count = 64  #: of the other
  temperature: Positive = 0.05  #: of the contrastive loss, on inner products / sqrt(dim)
  query_crops: CropConfig = CropConfig()  #: the first crop of a pair, of the text
  passage_crops: CropConfig = CropConfig()  #: the second, of title and text
  symmetric: bool = False  #: both sides of a pair look for each other
  #: It stops when so many steps in a row have been skipped, since they were not finite; None never.
  max_skipped_steps: Count | None = 20
  seed: Seed = 0  #: of the pairs

  def __post_init__(self):
    option_types.check_fields(self)


class CropSampler:
  """Draws pairs of crops from the passages of a corpus."""

  def __init__(self, store: PassageStore, config: WarmStartConfig):
    self._store = store
    self._config = config
    vocabulary = store.retriever_vocabulary
    self._prefix = [vocabulary.cls_id] if hasattr(vocabulary, 'cls_id') else []
    self._vocabulary = vocabulary

  def __call__(self, size: int, generator: np.random.Generator) -> tuple[Texts, Texts]:
    config = self._config
    rows = generator.choice(len(self._store), size, replace=len(self._store) < size)
    text = self._store.tokens(rows, 'retriever_text')
    whole = ragged.concatenate([self._store.tokens(rows, 'retriever_title'), text])

    def side(tokens: RaggedTokens, crops: CropConfig, length: int) -> Texts:
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
  metadata: Mapping[str, Any] | None = None,
  progress: bool = True,
) -> PyTree:
  """Trains the retriever's towers, the reader untouched; step i draws from (seed, i).

  `metadata` is kept in every checkpoint. ValueError where that of the newest one is another.
  """
  if jax.process_count() > 1:
    raise ValueError(
      'The warm start runs on one process (with all its devices); start it without --multihost.'
    )
  partitioner = partitioner or Partitioner()
  transformation = optimizer.transformation
  if optimizer.clip_norm is not None:
    transformation = optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), transformation)
  step_fn = partitioner.partition(_make_step(model, transformation, config), donate_argnums=(0, 1))
  # Donation must not reach the caller's arrays.
  tower = jax.tree.map(jnp.copy, params['retriever'])
  # Under the mesh, so that every part of it can be restored onto the mesh.
  opt_state = partitioner.partition(transformation.init)(tower)
  opt_state = jax.tree.map(
    lambda x: x if x.ndim else jax.device_put(x, partitioner.replicated), opt_state
  )

  def state() -> dict[str, PyTree]:
    return {'params': {**params, 'retriever': tower}, 'opt_state': opt_state}

  first = (checkpoints.latest_step() or 0) if checkpoints is not None else 0
  if checkpoints is not None and first:
    check_same(checkpoints, first, config, metadata)
    restored = _restore(checkpoints, first, state())
    tower, opt_state = restored['params']['retriever'], restored['opt_state']
  loss = correct = jnp.zeros(())
  count, skipped = jnp.zeros((), jnp.int32), SkippedSteps(config.max_skipped_steps)
  steps = range(first, config.steps)
  bar = progress_lib.bar(
    steps, desc='warm start', unit=' steps', initial=first, total=config.steps, show=progress
  )
  for index in bar:
    pairs = sampler(config.batch_size, np.random.default_rng((config.seed, index)))
    tower, opt_state, count, loss, correct = step_fn(
      tower, opt_state, count, *partitioner.put_batch(pairs)
    )
    skipped.add(index + 1, count)
    if index % 50 == 0:
      bar.set_postfix(loss=f'{float(loss):.3f}', right=f'{float(correct):.2f}', refresh=False)
    done = index + 1
    due = done == config.steps or done % checkpoint_period == 0 and not skipped.settle()
    if checkpoints is not None and due:
      skipped.settle()
      checkpoints.save(done, state(), {}, _about(config, metadata, done))
  if checkpoints is not None:
    checkpoints.wait()
  skipped.report(len(steps))
  if steps:
    share = f'{100 * float(correct):.0f} %'
    logging.info('Warm start: loss %.3f, %s of the crops find their partner.', float(loss), share)
  return state()['params']


def check_same(
  checkpoints: Checkpoints,
  step: int,
  config: WarmStartConfig,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """Raises ValueError where a checkpoint is of other pairs, or of no warm start."""
  checkpoints.check_metadata(step, _about(config, metadata, step))


def _about(
  config: WarmStartConfig, metadata: Mapping[str, Any] | None, step: int
) -> dict[str, Any]:
  own = {'seed': config.seed, 'batch_size': config.batch_size, WARM_START: step}
  return {**own, **(metadata or {})}


def _make_step(
  model: RetrievalLM, transformation: optax.GradientTransformation, config: WarmStartConfig
) -> Callable[..., tuple[PyTree, PyTree, Array, Array, Array]]:
  """(tower, opt_state, skipped, queries, passages) -> the new ones, loss, share that is right.

  A step that is not finite changes nothing and counts as skipped.
  """

  def loss_fn(tower: PyTree, queries: OnDevice, passages: OnDevice) -> tuple[Array, Array]:
    both = {'retriever': tower}
    loss, correct = contrastive.in_batch_contrastive(
      model.encode_queries(both, *queries),
      model.encode_passages(both, *passages),
      temperature=config.temperature,
      symmetric=config.symmetric,
    )
    return loss.mean, correct.mean

  def step(tower: PyTree, opt_state: PyTree, skipped: Array, queries: OnDevice, passages: OnDevice):
    (loss, correct), grads = jax.value_and_grad(loss_fn, has_aux=True)(tower, queries, passages)
    updates, moved = transformation.update(grads, opt_state, tower)
    moved = (optax.apply_updates(tower, updates), moved)
    finite = jnp.isfinite(loss)
    for leaf in jax.tree.leaves((grads, moved[0])):
      finite &= jnp.all(jnp.isfinite(leaf))
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, (tower, opt_state))
    return *kept, skipped + ~finite, loss, correct

  return step


def _restore(checkpoints: Checkpoints, step: int, state: PyTree) -> PyTree:
  """The state of a checkpoint, laid out as this one."""
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  logging.info('Warm start resumed from checkpoint_%d.', step)
  return checkpoints.restore(step, abstract).state
