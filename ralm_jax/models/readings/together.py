"""Reading all passages at once; a gold score of each teaches the retriever."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ralm_jax.decoding.stepper import Decoded
from ralm_jax.losses import sequence
from ralm_jax.losses.array_types import Array, Bool, Float, PyTree
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import fid, prediction
from ralm_jax.models.gold_passes import Passes
from ralm_jax.models.prediction import Passages
from ralm_jax.models.reader_and_retriever import ReaderAndRetriever
from ralm_jax.models.reader_batch import LossOutput, ReaderBatch
from ralm_jax.models.readings.reading import Randomness, Reading


class Together(Reading):
  """A subclass gives the logits of the target, and the passes behind the gold scores."""

  def forward(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, rng: Array | None
  ) -> tuple[Float[Array, 'b t v'], Callable[[], Passes]]:
    """Logits of the target, and what makes the passes that gold scores ask for.

    Those have what the logits took, where it is the same. `rng` is dropout's, None for none.
    """
    raise NotImplementedError

  def loss_weights(
    self, model: ReaderAndRetriever, batch: ReaderBatch
  ) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Target tokens, and what the gold score's loss counts."""
    tokens = jnp.sum(batch.target_mask.astype(jnp.float32))
    return tokens, model.teacher.loss_weight(batch)

  def loss(
    self,
    model: ReaderAndRetriever,
    params: PyTree,
    batch: ReaderBatch,
    randomness: Randomness,
    retriever_learns: Bool[Array, ''] | None,
  ) -> LossOutput:
    drops = randomness.reader is not None and fid.has_dropout(model.reader_config)
    logits, make_passes = self.forward(model, params, batch, randomness.reader if drops else None)
    reader_loss = sequence.cross_entropy(
      logits,
      batch.target_tokens,
      batch.target_mask,
      label_smoothing=model.label_smoothing,
      z_loss=model.z_loss,
    )
    metrics = {'accuracy': sequence.correct_tokens(logits, batch.target_tokens, batch.target_mask)}
    zero = jnp.zeros((), jnp.float32)
    if not model.distils:
      return LossOutput(reader_loss, WeightedSum(zero, zero), metrics)

    def distil() -> tuple[WeightedSum, dict[str, WeightedSum]]:
      return model.retriever_loss(
        batch,
        model.retriever_scores(params, batch, randomness.retriever),
        model.gold_scores(make_passes(), batch),
      )

    if retriever_learns is None:
      retriever_loss, retriever_metrics = distil()
    else:
      nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(distil))
      retriever_loss, retriever_metrics = jax.lax.cond(retriever_learns, distil, lambda: nothing)
    return LossOutput(reader_loss, retriever_loss, metrics | retriever_metrics)

  def predict(
    self, passages: Passages, *, log_prior: Array | None = None, rng: Array | None = None
  ) -> Decoded:
    return prediction.decode(passages.together(), passages.generation.options, rng)
