"""seqio feature converter: retrieval-augmented tasks to QueryBatch arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from ralm_jax.data import dates

# What an example says of passages, as scalars, which nothing can trim: lists of ids and of names of
# documents (`Passage.source_document`) as JSON, '' for none, and the bound as in
# `QueryBatch.max_dates`. They are rows of no corpus yet, so that a task can be cached.
PASSAGE_FEATURES: Mapping[str, Any] = {
  'exclude_ids': tf.constant(''),
  'exclude_documents': tf.constant(''),
  'gold_ids': tf.constant(''),
  'max_date': tf.constant(dates.NO_DATE_BOUND, tf.int32),
}


def with_passage_features(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """An example that has all of `PASSAGE_FEATURES`, by default saying nothing."""
  return {**PASSAGE_FEATURES, **example}


class TokenIds(seqio.PassThroughVocabulary):
  """Ids of one of our vocabularies, for a feature that holds nothing else."""

  def __init__(self, size: int, eos_id: int, pad_id: int):
    """`pad_id` fills arrays; seqio's own vocabularies know only 0."""
    self._pad_id = pad_id
    super().__init__(size, eos_id)

  @property
  def pad_id(self) -> int:
    return self._pad_id

  def __eq__(self, other: object) -> bool:
    same = isinstance(other, TokenIds) and self.pad_id == other.pad_id
    return same and super().__eq__(other)

  def __str__(self) -> str:
    return f'TokenIds(size={self.size}, eos_id={self.eos_id}, pad_id={self.pad_id})'


class RetrievalFeatureConverter(seqio.FeatureConverter):
  """Pads `query`, `reader_query` and `targets`; nothing else is needed.

  Passages are no feature: they depend on the retriever, and are found between iterator and step.
  `PASSAGE_FEATURES` are optional; without them nothing is excluded.
  """

  _NAMES = {
    'query': 'query_tokens',
    'reader_query': 'reader_query_tokens',
    'targets': 'target_tokens',
  }
  TASK_FEATURES = dict.fromkeys(_NAMES, seqio.FeatureConverter.FeatureSpec(dtype=tf.int32))
  MODEL_FEATURES = {
    **dict.fromkeys(_NAMES.values(), seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)),
    **{
      name: seqio.FeatureConverter.FeatureSpec(dtype=value.dtype, rank=0)
      for name, value in PASSAGE_FEATURES.items()
    },
  }
  PACKING_FEATURE_DTYPES = None

  def __init__(self, pack: bool = False, *, pad_ids: Mapping[str, int] | None = None, **options):
    """Sets what fills arrays, 0 by default; ValueError where examples are to be packed."""
    super().__init__(pack=pack, **options)
    self._pad_ids = dict(pad_ids or {})

  def _pad(self, name: str, ids: tf.Tensor, length: int) -> tf.Tensor:
    ids = ids[:length]
    padded = tf.pad(
      ids, [(0, length - tf.shape(ids)[0])], constant_values=self._pad_ids.get(name, 0)
    )
    return tf.ensure_shape(padded, [length])

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Pads to the static lengths and renames."""
    return ds.map(
      lambda features: {
        **{
          model: self._pad(task, features[task], task_feature_lengths[task])
          for task, model in self._NAMES.items()
        },
        **{name: features.get(name, default) for name, default in PASSAGE_FEATURES.items()},
      },
      num_parallel_calls=tf.data.AUTOTUNE,
    )

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    return {
      **{model: task_feature_lengths[task] for task, model in self._NAMES.items()},
      **dict.fromkeys(PASSAGE_FEATURES, 1),  # Scalars: not looked at.
    }
