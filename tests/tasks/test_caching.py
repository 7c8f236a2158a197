"""seqio's cache of our tasks: what it holds, and training from it.

The cache is written as `seqio_cache_tasks` does; where Beam is installed that
very program writes one, too.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ralm_jax.data import pipeline
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.pipeline import DatasetConfig
from ralm_jax.data.pretext.objectives import PrefixLM, SalientSpans
from ralm_jax.tasks import language_modeling, qa
from tests import tiny

TEXT = dict(query_length=60, reader_query_length=48, target_length=24)
LENGTHS = {'query': 60, 'reader_query': 48, 'targets': 24}


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture
def cache(tmp_path):
  import seqio

  seqio.add_global_cache_dirs([str(tmp_path)])
  yield tmp_path
  seqio.set_global_cache_dirs([])


def _questions(data, name='cached_qa'):
  return qa.jsonl_task(
    name,
    train=str(data.questions),
    text=tiny.make_text(**TEXT),
    reader_vocabulary=str(data.reader_vocabulary),
    retriever_vocabulary=str(data.retriever_vocabulary),
  )


def _passages(data, name='cached_passages', **options):
  return language_modeling.passage_task(
    name, text=tiny.make_text(**TEXT), **{'corpus': data.corpus, 'min_words': 3, **options}
  )


def _write_cache(folder, name, shards=3):
  """The files of `seqio_cache_tasks`, without Beam."""
  import seqio
  import tensorflow as tf

  task = seqio.TaskRegistry.get(name)
  target = folder / seqio.get_task_dir_from_name(name)
  target.mkdir()
  dataset = task.preprocess_precache(task.source.get_dataset('train', shuffle=False), seed=0)
  examples = list(dataset)
  prefix = seqio.get_cached_tfrecord_prefix(str(target), 'train')
  for shard in range(shards):
    with tf.io.TFRecordWriter(f'{prefix}-{shard:05d}-of-{shards:05d}') as writer:
      for example in examples[shard::shards]:
        writer.write(seqio.dict_to_tfexample(example).SerializeToString())
  spec = {
    key: {'shape': [None] if value.shape.rank else [], 'dtype': value.dtype.name}
    for key, value in examples[0].items()
  }
  with open(seqio.get_cached_info_path(str(target), 'train'), 'w') as file:
    json.dump({'num_shards': shards, 'features': spec, 'seqio_version': seqio.__version__}, file)
  with open(seqio.get_cached_stats_path(str(target), 'train'), 'w') as file:
    json.dump({'examples': len(examples)}, file)
  (target / 'COMPLETED').touch()
  return examples


def _iterator(data, task, **config):
  iterator = pipeline.get_dataset_iterator(
    DatasetConfig(task, **{'batch_size': 4, 'use_cached': True, **config}), LENGTHS
  )
  iterator.use_corpus(PassageStore.open(data.corpus))
  return iterator


def _take(iterator, count):
  return [
    (
      tuple(batch.query_tokens[i]),
      tuple(batch.reader_query_tokens[i]),
      tuple(batch.target_tokens[i]),
    )
    for batch in (next(iterator) for _ in range(count))
    for i in range(4)
  ]


@pytest.mark.parametrize('make', [_questions, _passages])
def test_training_reads_the_cache(data, cache, make):
  task = make(data)
  plain = _take(_iterator(data, task, use_cached=False, shuffle=False), 10)
  examples = _write_cache(cache, task)
  assert len(examples) == tiny.COUNT
  iterator = _iterator(data, task)
  cached = _take(iterator, 20)
  # What is drawn anew, answers and noise, is not in the cache.
  assert len(set(cached)) > tiny.COUNT
  if make is _questions:
    assert {row[:2] for row in cached} <= {row[:2] for row in plain}
  state = iterator.state()
  expected = _take(iterator, 5)
  other = _iterator(data, task)
  other.restore(state)
  assert _take(other, 5) == expected


def test_nothing_but_the_cache_is_read(data, cache, tmp_path):
  """The annotator of salient spans has run once, when the cache was written."""
  calls = []

  def annotate(text):
    calls.append(text)
    return [(0, text.index(' '))]

  task = _passages(data, 'cached_spans', objective=SalientSpans(annotator=annotate))
  _write_cache(cache, task)
  assert len(calls) > tiny.COUNT
  calls.clear()
  iterator = _iterator(data, task, shuffle=False)
  batch = next(iterator)
  assert not calls
  assert np.all(batch.exclude_rows[:, 0] >= 0)


def _first(text):
  return [(0, text.index(' '))]


def _last(text):
  return [(text.rindex(' '), len(text))]


@pytest.mark.parametrize(
  'written, read',
  [
    ({}, {'objective': PrefixLM()}),
    ({}, {'objective': SalientSpans(_first)}),
    ({'objective': SalientSpans(_first)}, {'objective': SalientSpans(_last)}),
    ({}, {'min_words': 4}),
    ({}, {'corpus': 'grown'}),
  ],
)
def test_another_objective_is_no_cache_of_this(data, cache, tmp_path, written, read):
  _write_cache(cache, _passages(data, 'reused', **written))
  _take(_iterator(data, _passages(data, 'reused', **written)), 1)
  if read.get('corpus'):
    store = passage_store.build_corpus(
      data.passages,
      tmp_path / 'grown',
      data.reader_vocabulary,
      data.retriever_vocabulary,
      n_workers=1,
      progress=False,
    )
    passage_store.append_passages(
      store.directory, [Passage('new', 'Almar', '', 'a new text of six words')]
    )
    read = {'corpus': store.directory}
  with pytest.raises(ValueError, match="^The task's cache .*cache the task again"):
    next(_iterator(data, _passages(data, 'reused', **read)))


def test_a_cache_of_questions_is_none_of_passages(data, cache):
  _write_cache(cache, _questions(data, 'reused_qa'))
  with pytest.raises(ValueError, match='has no .*made_by.*cache the task again'):
    _iterator(data, _passages(data, 'reused_qa'))


def test_no_cache_is_said(data, cache):
  with pytest.raises(AssertionError, match='does not exist in any of the task cache'):
    _iterator(data, _questions(data, 'not_cached'))


def test_with_beam(data, tmp_path):
  """`seqio_cache_tasks` itself, in a process as users start it."""
  pytest.importorskip('apache_beam', reason='caching needs apache-beam')
  module = tmp_path / 'my_tasks.py'
  module.write_text(f"""
import sys
sys.path.insert(0, {str(tiny.ROOT)!r})
import pathlib
from tests import tiny
from ralm_jax.data import pretext
from ralm_jax.tasks import language_modeling, qa
data = tiny.Data(pathlib.Path({str(data.folder)!r}))
text = tiny.make_text(**{TEXT!r})
qa.jsonl_task('beam_qa', train=str(data.questions), text=text,
              reader_vocabulary=str(data.reader_vocabulary),
              retriever_vocabulary=str(data.retriever_vocabulary))
for name, objective in (('masked', pretext.MaskedSpans()),
                        ('prefix', pretext.PrefixLM(0.1, 0.9))):
  language_modeling.passage_task('beam_' + name, corpus=data.corpus, text=text,
                                 objective=objective, min_words=3)
""")
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'seqio.scripts.cache_tasks_main',
      '--tasks=beam_.*',
      f'--output_cache_dir={tmp_path / "cache"}',
      '--module_import=my_tasks',
      '--min_shards=2',
    ],
    env={
      **tiny.environment(1),
      'PYTHONPATH': os.pathsep.join([str(tmp_path), str(tiny.ROOT), *sys.path]),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  import importlib

  import seqio

  sys.path.insert(0, str(tmp_path))
  seqio.add_global_cache_dirs([str(tmp_path / 'cache')])
  try:
    importlib.import_module('my_tasks')
    for name in ('beam_qa', 'beam_masked', 'beam_prefix'):
      stats = seqio.TaskRegistry.get(name).get_cached_stats('train')
      assert stats['examples'] == tiny.COUNT
      assert len(set(_take(_iterator(data, name), 20))) >= tiny.COUNT
  finally:
    sys.path.remove(str(tmp_path))
    seqio.set_global_cache_dirs([])
