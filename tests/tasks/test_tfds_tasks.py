"""Data sets of TensorFlow Datasets, prepared in a folder: never the network."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from ralm_jax.data import pipeline
from ralm_jax.data.corpus import shards
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.pipeline import DatasetConfig
from ralm_jax.data.pretext.objectives import PrefixLM, TitleSection
from ralm_jax.data.text import vocabularies
from ralm_jax.retrieval.augmenter import Shown
from ralm_jax.tasks import language_modeling, tfds_tasks
from ralm_jax.tasks.language_modeling import TextFields
from tests import tiny

LENGTHS = {'query': 40, 'reader_query': 24, 'targets': 12}


@dataclasses.dataclass(frozen=True)
class World:
  data: tiny.Data
  tfds: pathlib.Path

  @property
  def vocabularies(self):
    return {
      'reader_vocabulary': str(self.data.reader_vocabulary),
      'retriever_vocabulary': str(self.data.retriever_vocabulary),
    }


def _write(folder, name, features, config=None, version='1.0.0', **splits):
  """A data set as `tfds build` leaves it, under the published one's name."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  def dataset(rows):
    tensors = {}
    for key in rows[0]:
      values = [row[key] for row in rows]
      if isinstance(values[0], dict):
        tensors[key] = {inner: [v[inner] for v in values] for inner in values[0]}
      elif isinstance(values[0], list):
        tensors[key] = tf.ragged.constant(values)
      else:
        tensors[key] = values
    return tf.data.Dataset.from_tensor_slices(tensors)

  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version=version,
    config=config,
    features=tfds.features.FeaturesDict(features),
    data_dir=str(folder),
    split_datasets={k: dataset(rows) for k, rows in splits.items()},
  )


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> World:
  import tensorflow_datasets as tfds

  folder = tmp_path_factory.mktemp('tfds')
  text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
  questions = tiny.questions()[:12]
  _write(
    folder,
    'natural_questions_open',
    {'question': text, 'answer': texts},
    train=[{'question': q['question'], 'answer': q['answers']} for q in questions],
    validation=[{'question': 'who?', 'answer': ['Bomar', 'Al']}] * 4,
  )
  _write(
    folder,
    'web_questions',
    {'url': text, 'question': text, 'answers': texts},
    train=[{'url': 'u', 'question': q['question'], 'answers': q['answers']} for q in questions],
  )
  _write(
    folder,
    'trivia_qa',
    {
      'question': text,
      'question_id': text,
      'answer': tfds.features.FeaturesDict({'value': text, 'type': text}),
    },
    config='unfiltered.nocontext',
    train=[
      {'question': f'which {i}?', 'question_id': f't{i}', 'answer': {'value': value, 'type': 'x'}}
      for i, value in enumerate(['RED WINE', 'blue Sea', '<unk>', 'green'])
    ],
  )
  _write(
    folder,
    'wikipedia',
    {'title': text, 'text': text},
    config='20230601.en',
    train=[{'title': p['title'], 'text': ' '.join([p['text']] * 3)} for p in tiny.passages()[:10]],
  )
  _write(
    folder,
    'wiki40b',
    {'text': text, 'wikidata_id': text, 'version_id': text},
    config='en',
    version='1.3.0',
    train=[
      {
        'text': f'\n_START_ARTICLE_\n{p["title"]}\n_START_SECTION_\n'
        f'the north\n_START_PARAGRAPH_\n{p["text"]}',
        'wikidata_id': 'Q1',
        'version_id': '1',
      }
      for p in tiny.passages()[:10]
    ],
  )
  _write(
    folder,
    'c4',
    {'text': text, 'url': text},
    config='en',
    train=[{'text': p['text'], 'url': f'http://{p["id"]}'} for p in tiny.passages()[:4]],
  )
  return World(tiny.make_data(tmp_path_factory.mktemp('data')), folder)


def _batches(task, count, **config):
  iterator = pipeline.get_dataset_iterator(
    DatasetConfig(task, **{'batch_size': 4, 'shuffle': False, **config}), LENGTHS
  )
  iterator.use_corpus(None)
  return [next(iterator) for _ in range(count)]


def _read(world, batches):
  """(question, target) as texts."""
  reader = vocabularies.load_vocabulary(world.data.reader_vocabulary)
  return [
    (reader.decode(query), reader.decode(target))
    for batch in batches
    for query, target in zip(batch.reader_query_tokens, batch.target_tokens)
  ]


@pytest.mark.parametrize('task', ['natural_questions_open', 'web_questions'])
def test_questions_with_several_answers(world, task):
  name = getattr(tfds_tasks, task)(
    tfds_data_dir=world.tfds, text=tiny.make_text(target_length=12), **world.vocabularies
  )
  rows = _read(world, _batches(name, 12))  # four epochs
  answers = {q['question']: set(q['answers']) for q in tiny.questions()[:12]}
  seen = {}
  for question, answer in rows:
    seen.setdefault(question, set()).add(answer)
  assert seen.keys() == answers.keys()
  assert all(found <= answers[question] for question, found in seen.items())
  assert any(len(found) == 2 for found in seen.values())


def test_splits_and_slices(world):
  name = tfds_tasks.natural_questions_open(
    tfds_data_dir=world.tfds,
    text=tiny.make_text(target_length=12),
    splits={'train': 'train[:4]', 'dev': 'train[4:]', 'test': 'validation'},
    **world.vocabularies,
  )
  train, dev = (
    {q for q, _ in _read(world, _batches(name, 4, split=split))} for split in ('train', 'dev')
  )
  assert (len(train), len(dev)) == (4, 8) and not train & dev
  assert _read(world, _batches(name, 1, split='test'))[0][0] == 'who?'


def test_trivia_qa_learns_the_value(world):
  name = tfds_tasks.trivia_qa(
    tfds_data_dir=world.tfds,
    **world.vocabularies,
    text=tiny.make_text(target_length=12, target_format='{answer}'),
  )
  rows = _read(world, _batches(name, 3))
  vocabulary = vocabularies.load_vocabulary(world.data.reader_vocabulary)
  expected = {
    vocabulary.decode(vocabulary.encode(value)) for value in ('Red Wine', 'blue Sea', 'green')
  }
  assert {answer for _, answer in rows} == expected  # not the hidden one


def test_what_is_not_prepared_is_said(world):
  with pytest.raises(FileNotFoundError, match='no prepared data set .*c4.*trivia_qa'):
    language_modeling.tfds_text_task(
      tfds_name='c4/realnewslike', tfds_data_dir=world.tfds, **world.vocabularies
    )


def test_the_version_that_is_asked_for(world, tmp_path):
  import tensorflow_datasets as tfds

  text = tfds.features.Text()
  for version in ('1.0.0', '1.0.10', '1.0.9', '2.0.0'):
    _write(tmp_path, 'sized', {'text': text}, version=version, train=[{'text': version}])
  (tmp_path / 'sized/1.9.0.incomplete').mkdir()
  (tmp_path / 'sized/1.9.0.incomplete/dataset_info.json').write_text('{}')

  def version(asked):
    source = tfds_tasks.tfds_source(f'sized{asked}', tmp_path, None)
    return source.tfds_dataset.name.partition(':')[2]

  assert [version(asked) for asked in ('', ':1.*.*', ':2.*.*', ':1.0.9', ':*.*.*')] == [
    '2.0.0',
    '1.0.10',
    '2.0.0',
    '1.0.9',
    '2.0.0',
  ]
  with pytest.raises(FileNotFoundError, match='sized:3.*sized:1.0.10'):
    version(':3.*.*')


def _documents(world, tfds_name, process=(0, 1), **options):
  task = language_modeling.tfds_text_task(
    'tfds_named',
    tfds_name=tfds_name,
    tfds_data_dir=world.tfds,
    min_words=1,
    objective=PrefixLM(),
    **world.vocabularies,
    **options,
  )
  iterator = pipeline.get_dataset_iterator(
    DatasetConfig(task, batch_size=4, shuffle=False),
    LENGTHS,
    process_index=process[0],
    process_count=process[1],
  )
  iterator.use_corpus(PassageStore.open(world.data.corpus))
  return iterator


@pytest.mark.parametrize('tfds_name', ['wikipedia/20230601.en', 'wiki40b/en'])
def test_articles_exclude_themselves(world, tfds_name, caplog):
  """The title is that of the corpus: its passages' key, and theirs alone."""
  store = PassageStore.open(world.data.corpus)
  keys = store.documents(np.arange(10))
  seen = []
  iterator = _documents(world, tfds_name, max_words=None)
  for batch in (next(iterator) for _ in range(5)):
    assert batch.exclude_document_keys.shape == (4, 1)
    assert batch.exclude_rows is None
    seen += batch.exclude_document_keys[:, 0].tolist()
  assert sorted(seen) == sorted([*keys, *keys])
  assert 'nothing is excluded' not in caplog.text
  iterator.use_corpus(None)
  assert next(iterator).exclude_document_keys is None


def test_what_names_no_document_is_said(world, caplog):
  batch = next(_documents(world, 'c4/en'))
  assert sorted(batch.exclude_document_keys[:, 0]) == sorted(
    shards.keys_of(f'http://p{i}' for i in range(4))
  )
  assert not caplog.text
  iterator = _documents(world, 'c4/en', fields=TextFields())
  assert next(iterator).exclude_document_keys is None
  assert len(caplog.records) == 1
  assert 'c4/en name no document' in caplog.text


def test_training_on_articles_never_sees_them(world, tmp_path):
  """From the data set through task, iterator and search to the reader."""
  shown = []

  def record(queries, found, step):
    del step
    shown.append((queries, found))
    return Shown(queries, found)

  task = language_modeling.tfds_text_task(
    'tfds_trained',
    tfds_name='wikipedia/20230601.en',
    tfds_data_dir=world.tfds,
    text=tiny.make_text(),
    objective=PrefixLM(),
    **world.vocabularies,
  )
  tiny.train(
    world.data,
    tmp_path / 'run',
    steps=2,
    augmentation=record,
    data=DatasetConfig(task, batch_size=4),
    text={'n_passages': 20},
  )
  store = PassageStore.open(world.data.corpus)
  assert len(shown) >= 2
  for queries, found in shown:
    assert found.shape == (4, 20) and np.all(found >= 0)
    assert np.all(queries.exclude_document_keys != 0)
    assert not np.any(store.documents(found) == queries.exclude_document_keys)


def test_mixed_with_passages(world):
  """Some tasks name documents, some rows, and some of users' own neither."""
  import seqio

  text = tiny.make_text()
  articles = language_modeling.tfds_text_task(
    'tfds_mixed',
    tfds_name='wikipedia/20230601.en',
    tfds_data_dir=world.tfds,
    text=text,
    objective=PrefixLM(),
    **world.vocabularies,
  )
  stored = language_modeling.passage_task(
    'stored_mixed', corpus=world.data.corpus, text=text, min_words=3, objective=PrefixLM()
  )
  questions = tfds_tasks.web_questions(
    'questions_mixed', tfds_data_dir=world.tfds, text=text, **world.vocabularies
  )
  seqio.MixtureRegistry.remove('tfds_mixture')
  seqio.MixtureRegistry.add('tfds_mixture', [(articles, 1.0), (stored, 1.0), (questions, 1.0)])
  iterator = pipeline.get_dataset_iterator(DatasetConfig('tfds_mixture', batch_size=16), LENGTHS)
  iterator.use_corpus(PassageStore.open(world.data.corpus))
  batch = next(iterator)
  kinds = zip(
    (batch.exclude_rows >= 0).any(-1).tolist(), (batch.exclude_document_keys != 0).any(-1).tolist()
  )
  assert set(kinds) == {(True, False), (False, True), (False, False)}


def test_wikipedia_in_passages(world):
  """Articles are cut, and each excludes its passages by the article's title."""
  task = language_modeling.tfds_text_task(
    'tfds_wikipedia',
    tfds_name='wikipedia/20230601.en',
    max_words=12,
    tfds_data_dir=world.tfds,
    min_words=5,
    objective=PrefixLM(),
    text=tiny.make_text(reader_query_length=96, target_length=96),
    fields=TextFields(title='title', id='title'),
    **world.vocabularies,
  )
  import seqio

  dataset = seqio.get_mixture_or_task(task).get_dataset(
    {'query': 40, 'reader_query': 96, 'targets': 96}, shuffle=False
  )
  reader = vocabularies.load_vocabulary(world.data.reader_vocabulary)
  seen = {}
  for example in dataset.as_numpy_iterator():
    (title,) = json.loads(example['exclude_ids'])
    seen.setdefault(title, []).append(
      reader.decode(example['reader_query']) + ' ' + reader.decode(example['targets'])
    )
  for passage in tiny.passages()[:10]:
    parts = seen[passage['title']]
    assert len(parts) > 1
    assert all(len(part.split()) <= 12 for part in parts)
    assert ' '.join(parts).split() == passage['text'].split() * 3


def test_wiki40b_has_sections(world):
  task = language_modeling.tfds_text_task(
    'tfds_wiki40b',
    tfds_name='wiki40b/en',
    tfds_data_dir=world.tfds,
    objective=TitleSection(),
    text=tiny.make_text(target_length=12),
    min_words=1,
    **world.vocabularies,
  )
  rows = _read(world, _batches(task, 5))
  # The tiny vocabulary has no comma.
  texts = {f'{p["title"]} ⁇  the north': p['text'] for p in tiny.passages()[:10]}
  assert {query for query, _ in rows} == texts.keys()
  assert all(text and texts[query].startswith(text) for query, text in rows)


def test_impossible_texts(world):
  with pytest.raises(ValueError, match='needs sections'):
    language_modeling.tfds_text_task(
      tfds_name='wikipedia/20230601.en',
      tfds_data_dir=world.tfds,
      objective=TitleSection(),
      **world.vocabularies,
    )
  with pytest.raises(ValueError, match='give `fields`'):
    language_modeling.tfds_text_task(
      tfds_name='web_questions', tfds_data_dir=world.tfds, **world.vocabularies
    )
  task = language_modeling.tfds_text_task(
    tfds_name='wikipedia/20230601.en',
    tfds_data_dir=world.tfds,
    fields=TextFields(text='body'),
    **world.vocabularies,
  )
  with pytest.raises(ValueError, match="no feature 'body'; it has text, title"):
    _batches(task, 1)


def test_position_in_a_data_set_is_restored(world):
  name = tfds_tasks.natural_questions_open(
    tfds_data_dir=world.tfds, text=tiny.make_text(target_length=12), **world.vocabularies
  )
  iterator, other = (
    pipeline.get_dataset_iterator(DatasetConfig(name, batch_size=4), LENGTHS) for _ in range(2)
  )
  for _ in range(3):
    next(iterator)
  other.restore(iterator.state())
  for _ in range(4):
    np.testing.assert_array_equal(next(iterator).target_tokens, next(other).target_tokens)
