"""The training stream: order, position, shards, truncation, and its errors."""

import json

import numpy as np
import pytest

from ralm_jax.data import dates, pipeline
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.pipeline import DatasetConfig
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.tasks import qa, registration
from tests import tiny


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


def _task(data, name='pipeline_qa', text=None, **options) -> str:
  return qa.jsonl_task(
    name,
    **{'train': str(data.questions), **options},
    text=text or tiny.make_text(),
    reader_vocabulary=str(data.reader_vocabulary),
    retriever_vocabulary=str(data.retriever_vocabulary),
  )


def _iterator(data, text=None, process=(0, 1), **config):
  text = text or tiny.make_text()
  task = _task(data, text=text)
  return pipeline.get_dataset_iterator(
    DatasetConfig(task, **{'batch_size': 4, **config}),
    {
      'query': text.query_length,
      'reader_query': text.reader_query_length,
      'targets': text.target_length,
    },
    process_index=process[0],
    process_count=process[1],
  )


def _take(iterator, count):
  return [next(iterator) for _ in range(count)]


def _rows(batches):
  """One tuple an example, of the reader's query and the target."""
  return [
    (tuple(query), tuple(target))
    for batch in batches
    for query, target in zip(batch.reader_query_tokens, batch.target_tokens)
  ]


def test_position_is_restored_across_epochs(data):
  """Forty questions, so that twelve batches of four span two epochs."""
  iterator = _iterator(data)
  _take(iterator, 7)
  state = iterator.state()
  assert all(value.dtype == np.uint8 for value in state.values())
  expected = _rows(_take(iterator, 12))
  other = _iterator(data)
  other.restore(state)
  assert _rows(_take(other, 12)) == expected
  # And again from the same place, whatever has been read since.
  other.restore(state)
  assert _rows(_take(other, 12)) == expected


def test_position_of_another_stream_is_refused(data):
  state = _iterator(data).state()
  with pytest.raises(ValueError, match='position in the data'):
    _iterator(data, shuffle=False).restore(state)


def test_seed_decides_the_order(data):
  first = _rows(_take(_iterator(data, seed=1), 10))
  assert first == _rows(_take(_iterator(data, seed=1), 10))
  assert first != _rows(_take(_iterator(data, seed=2), 10))


@pytest.mark.parametrize('shuffle', [False, True])
def test_two_processes_share_the_examples(data, shuffle):
  # seqio's shuffling mixes epochs of a small file, so it takes a few of them
  # to see every example.
  count = 80 if shuffle else 10
  shares = []
  for index in range(2):
    batches = _take(_iterator(data, process=(index, 2), shuffle=shuffle), count)
    assert len(batches[0]) == 2  # half of the batch each
    shares.append({query for query, _ in _rows(batches)})
  assert [len(share) for share in shares] == [20, 20]
  assert not shares[0] & shares[1]
  assert len(shares[0] | shares[1]) == tiny.COUNT


def test_batch_is_divided_by_the_processes(data):
  with pytest.raises(ValueError, match='BATCH_SIZE 5 must be a multiple of .* 2'):
    _iterator(data, process=(0, 2), batch_size=5)


def test_answers_are_drawn_anew_in_every_epoch(data):
  iterator = _iterator(data, shuffle=False)
  epochs = [dict(_rows(_take(iterator, 10))) for _ in range(4)]
  assert all(len(epoch) == tiny.COUNT for epoch in epochs)
  drawn = [len({epoch[query] for epoch in epochs}) for query in epochs[0]]
  # Half of the questions have two answers, the others one.
  assert sorted(set(drawn)) == [1, 2]
  assert sum(count == 2 for count in drawn) > tiny.COUNT // 4


def test_target_of_the_file_is_preferred(data, tmp_path):
  path = tiny.write_jsonl(
    tmp_path / 'q.jsonl',
    [{'question': 'which?', 'answers': ['red', 'green'], 'target': 'blue'}] * 4,
  )
  text = tiny.make_text()
  task = _task(data, 'target_qa', train=str(path))
  iterator = pipeline.get_dataset_iterator(
    DatasetConfig(task, batch_size=4), {'query': 40, 'reader_query': 24, 'targets': 8}
  )
  vocabulary = vocabularies.load_vocabulary(data.reader_vocabulary)
  expected = vocabulary.encode(text.target('blue')) + [vocabulary.eos_id]
  for row in next(iterator).target_tokens:
    assert row[: len(expected)].tolist() == expected


def test_tokens_and_truncation(data):
  text = tiny.make_text(query_length=6, reader_query_length=5, target_length=2)
  batch = next(_iterator(data, text=text))
  assert batch.query_tokens.shape == (4, 6)
  assert batch.reader_query_tokens.shape == (4, 5)
  assert batch.target_tokens.shape == (4, 2)
  assert batch.query_tokens.dtype == np.int32
  vocabulary = vocabularies.load_vocabulary(data.retriever_vocabulary)
  # [CLS] and [SEP] survive, the end of a target does not.
  assert np.all(batch.query_tokens[:, 0] == vocabulary.cls_id)
  assert np.all(batch.query_tokens[:, -1] == vocabulary.eos_id)
  assert not np.any(batch.target_tokens == 1)


def test_same_tokens_as_the_evaluator(data):
  """Training and answering tokenise questions alike."""
  text = tiny.make_text()
  tokenizer = QueryTokenizer(
    text,
    vocabularies.load_vocabulary(data.reader_vocabulary),
    vocabularies.load_vocabulary(data.retriever_vocabulary),
  )
  batch = next(_iterator(data, shuffle=False))
  expected = tokenizer.batch([q['question'] for q in tiny.questions()[:4]])
  np.testing.assert_array_equal(batch.query_tokens, expected.query_tokens)
  np.testing.assert_array_equal(batch.reader_query_tokens, expected.reader_query_tokens)


def test_sentinel_is_one_token(data):
  vocabulary = vocabularies.load_vocabulary(data.reader_vocabulary)
  text = tiny.make_text()
  tokenizer = QueryTokenizer(text, vocabulary, vocabulary)
  ids = tokenizer.target('red')
  assert ids[0] == vocabulary.vocab_size - 1
  assert ids[-1] == vocabulary.eos_id
  assert tokenizer.answer([0, *ids]) == 'red'


def test_sentinel_of_the_official_vocabulary(shared_data):
  files = sorted(shared_data.glob('tokenizers/**/spiece.model'))
  if not files:
    pytest.skip('the official vocabulary is not there')
  vocabulary = vocabularies.load_vocabulary(files[0])
  tokenizer = QueryTokenizer(tiny.make_text(target_length=16), vocabulary, vocabulary)
  ids = tokenizer.target('Alan Turing')
  assert ids[0] == 32099 and ids[-1] == 1
  assert tokenizer.answer(ids) == 'Alan Turing'
  assert tokenizer.retriever_query('a <extra_id_0>')[-2:] == [32099, 1]


def test_padding_is_that_of_each_vocabulary(data, byte_pair_folder):
  """BART pads with 1; its 0 begins a sequence."""
  text = tiny.make_text(question_format='{question}', target_format='{answer}', target_length=16)
  task = qa.jsonl_task(
    'pipeline_byte_pair',
    train=str(data.questions),
    text=text,
    reader_vocabulary=str(byte_pair_folder / 'vocab.json'),
    retriever_vocabulary=str(data.retriever_vocabulary),
  )
  iterator = pipeline.get_dataset_iterator(
    DatasetConfig(task, batch_size=4, shuffle=False),
    {
      'query': text.query_length,
      'reader_query': text.reader_query_length,
      'targets': text.target_length,
    },
  )
  reader = vocabularies.load_vocabulary(byte_pair_folder / 'vocab.json')
  tokenizer = QueryTokenizer(text, reader, vocabularies.load_vocabulary(data.retriever_vocabulary))
  batch = next(iterator)
  questions = tiny.questions()[:4]
  expected = tokenizer.batch(
    [q['question'] for q in questions], [tokenizer.answer(target) for target in batch.target_tokens]
  )
  for field in ('query_tokens', 'reader_query_tokens', 'target_tokens'):
    np.testing.assert_array_equal(getattr(batch, field), getattr(expected, field))
  assert (batch.query_tokens == 0).any()
  assert (batch.reader_query_tokens == 1).any()
  assert not (batch.reader_query_tokens == 0).any()
  assert (batch.target_tokens[:, 0] == 0).all() and (batch.target_tokens[:, -1] == 1).any()
  for question, target in zip(questions, batch.target_tokens):
    assert tokenizer.answer(target) in question['answers']


def test_padding_is_the_models_whatever_a_task_knows(data, byte_pair_folder):
  """A user's own task, with seqio's vocabularies, which pad with 0."""
  import functools

  import seqio
  import tensorflow as tf

  from ralm_jax.data import features

  reader = vocabularies.load_vocabulary(byte_pair_folder / 'vocab.json')
  tokenizer = QueryTokenizer(
    tiny.make_text(question_format='{question}', target_format='{answer}'),
    reader,
    vocabularies.load_vocabulary(data.retriever_vocabulary),
  )
  seqio.TaskRegistry.remove('own_bart_qa')
  task = seqio.TaskRegistry.add(
    'own_bart_qa',
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files=False, seed=None: tf.data.Dataset.from_tensor_slices(
        {'question': ['who?'] * 4, 'answer': ['me'] * 4}
      ),
      splits=['train'],
    ),
    preprocessors=[functools.partial(registration.tokenize, tokenizer=tokenizer)],
    output_features={
      name: seqio.Feature(seqio.PassThroughVocabulary(1000, eos_id=2), add_eos=False)
      for name in ('query', 'reader_query', 'targets')
    },
  )
  lengths = {'query': 40, 'reader_query': 24, 'targets': 16}
  iterator = pipeline.get_dataset_iterator(
    DatasetConfig('own_bart_qa', batch_size=4),
    lengths,
    pad_ids={'reader_query': reader.pad_id, 'targets': reader.pad_id},
  )
  batch, expected = next(iterator), tokenizer.target('me')
  for row in batch.target_tokens:
    assert row.tolist() == expected + [1] * (16 - len(expected))
  assert (batch.reader_query_tokens[:, -1] == 1).all()
  assert (batch.query_tokens[:, -1] == 0).all()
  # As users of seqio make a converter.
  converter = features.RetrievalFeatureConverter(pack=False)
  example = next(converter(task.get_dataset(lengths, 'train'), lengths).as_numpy_iterator())
  assert example['target_tokens'].tolist() == expected + [0] * (16 - len(expected))


def test_task_of_a_published_format(data, tmp_path):
  path = tiny.write_jsonl(
    tmp_path / 'fever.jsonl',
    [{'id': 1, 'claim': 'red is a colour', 'label': 'NOT ENOUGH INFO'}] * 4
    + [{'id': 2, 'claim': 'red is a colour', 'label': 'SUPPORTS'}] * 4,
  )
  text = tiny.make_text()
  task = _task(data, 'fever_qa', train=str(path), record_format='fever_2way')
  iterator = pipeline.get_dataset_iterator(
    DatasetConfig(task, batch_size=4), {'query': 40, 'reader_query': 24, 'targets': 8}
  )
  vocabulary = vocabularies.load_vocabulary(data.reader_vocabulary)
  expected = vocabulary.encode(text.target('true')) + [vocabulary.eos_id]
  for row in next(iterator).target_tokens:
    assert row[: len(expected)].tolist() == expected


def test_unknown_task_names_the_nearest(data):
  _task(data)
  with pytest.raises(ValueError) as raised:
    pipeline.get_task('pipeline_qaa')
  message = str(raised.value)
  assert "'pipeline_qaa' is not registered. Did you mean 'pipeline_qa'?" in message
  assert 'MIXTURE_OR_TASK_MODULE' in message


def test_unknown_split_is_named(data):
  with pytest.raises(ValueError, match=r"no split 'validation'; it has \['train'\]"):
    _iterator(data, split='validation')


def test_task_without_files():
  with pytest.raises(ValueError, match='needs files'):
    qa.jsonl_task(reader_vocabulary='x', retriever_vocabulary='y')


def test_bad_line_is_reported_at_once(data, tmp_path):
  path = tmp_path / 'bad.jsonl'
  path.write_text(json.dumps(tiny.questions()[0]) + '\n{"question": \n')
  with pytest.raises(ValueError, match=f'{path}:2: malformed JSON'):
    _task(data, 'bad_qa', train=str(path))


def test_file_whose_questions_have_no_answers(data, tmp_path):
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', [{'question': 'why?'}])
  with pytest.raises(ValueError, match='no question with an answer'):
    _task(data, 'answerless', train=str(path), require_answers=False)


def _hiding(tmp_path, n=4, **fields):
  """Questions of which every other one excludes, knows or dates something."""
  rows = []
  for i, question in enumerate(tiny.questions()[:n]):
    question.pop('gold_passage_id')
    rows.append(question | (fields if i % 2 else {}))
  return str(tiny.write_jsonl(tmp_path / 'hiding.jsonl', rows))


def _plain_iterator(task, **config):
  return pipeline.get_dataset_iterator(
    DatasetConfig(task, **{'batch_size': 4, 'shuffle': False, **config}),
    {'query': 40, 'reader_query': 24, 'targets': 8},
  )


def test_passages_that_examples_name(data, tmp_path):
  store = PassageStore.open(data.corpus)
  path = _hiding(
    tmp_path, exclude_passage_ids=['p7', 'nobody', 'p3'], gold_passage_id='p5', date='2019'
  )
  iterator = _plain_iterator(_task(data, 'hiding_qa', train=path))
  with pytest.raises(ValueError, match='exclude passages, but of which corpus'):
    next(iterator)
  iterator.use_corpus(store)
  batch = next(iterator)
  assert batch.exclude_rows.tolist() == [[-1, -1], [7, 3], [-1, -1], [7, 3]]
  assert batch.gold_rows.tolist() == [[-1], [5], [-1], [5]]
  assert batch.max_dates.dtype == np.int32
  assert batch.max_dates.tolist() == [dates.NO_DATE_BOUND, dates.first_day('2019-01-01')] * 2
  # Read by nobody, closed-book.
  iterator.use_corpus(None)
  batch = next(iterator)
  assert batch.exclude_rows is None and batch.gold_rows is None


def test_examples_that_name_no_passages(data, tmp_path):
  iterator = _plain_iterator(_task(data, 'nothing_qa', train=_hiding(tmp_path)))
  batch = next(iterator)  # of no corpus: nothing is asked of one
  assert batch.exclude_rows is None and batch.max_dates is None
  iterator.use_corpus(PassageStore.open(data.corpus))
  batch = next(iterator)
  assert batch.exclude_rows is None and batch.gold_rows is None
  assert batch.max_dates is None


def test_rows_belong_to_their_examples(data, tmp_path):
  """Shuffled, in shards, restored: each example keeps what it excludes."""
  rows = [
    q | {'exclude_passage_ids': [f'p{i}', f'p{(i + 1) % 40}'][: 1 + i % 2]}
    for i, q in enumerate(tiny.questions())
  ]
  task = _task(data, 'kept_qa', train=str(tiny.write_jsonl(tmp_path / 'q.jsonl', rows)))
  tokenizer = QueryTokenizer(
    tiny.make_text(),
    vocabularies.load_vocabulary(data.reader_vocabulary),
    vocabularies.load_vocabulary(data.retriever_vocabulary),
  )
  example_of = {
    tuple(tokens): i
    for i, tokens in enumerate(tokenizer.batch([q['question'] for q in rows]).query_tokens)
  }
  store = PassageStore.open(data.corpus)
  iterator = _plain_iterator(task, shuffle=True)
  iterator.use_corpus(store)
  _take(iterator, 3)
  state = iterator.state()
  other = _plain_iterator(task, shuffle=True)
  other.restore(state)
  other.use_corpus(store)
  for batch, same in zip(_take(iterator, 12), _take(other, 12)):
    np.testing.assert_array_equal(batch.query_tokens, same.query_tokens)
    np.testing.assert_array_equal(batch.gold_rows, same.gold_rows)
    np.testing.assert_array_equal(batch.exclude_rows, same.exclude_rows)
    for tokens, gold, excluded in zip(batch.query_tokens, batch.gold_rows, batch.exclude_rows):
      example = example_of[tuple(tokens)]
      assert gold.tolist() == [example]
      assert [row for row in excluded if row >= 0] == [example, (example + 1) % 40][
        : 1 + example % 2
      ]


def test_long_lists_are_not_trimmed(data, tmp_path):
  """However many passages are excluded, and however few tokens are read."""
  many = [f'p{i}' for i in range(40)]
  path = _hiding(tmp_path, exclude_passage_ids=many)
  iterator = _plain_iterator(_task(data, 'long_qa', train=path))
  iterator.use_corpus(PassageStore.open(data.corpus))
  assert next(iterator).exclude_rows[1].tolist() == list(range(40))


def test_tasks_that_say_nothing_of_passages(data):
  """Those that users have registered with the three features only."""
  import functools

  import seqio
  import tensorflow as tf

  tokenizer = QueryTokenizer(
    tiny.make_text(),
    vocabularies.load_vocabulary(data.reader_vocabulary),
    vocabularies.load_vocabulary(data.retriever_vocabulary),
  )
  seqio.TaskRegistry.remove('bare_qa')
  seqio.TaskRegistry.add(
    'bare_qa',
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files=False, seed=None: tf.data.Dataset.from_tensor_slices(
        {'question': ['who?'] * 4, 'answer': ['me'] * 4}
      ),
      splits=['train'],
    ),
    preprocessors=[functools.partial(registration.tokenize, tokenizer=tokenizer)],
    output_features=registration.output_features(tokenizer),
  )
  batch = next(_plain_iterator('bare_qa'))
  assert batch.query_tokens.shape == (4, 40)
  assert batch.exclude_rows is None and batch.max_dates is None


def test_mixtures(data, tmp_path):
  """Tasks with and without excluded passages, in one mixture."""
  import seqio

  hiding = _task(
    data, 'mixed_hiding', train=_hiding(tmp_path, exclude_passage_ids=['p7', 'p3', 'p1'])
  )
  plain = _task(data, 'mixed_plain')
  seqio.MixtureRegistry.remove('mixed_qa')
  seqio.MixtureRegistry.add('mixed_qa', [(hiding, 1.0), (plain, 1.0)])
  iterator = _plain_iterator('mixed_qa')
  iterator.use_corpus(PassageStore.open(data.corpus))
  excluded = [
    tuple(row[row >= 0])
    for batch in _take(iterator, 10)
    if batch.exclude_rows is not None
    for row in batch.exclude_rows
  ]
  assert set(excluded) == {(), (7, 3, 1)}
