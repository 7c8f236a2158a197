"""seqio tasks to an endless, checkpointable stream of QueryBatches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import copy
import dataclasses
import functools
import glob
import importlib
import inspect
import json
import os
import tempfile
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from ralm_jax.data import dates, features
from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.corpus import passage_ids
from ralm_jax.data.corpus.passage_ids import RowsOfIds
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.features import RetrievalFeatureConverter
from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Count, Seed

# The accelerators belong to JAX.
tf.config.set_visible_devices([], 'GPU')


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """A task, as T5X users configure it."""

  mixture_or_task_name: Any  #: registered with seqio, or a Mixture or Task
  #: tokens of `query`, `reader_query` and `targets`; None takes them from the model's TextConfig
  task_feature_lengths: Mapping[str, Count] | None = None
  split: str = 'train'
  batch_size: Count = 8  #: over all processes
  shuffle: bool = True
  seed: Seed = 0  #: of shuffling and of random preprocessors
  use_cached: bool = False  #: read seqio's cache of the task
  module: str | None = None  #: imported first, to register tasks
  #: what makes a task of ours of its files where only its name is given, such as `qa.jsonl_task`
  #: with its arguments bound.
  make_task: Callable[..., str] | None = None

  def __post_init__(self):
    option_types.check_fields(self)


class UnboundTask(seqio.Task):
  """A task of ours by name, before it is known which files it is made of."""

  def __init__(self, name: str, maker: Callable[..., str], arguments: Mapping[str, Any]):
    self._name = name
    self._maker = maker
    self._arguments = arguments

  def bound(self, make_task: Callable[..., str]) -> seqio.Task:
    """The task that `make_task` makes; this one stays registered under the name.

    Raises:
      ValueError: it makes tasks of another kind.
    """
    if _function(make_task) is not _function(self._maker):
      raise ValueError(
        f'Task {self.name!r} is made by {_name(self._maker)}, this configuration makes tasks by '
        f'{_name(make_task)}: start from the gin file of gin_configs/runs that is for such tasks, '
        f'or bind DatasetConfig.make_task = @{_name(self._maker)} with its files.'
      )
    try:
      seqio.TaskRegistry.remove(self.name)
      make_task(name=self.name, **self._arguments)
      return seqio.TaskRegistry.get(self.name)
    finally:
      seqio.TaskRegistry.remove(self.name)
      seqio.TaskRegistry.add_provider(self.name, self)

  def __str__(self) -> str:
    return f'UnboundTask({self.name!r})'

  def __getattr__(self, attribute: str) -> Any:
    """Whatever else a task has depends on its files."""
    if attribute.startswith('__'):
      raise AttributeError(attribute)
    maker = _name(self._maker)
    raise ValueError(
      f'Task {self.name!r} is known by name, but not of which files: start from a gin file '
      f'of gin_configs/runs, or bind DatasetConfig.make_task = @{maker}, or call {maker} '
      f'with the name {self.name!r}, files and vocabularies.'
    )


def _function(maker: Callable[..., str]) -> Callable[..., str]:
  """What gin or functools have wrapped."""
  while isinstance(maker, functools.partial):
    maker = maker.func
  return inspect.unwrap(maker)


def _name(maker: Callable[..., str]) -> str:
  function = _function(maker)
  return f'{function.__module__}.{function.__name__}'


class DatasetIterator:
  """Endless batches of this process's share of a task.

  The position is TensorFlow's iterator checkpoint, shuffle buffer included: cheap at any step.
  """

  def __init__(self, dataset: tf.data.Dataset, examples: str = ''):
    """`examples` says of what content they are, see `described`."""
    self.examples = examples
    self._iterator = iter(dataset)
    self._rows_of: RowsOfIds | None = None
    self._closed_book = False

  def use_corpus(self, store: PassageStore | None) -> None:
    """Says whose rows the passages that examples name are; None for closed-book."""
    self._rows_of = None if store is None else RowsOfIds(store)
    self._closed_book = store is None

  def __iter__(self) -> DatasetIterator:
    return self

  def __next__(self) -> QueryBatch:
    """The next batch; ValueError where a task found fault with its examples."""
    try:
      arrays = {k: v.numpy() for k, v in next(self._iterator).items()}
    except tf.errors.InvalidArgumentError as e:
      # What TensorFlow makes of an error in Python: `ValueError: message`, traceback and all.
      message = e.message.partition('ValueError: ')[2].partition('\n')[0]
      if not message:
        raise
      raise ValueError(message) from e
    exclude_ids, exclude_documents, gold_ids = (
      [json.loads(names) if names else [] for names in arrays.pop(feature)]
      for feature in ('exclude_ids', 'exclude_documents', 'gold_ids')
    )
    max_dates = arrays.pop('max_date')
    if self._rows_of is None:
      if any(exclude_ids) and not self._closed_book:
        raise ValueError(
          'The examples exclude passages, but of which corpus is not known; '
          'call use_corpus(store) before reading batches.'
        )
      exclude_ids, gold_ids = [], []
    if self._closed_book:
      exclude_documents = []
    rows_of = self._rows_of or (lambda ids: None)
    size = len(arrays['target_tokens'])
    return QueryBatch(
      **arrays,
      example_index=np.arange(size, dtype=np.int64),
      exclude_rows=rows_of(exclude_ids),
      gold_rows=rows_of(gold_ids),
      max_dates=(max_dates if np.any(max_dates != dates.NO_DATE_BOUND) else None),
      exclude_document_keys=passage_ids.keys_of_documents(exclude_documents),
    )

  def state(self) -> dict[str, np.ndarray]:
    """The position, as the bytes of TensorFlow's checkpoint files."""
    with tempfile.TemporaryDirectory() as folder:
      tf.train.Checkpoint(iterator=self._iterator).write(os.path.join(folder, 'iterator'))
      return {
        os.path.basename(path): np.fromfile(path, np.uint8)
        for path in sorted(glob.glob(os.path.join(folder, 'iterator*')))
      }

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Goes to a position that `state` returned; ValueError for one of another task."""
    with tempfile.TemporaryDirectory() as folder:
      for name, content in state.items():
        content.tofile(os.path.join(folder, os.path.basename(name)))
      try:
        tf.train.Checkpoint(iterator=self._iterator).read(
          os.path.join(folder, 'iterator')
        ).assert_consumed()
      except (tf.errors.OpError, AssertionError) as e:
        raise ValueError(
          'The position in the data cannot be restored: the task, its preprocessing or '
          'DatasetConfig is another than when it was saved. Use the same, or start from the '
          'parameters alone with INITIAL_CHECKPOINT_PATH and another MODEL_DIR.'
        ) from e


def get_dataset_iterator(
  config: DatasetConfig,
  feature_lengths: Mapping[str, int],
  *,
  process_index: int = 0,
  process_count: int = 1,
  pad_ids: Mapping[str, int] | None = None,
) -> DatasetIterator:
  """Builds the stream of one process.

  Args:
    pad_ids: of `query`, `reader_query` and `targets`, those of the model's vocabularies; where none
      is given, that of the task's feature, which for seqio's own vocabularies is 0.

  Raises:
    ValueError: an unknown task or split, or a batch size that the processes do not divide.
  """
  if config.batch_size % process_count:
    raise ValueError(
      f'BATCH_SIZE {config.batch_size} must be a multiple of the number of '
      f'processes, {process_count}.'
    )
  task = get_task(config.mixture_or_task_name, config.module)
  if config.make_task is not None and isinstance(task, UnboundTask):
    task = task.bound(config.make_task)
  if config.split not in task.splits:
    raise ValueError(
      f'Task {task.name!r} has no split {config.split!r}; it has {sorted(task.splits)}.'
    )
  lengths = dict(config.task_feature_lengths or feature_lengths)
  converter = RetrievalFeatureConverter(
    pad_ids={
      **{name: feature.vocabulary.pad_id for name, feature in task.output_features.items()},
      **(pad_ids or {}),
    }
  )
  # As `seqio.get_dataset`, but for its copy in memory of a small source: that
  # would keep the order of the first epoch.
  dataset = _completed(task).get_dataset(
    lengths,
    split=config.split,
    use_cached=config.use_cached,
    shuffle=config.shuffle,
    seed=config.seed,
    shard_info=seqio.ShardInfo(process_index, process_count),
    num_epochs=None,
    try_in_mem_cache=False,
  )
  dataset = converter(dataset, task_feature_lengths=lengths).batch(
    config.batch_size // process_count, drop_remainder=True
  )
  options = tf.data.Options()
  options.deterministic = True
  return DatasetIterator(dataset.with_options(options), described(task, config.split))


def described(task: seqio.Task | seqio.Mixture, split: str) -> str:
  """Tells tasks apart: ours by what they hold, others by name."""
  if isinstance(task, seqio.Mixture):
    parts = (f'{task.get_rate(one):g} × {described(one, split)}' for one in task.tasks)
    return ', '.join(sorted(parts))
  known = getattr(task.source, 'fingerprints', {})
  return known.get(split) or f'task {task.name}'


def _completed(task: seqio.Task | seqio.Mixture) -> seqio.Task | seqio.Mixture:
  """A mixture whose tasks may say different things of passages."""
  if not isinstance(task, seqio.Mixture):
    return task

  def get_task_dataset(*args: Any, **options: Any) -> tf.data.Dataset:
    return task.get_task_dataset(*args, **options).map(
      features.with_passage_features, num_parallel_calls=tf.data.AUTOTUNE
    )

  # A copy: what is registered is everybody's.
  mixture = copy.copy(task)
  mixture.get_task_dataset = get_task_dataset
  return mixture


def get_task(name_or_task: Any, module: str | None = None) -> Any:
  """The seqio task or mixture of a name; ValueError, with the nearest name, for none."""
  if module:
    importlib.import_module(module)
  name = getattr(name_or_task, 'name', name_or_task)
  try:
    return seqio.get_mixture_or_task(name)
  except ValueError as e:
    import difflib

    known = sorted(seqio.TaskRegistry.names()) + sorted(seqio.MixtureRegistry.names())
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'Task {name!r} is not registered.{hint} Registered: {", ".join(known) or "none"}. Import '
      'the module that registers it with MIXTURE_OR_TASK_MODULE.'
    ) from e
