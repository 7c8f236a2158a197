"""Passages to pretext examples, many at a time: what `language_modeling` is of.

A row of the corpus becomes a prepared passage (`prepare_in_batches`), which
seqio may cache, and that with a seed an example (`make_in_batches`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio
import tensorflow as tf

from ralm_jax.data import features
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.pretext import objectives
from ralm_jax.data.pretext.objectives import Objective, PretextTokenizer, Source
from ralm_jax.data.ragged import RaggedTokens

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int

# Rows that a call into Python does at once.
BATCH = 64
# Of a prepared passage, all strings: those that exclude are JSON, `prepared` the
# bytes of little-endian int32, since sequences are slow to batch, and `made_by`
# tells what can be read out of a cache from what cannot.
COLUMNS = ('exclude_ids', 'exclude_documents', 'title', 'section', 'text', 'prepared', 'made_by')
_INT32 = np.dtype('<i4')


class PassageRows(seqio.DataSource):
  """Rows of a corpus: every passage as it is now, once an epoch.

  Shuffled by a permutation of the whole corpus that takes no memory, another
  one in every epoch; shares of processes are apart and leave nothing out.
  """

  def __init__(self, store: PassageStore, rows_per_shard: int = 65_536):
    """Reads which passages were replaced; `rows_per_shard` is for one worker of Beam."""
    self._size, self._rows = len(store), None
    self._directory = store.directory
    superseded = store.superseded()
    if len(superseded):
      self._rows = np.setdiff1d(np.arange(self._size), superseded)
      self._size = len(self._rows)
    self._shards = max(1, -(-self._size // rows_per_shard))
    super().__init__(splits=('train',), num_input_examples={'train': self._size})

  def rows(self, positions: Int[np.ndarray, ' n'] | None) -> Int[np.ndarray, ' n']:
    """Rows at positions; all of them for None."""
    if positions is None:
      positions = np.arange(self._size)
    return positions if self._rows is None else self._rows[positions]

  def chunks(self) -> Iterable[np.ndarray]:
    """All rows, some at a time."""
    for start in range(0, self._size, 1024):
      yield self.rows(np.arange(start, min(start + 1024, self._size)))

  def __str__(self) -> str:
    return f'PassageRows({str(self._directory)!r})'

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    return [f'{split}-{i:05d}' for i in range(self._shards)]

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused,
  ) -> tf.data.Dataset:
    """Examples of one int64, `row`, a position for `rows`."""
    del split, unused
    share = shard_info or seqio.ShardInfo(0, 1)
    in_order = tf.data.Dataset.range(share.index, self._size, share.num_shards).batch(BATCH)
    if not shuffle:
      return in_order.map(lambda batch: {'row': batch}).unbatch()
    last = tf.constant(self._size - 1, tf.int64)

    def shuffled(key: tf.Tensor) -> tf.data.Dataset:
      return in_order.map(
        lambda batch: {'row': tf.random.experimental.index_shuffle(batch, key, last)}
      ).unbatch()

    # A key an epoch, the same in all processes.
    return (
      tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
      .batch(2, drop_remainder=True)
      .take(1)
      .flat_map(shuffled)
    )


@dataclasses.dataclass(frozen=True)
class Passages:
  """Passages to make examples of.

  Those are excluded whose ids in the corpus, or whose documents' names there,
  are given; '' where there is none. Tokens are the reader's, where they are known.
  """

  excluded: Sequence[str]
  sources: Sequence[Source]
  tokens: RaggedTokens | None = None
  documents: Sequence[str] | None = None


class ExampleMaker:
  """An objective on many passages at a time. NumPy only."""

  def __init__(
    self, objective: Objective, tokenizer: PretextTokenizer, min_words: int, origin: str
  ):
    """Checks the objective; the origin of the passages is for the caches made of them.

    Raises ValueError where the objective needs something else.
    """
    objective.check(tokenizer)
    self._objective, self._tokenizer = objective, tokenizer
    self._min_words = max(1, min_words)
    vocabularies = (tokenizer.reader.vocabulary, tokenizer.retriever.vocabulary)
    fingerprints = (vocabulary.fingerprint for vocabulary in vocabularies)
    decides = [described(objective), origin, *fingerprints, str(self._min_words)]
    self._made_by = hashlib.sha256('\n'.join(decides).encode()).hexdigest()[:16].encode()

  def prepare(self, passages: Passages) -> tuple[np.ndarray, ...]:
    """`COLUMNS` of what makes an example, bytes: what is the same in every epoch."""
    kept = []
    for index, source in enumerate(passages.sources):
      if objectives.word_count(source.text) < self._min_words:
        continue
      tokens = None if passages.tokens is None else passages.tokens[index]
      prepared = self._objective.prepare(source, self._tokenizer, tokens)
      if prepared is None:
        continue
      names = (passages.excluded[index], passages.documents[index] if passages.documents else '')
      excluded = (json.dumps([name]).encode() if name else b'' for name in names)
      texts = (text.encode() for text in (source.title, source.section, source.text))
      kept.append((*excluded, *texts, np.asarray(prepared, _INT32).tobytes(), self._made_by))
    result = np.empty((len(COLUMNS), len(kept)), object)
    for index, row in enumerate(kept):
      result[:, index] = row
    return tuple(result)

  def make(
    self, columns: Sequence[np.ndarray], seeds: Int[np.ndarray, 'n 2']
  ) -> tuple[RaggedTokens, ...]:
    """`query`, `reader_query` and `targets` of n passages, each by its own seed alone.

    Raises ValueError where the passages were prepared for something else.
    """
    if any(made_by != self._made_by for made_by in columns[-1]):
      raise ValueError(
        "The task's cache was written for another objective, corpus or data set, vocabulary or "
        f'min_words than {described(self._objective)} now has: cache the task again '
        '(seqio_cache_tasks --overwrite), or give the tasks different names.'
      )
    examples = []
    keys = seeds.astype(np.int64).astype(np.uint64)
    for key, (title, section, text, prepared) in zip(keys, zip(*columns[2:-1])):
      source = Source(title.decode(), section.decode(), text.decode())
      tokens = np.frombuffer(prepared, _INT32)
      generator = np.random.Generator(np.random.Philox(key=key))
      examples.append(self._objective.example(source, tokens, self._tokenizer, generator))
    return tuple(
      RaggedTokens.from_lists([getattr(e, name) for e in examples])
      for name in ('query', 'reader_query', 'target')
    )


def described(value: Any) -> str:
  """As `repr`, but the same in every process: functions by their names."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    names = [field.name for field in dataclasses.fields(value)]
    fields = ', '.join(f'{name}={described(getattr(value, name))}' for name in names)
    return f'{type(value).__qualname__}({fields})'
  if isinstance(value, functools.partial):
    parts = (value.func, *value.args, *value.keywords.items())
    return f'partial({", ".join(map(described, parts))})'
  if isinstance(value, types.MethodType):
    return f'{described(value.__self__)}.{value.__name__}'
  if isinstance(value, (tuple, list)):
    return f'({", ".join(map(described, value))})'
  if callable(value) and hasattr(value, '__qualname__'):
    return f'{value.__module__}.{value.__qualname__}'
  if type(value).__repr__ is object.__repr__:  # An address of memory.
    return f'{type(value).__module__}.{type(value).__qualname__}'
  return repr(value)


def prepare_in_batches(
  dataset: tf.data.Dataset,
  *,
  columns: Sequence[str],
  size: int,
  prepare: Callable[..., tuple[np.ndarray, ...]],
) -> tf.data.Dataset:
  """Examples of `COLUMNS`.

  A stateless numpy_function: what has a state cannot be saved with the iterator's position.
  """

  def convert(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    given, types = [batch[name] for name in columns], [tf.string] * len(COLUMNS)
    prepared = tf.numpy_function(prepare, given, types, stateful=False)
    return {name: tf.ensure_shape(column, [None]) for name, column in zip(COLUMNS, prepared)}

  return dataset.batch(size).map(convert, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def make_in_batches(dataset: tf.data.Dataset, *, maker: ExampleMaker) -> tf.data.Dataset:
  """Prepared passages to the features of a task; ValueError where they are none.

  Everything is done in batches, which is several times as fast: a batch has one seed, and an
  example that and its place.
  """
  missing = [name for name in COLUMNS if name not in dataset.element_spec]
  if missing:
    raise ValueError(
      f"The task's cache has no {', '.join(missing)}: it was written by another task of this name "
      'or an older version; cache the task again (seqio_cache_tasks --overwrite).'
    )

  def make(seed, *columns) -> tuple[np.ndarray, ...]:
    count = len(columns[0])
    # Seeds are 32 bits wide, which leaves room for the place.
    seeds = np.broadcast_to(seed.astype(np.int64), (count, 2)).copy()
    seeds[:, 1] = (seeds[:, 1] << 8) + np.arange(count)
    arrays: list[np.ndarray] = []
    for tokens in maker.make(columns, seeds):
      arrays += [tokens.pad(int(tokens.lengths.max(initial=0))), tokens.lengths]
    return tuple(arrays)

  names = ('query', 'reader_query', 'targets')

  @seqio.map_over_dataset(num_seeds=1)
  def convert(batch: Mapping[str, tf.Tensor], seed: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
    given = [tf.stack(seed), *(batch[name] for name in COLUMNS)]
    arrays = tf.numpy_function(make, given, [tf.int32, tf.int64] * 3, stateful=False)
    made = {}
    for name, padded, lengths in zip(names, arrays[::2], arrays[1::2]):
      made[name] = tf.ensure_shape(padded, [None, None])
      made[f'{name}_length'] = tf.ensure_shape(lengths, [None])
    excluded = {name: batch[name] for name in ('exclude_ids', 'exclude_documents')}
    count = tf.shape(excluded['exclude_ids'])
    # As other tasks, to be mixed with them.
    others = {name: tf.fill(count, value) for name, value in features.PASSAGE_FEATURES.items()}
    return {**made, **others, **excluded}

  def without_padding(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {
      **{name: example[name][: example[f'{name}_length']] for name in names},
      **{name: example[name] for name in features.PASSAGE_FEATURES},
    }

  examples = convert(dataset.batch(BATCH)).unbatch()
  return examples.map(without_padding, num_parallel_calls=tf.data.AUTOTUNE)
