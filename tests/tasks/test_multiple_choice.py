"""The seqio task of multiple choice: orders, targets, subjects, shots."""

import collections
import csv
import json

import numpy as np
import pytest
import seqio

from ralm_jax.data import features
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text_config import TextConfig
from ralm_jax.tasks import multiple_choice
from tests import tiny

LETTERS = 'ABCD'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  data = tiny.make_data(folder)
  for subject, n in (('astronomy', 5), ('virology', 7)):
    with open(folder / f'{subject}_dev.csv', 'w', newline='') as file:
      csv.writer(file).writerows(
        [
          f'what is {subject} {tiny.names()[i]}?',
          *(f'{tiny.names()[10 + 4 * i + j]}' for j in range(4)),
          LETTERS[i % 4],
        ]
        for i in range(n)
      )
  return data


def make_task(data, name='tiny_mmlu', **options):
  return multiple_choice.mmlu_task(
    name,
    **{'train': str(data.folder / '*_dev.csv'), **options},
    text=TextConfig(query_length=200, reader_query_length=200, target_length=12),
    reader_vocabulary=str(data.reader_vocabulary),
    retriever_vocabulary=str(data.retriever_vocabulary),
  )


def examples(name, split='train', **options):
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(None, split, shuffle=False, **options)
  return list(dataset.as_numpy_iterator())


def decoded(data, rows):
  """Prompt and letter of each example."""
  vocabulary = vocabularies.load_vocabulary(data.reader_vocabulary)
  return [
    (vocabulary.decode(row['reader_query']), vocabulary.decode(row['targets'])) for row in rows
  ]


def test_every_order_of_every_question(data):
  rows = examples(make_task(data, permutations='all'))
  shown = decoded(data, rows)
  assert len(shown) == 12 * 24 == seqio.get_mixture_or_task('tiny_mmlu').num_input_examples('train')
  assert len(set(shown)) == len(shown)
  asked = collections.Counter(text.partition(' options: ')[0] for text, _ in shown)
  assert set(asked.values()) == {24} and len(asked) == 12
  letters = collections.Counter(letter for _, letter in shown)
  assert dict(letters) == dict.fromkeys(LETTERS, 72)
  # The letter names the option that was right before.
  right = {}
  for text, letter in shown:
    question, _, options = text.partition(' options: ')
    after = options.partition(f'({letter}) ')[2].split(' ')[0]
    assert right.setdefault(question, after) == after
  # A shuffle within a window mixes questions and subjects.
  assert len({text.partition(' options: ')[0] for text, _ in shown[:12]}) == 12


def test_validation_and_own_layout(data):
  path = tiny.write_jsonl(
    data.folder / 'own.jsonl',
    [
      {
        'question': f'q{i}?',
        'options': ['x', 'y', 'z'][: 2 + i % 2],
        'answers': ['B'],
        'exclude_passage_ids': ['p1'],
        'date': '2020',
        'group': 'mine',
      }
      for i in range(4)
    ],
  )
  make_task(data, train=str(path), validation=str(path), record_format='qa', permutations='cyclic')
  train = examples('tiny_mmlu')
  assert len(train) == 2 * 2 + 2 * 3
  validation = examples('tiny_mmlu', 'validation')
  shown = decoded(data, validation)
  assert len(shown) == 4 and {letter for _, letter in shown} == {'B'}
  assert json.loads(validation[0]['exclude_ids']) == ['p1']
  assert validation[0]['max_date'] < features.PASSAGE_FEATURES['max_date'].numpy()


def test_shots_and_subjects(data):
  make_task(data, shots=2, permutations='single')
  asked = collections.Counter(
    'virology' in text for text, _ in decoded(data, examples('tiny_mmlu'))
  )
  assert asked == {True: 2, False: 2}
  make_task(data, subjects=['virology'], permutations='single')
  assert len(examples('tiny_mmlu')) == 7
  with pytest.raises(ValueError, match="no question of the subject 'law'"):
    make_task(data, subjects=['law'])
  with pytest.raises(ValueError, match='6'):
    make_task(data, shots=6)  # Astronomy has five.


def test_shards_and_repeats(data):
  """Shards hold every example once, each epoch the same."""
  make_task(data)
  whole = sorted(map(str, decoded(data, examples('tiny_mmlu'))))
  parts = [
    str(one)
    for index in range(3)
    for one in decoded(data, examples('tiny_mmlu', shard_info=seqio.ShardInfo(index, 3)))
  ]
  assert sorted(parts) == whole
  assert sorted(map(str, decoded(data, examples('tiny_mmlu')))) == whole


def test_resumes_at_any_example(data, tmp_path):
  import tensorflow as tf

  make_task(data)
  dataset = lambda: seqio.get_mixture_or_task('tiny_mmlu').get_dataset(
    None, 'train', shuffle=True, seed=3
  )
  whole = [row['reader_query'] for row in dataset().as_numpy_iterator()]
  iterator = iter(dataset())
  for _ in range(50):
    next(iterator)
  path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / 'at'))
  fresh = iter(dataset())
  tf.train.Checkpoint(iterator=fresh).read(path).assert_consumed()
  rest = [row['reader_query'].numpy() for row in fresh]
  assert len(rest) == len(whole) - 50
  for one, other in zip(rest, whole[50:]):
    np.testing.assert_array_equal(one, other)


def test_malformed_records(data):
  path = data.folder / 'bad_test.csv'
  path.write_text('ok?,1,2,3,4,A\nbad?,1,2,3,A\nok too?,1,2,3,4,D\n')
  with pytest.raises(ValueError, match='bad_test.csv:2: found 5 columns'):
    make_task(data, train=str(path))
  make_task(data, train=str(path), on_error='skip', permutations='single')
  assert len(examples('tiny_mmlu')) == 2


def test_prompts_must_fit(data):
  with pytest.raises(ValueError, match='12 of 12 .* set it to'):
    multiple_choice.mmlu_task(
      'tiny_mmlu',
      train=str(data.folder / '*_dev.csv'),
      reader_vocabulary=str(data.reader_vocabulary),
      retriever_vocabulary=str(data.retriever_vocabulary),
      text=TextConfig(reader_query_length=16),
    )
