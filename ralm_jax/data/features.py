"""seqio feature converter: retrieval-augmented tasks to QueryBatch arrays."""
from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf

from ralm_jax.data import dates

# What an example says of passages, as scalars, which nothing can trim: lists
# of ids as JSON, '' for none, and the bound as in `QueryBatch.max_dates`. They
# are rows of no corpus yet, so that a task can be cached.
PASSAGE_FEATURES: Mapping[str, tf.Tensor] = {
    'exclude_ids': tf.constant(''),
    'gold_ids': tf.constant(''),
    'max_date': tf.constant(dates.NO_DATE_BOUND, tf.int32),
}


class RetrievalFeatureConverter(seqio.FeatureConverter):
  """Pads `query`, `reader_query` and `targets`; nothing else is needed.

  Passages are no feature: they depend on the retriever's parameters and are
  found between the iterator and the step. A task may have `PASSAGE_FEATURES`,
  too; where it has none, nothing is excluded.
  """

  TASK_FEATURES = {
      'query': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
      'reader_query': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
      'targets': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
  }
  MODEL_FEATURES = {
      'query_tokens': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
      'reader_query_tokens': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
      'target_tokens': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
      **{
          name: seqio.FeatureConverter.FeatureSpec(dtype=value.dtype, rank=0)
          for name, value in PASSAGE_FEATURES.items()
      },
  }
  PACKING_FEATURE_DTYPES = None
  _NAMES = {
      'query': 'query_tokens',
      'reader_query': 'reader_query_tokens',
      'targets': 'target_tokens',
  }

  def _convert_features(
      self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Pads to the static lengths and renames."""
    return self._pack_or_pad(ds, task_feature_lengths).map(
        lambda features: {
            **{
                model: features[task] for task, model in self._NAMES.items()
            },
            **{
                name: features.get(name, default)
                for name, default in PASSAGE_FEATURES.items()
            },
        },
        num_parallel_calls=tf.data.AUTOTUNE,
    )

  def get_model_feature_lengths(
      self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """The lengths under the model's names."""
    return {
        **{
            model: task_feature_lengths[task]
            for task, model in self._NAMES.items()
        },
        **dict.fromkeys(PASSAGE_FEATURES, 1),  # Scalars: not looked at.
    }
