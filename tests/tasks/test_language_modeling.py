"""Pretext tasks on a corpus: order, shares, position, and what is excluded."""

import dataclasses
import json

import numpy as np
import pytest

from ralm_jax.data import pipeline
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.pipeline import DatasetConfig
from ralm_jax.data.pretext.objectives import MaskedSpans, PrefixLM, TitleSection
from ralm_jax.data.questions import reading
from ralm_jax.tasks import language_modeling, qa
from ralm_jax.tasks.pretext_pipeline import PassageRows
from tests import tiny

LENGTHS = {'query': 60, 'reader_query': 48, 'targets': 24}
TEXT = dict(query_length=60, reader_query_length=48, target_length=24)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def store(data) -> PassageStore:
  return PassageStore.open(data.corpus)


def _task(store, name='pretext', objective=MaskedSpans(), **options):
  return language_modeling.passage_task(
    name,
    corpus=store,
    objective=objective,
    **{'text': tiny.make_text(**TEXT), 'min_words': 3, **options},
  )


def _iterator(store, task, process=(0, 1), **config):
  iterator = pipeline.get_dataset_iterator(
    DatasetConfig(task, **{'batch_size': 4, **config}),
    LENGTHS,
    process_index=process[0],
    process_count=process[1],
  )
  iterator.use_corpus(store)
  return iterator


def _take(iterator, count):
  """One (passage's row, reader's query, target) an example."""
  return [
    (int(row[0]), tuple(query), tuple(target))
    for batch in (next(iterator) for _ in range(count))
    for row, query, target in zip(
      batch.exclude_rows, batch.reader_query_tokens, batch.target_tokens
    )
  ]


def test_examples_are_of_the_passage_they_exclude(store):
  """In order, each once an epoch, with other noise in the next."""
  rows = _take(_iterator(store, _task(store), shuffle=False), 20)
  assert [row for row, _, _ in rows] == [*range(40)] * 2
  vocabulary = store.reader_vocabulary
  for row, query, target in rows:
    shown = vocabulary.decode(query, keep_sentinels=True)
    hidden = vocabulary.decode(target, keep_sentinels=True)
    # Put together again, the passage appears.
    for part in reversed(hidden.split('<extra_id_')[1:]):
      number, _, words = part.partition('>')
      shown = shown.replace(f'<extra_id_{number}>', words)
    text = store.passage(row).text
    # The tiny vocabulary cannot write everything.
    same = vocabulary.decode(vocabulary.encode(text))
    assert shown.replace(' ', '') == same.replace(' ', '')[: len(shown.replace(' ', ''))]
  first, second = rows[:40], rows[40:]
  assert sum(a != b for a, b in zip(first, second)) > 35


def test_seed_decides_everything(store):
  task = _task(store)
  one, same, other = (_take(_iterator(store, task, seed=seed), 6) for seed in (1, 1, 2))
  assert one == same != other
  # Noise, too.
  assert _take(_iterator(store, task, seed=1, shuffle=False), 2) != _take(
    _iterator(store, task, seed=2, shuffle=False), 2
  )


def _task_in_order_of_source(store):
  """Without seqio's own buffer, which holds many epochs of a small corpus."""
  import seqio

  task = _task(store)
  seqio.TaskRegistry.get(task)._shuffle_buffer_size = 1
  return task


@pytest.mark.parametrize('shuffle', [False, True])
def test_processes_share_the_passages(store, shuffle):
  task = _task_in_order_of_source(store)
  shares = [
    [row for row, _, _ in _take(_iterator(store, task, process=(index, 2), shuffle=shuffle), 30)]
    for index in range(2)
  ]
  for start in range(0, 60, 20):  # epochs
    rows = [share[start : start + 20] for share in shares]
    assert sorted(rows[0] + rows[1]) == [*range(40)]


def test_shuffling_draws_from_the_whole_corpus():
  """Each epoch has every row once, in another order; shares are apart."""

  @dataclasses.dataclass
  class Rows:
    directory: str = 'many'
    fingerprint: str = 'its content'

    def __len__(self):
      return 5000

    def superseded(self):
      return np.zeros(0, np.int64)

  import seqio

  source = PassageRows(Rows())
  epochs = [[], []]
  for index in range(2):
    dataset = source.get_dataset(
      'train', shuffle=True, seed=3, shard_info=seqio.ShardInfo(index, 2)
    )
    rows = [int(x['row']) for x in dataset.repeat(2).as_numpy_iterator()]
    assert len(rows) == 5000
    epochs[0] += rows[:2500]
    epochs[1] += rows[2500:]
  for epoch in epochs:
    assert sorted(epoch) == list(range(5000))
    # Neighbours come from anywhere: a third of the corpus apart on average.
    assert 1500 < np.abs(np.diff(epoch)).mean() < 1850
  assert epochs[0] != epochs[1]


def test_every_epoch_of_a_small_corpus_has_another_order(store):
  """Through task and iterator; a position in a later epoch is restored."""
  task = _task_in_order_of_source(store)
  iterator = _iterator(store, task, seed=3)
  rows = [row for row, _, _ in _take(iterator, 30)]
  epochs = [rows[start : start + 40] for start in (0, 40, 80)]
  assert all(sorted(epoch) == [*range(40)] for epoch in epochs)
  assert len(set(map(tuple, epochs))) == 3
  _take(iterator, 3)
  state = iterator.state()
  expected = _take(iterator, 20)
  other = _iterator(store, task, seed=3)
  other.restore(state)
  assert _take(other, 20) == expected


def test_shots_are_of_questions(store):
  import gin

  for options in ({'shots': 64}, {'shots_list': 'list.json'}):
    with pytest.raises(ValueError, match='SHOTS.* chosen of questions'):
      _task(store, **options)
  # As the run file binds them.
  from ralm_jax.runs import gin_config as gin_utils

  gin_utils.import_tensorflow()
  try:
    gin_utils.parse(
      ['gin_configs/models/tiny.gin', 'gin_configs/runs/masked_spans.gin'],
      [
        'SHOTS = 64',
        f'CORPUS = {str(store.directory)!r}',
        'TRAIN_STEPS = 1',
        *(
          f'{name} = "unused"'
          for name in ('MODEL_DIR', 'READER_VOCABULARY', 'RETRIEVER_VOCABULARY')
        ),
      ],
      [str(tiny.ROOT)],
    )
    with pytest.raises(ValueError, match='SHOTS = 64'):
      gin.query_parameter('%MIXTURE_OR_TASK_NAME').scoped_configurable_fn()
  finally:
    with gin.unlock_config():
      gin.clear_config()


@pytest.mark.parametrize('objective, shuffle', [(MaskedSpans(), False), (PrefixLM(), True)])
def test_position_is_restored_at_any_example(store, objective, shuffle):
  task = _task(store, objective=objective)
  # Three do not divide what is done at once.
  iterator = _iterator(store, task, batch_size=3, shuffle=shuffle)
  other = _iterator(store, task, batch_size=3, shuffle=shuffle)
  for before in (1, 4, 17):
    _take(iterator, before)
    state = iterator.state()
    expected = _take(iterator, 9)
    other.restore(state)
    assert _take(other, 9) == expected


def test_what_makes_no_example_is_left_out(store, data):
  counts = [len(p['text'].split()) for p in tiny.passages()]
  least = sorted(counts)[20]
  rows = {
    row for row, _, _ in _take(_iterator(store, _task(store, min_words=least), shuffle=False), 40)
  }
  assert rows == {i for i, count in enumerate(counts) if count >= least}
  with pytest.raises(ValueError, match='no passage has 1000 words'):
    _task(store, min_words=1000)
  with pytest.raises(ValueError, match='TitleSection: a section'):
    _task(store, objective=TitleSection())
  with pytest.raises(ValueError, match='reader_query_length'):
    _task(store, text=tiny.make_text(reader_query_length=1))


def test_replaced_passages_are_not_read(data, tmp_path):
  store = passage_store.build_corpus(
    data.passages,
    tmp_path / 'c',
    data.reader_vocabulary,
    data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  passage_store.append_passages(
    store.directory, [Passage('p3', 'Almar', '', 'a new text of six words')], replace=True
  )
  rows = [
    row
    for row, _, _ in _take(
      _iterator(
        PassageStore.open(store.directory), _task(store.directory, min_words=3), shuffle=False
      ),
      10,
    )
  ]
  assert sorted(rows) == sorted([*range(3), *range(4, 41)])


def test_mixed_with_questions(store, data):
  import seqio

  questions = qa.jsonl_task(
    'pretext_qa',
    train=str(data.questions),
    text=tiny.make_text(**TEXT),
    reader_vocabulary=store.reader_vocabulary,
    retriever_vocabulary=store.retriever_vocabulary,
  )
  task = _task(store, 'pretext_mixed')
  seqio.MixtureRegistry.remove('pretext_mixture')
  seqio.MixtureRegistry.add('pretext_mixture', [(questions, 1.0), (task, 1.0)])
  iterator = _iterator(store, 'pretext_mixture')
  excluded = [row for _ in range(10) for row in next(iterator).exclude_rows]
  assert {bool((row >= 0).any()) for row in excluded} == {False, True}


def test_questions_to_evaluate_on(store, tmp_path):
  """Written once, the same for everybody, and read as any question file."""
  path = tmp_path / 'dev.jsonl'
  options = dict(corpus=store, text=tiny.make_text(**TEXT), min_words=3)
  assert language_modeling.write_questions(path, count=7, **options) == 7
  content = path.read_bytes()
  language_modeling.write_questions(path, count=7, **options)
  assert path.read_bytes() == content
  language_modeling.write_questions(path, count=7, seed=1, **options)
  assert path.read_bytes() != content
  assert language_modeling.write_questions(path, **options) == 40
  for question in reading.read_questions(path):
    assert question.exclude_passage_ids == (question.id,)
    assert '<extra_id_0>' in question.question
    assert question.target.startswith('<extra_id_0>')
    assert '<extra_id_' not in question.answers[0] != ''
  assert json.loads(content.splitlines()[0])['id'] == 'p0'
