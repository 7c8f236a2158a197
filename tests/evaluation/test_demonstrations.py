"""Which demonstrations are shown before a question, with which passages."""

import json
import logging
import types

import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.data.corpus.passage_store import StoredPassage
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.evaluation.demonstrations import Demonstrations, Pool
from ralm_jax.evaluation.task import ReadingOptions
from ralm_jax.training.partitioning import Partitioner
from tests import decoder_folders

SIZE = 8
LETTERS = 'abcdefgh'
ROWS = [{'question': f'what is {letter}?', 'answers': [letter.upper()]} for letter in LETTERS]


def stored(row, text):
  return StoredPassage(row=row, id=str(row), title='', section='', text=text)


class Source:
  """Knows the gold passage of one question, and finds one for any."""

  def __init__(self):
    self.store = self
    self.asked = []

  def gold_passages(self, questions):
    return [[stored(0, 'gold')] if 'what is b?' == q.question else [] for q in questions]

  def retrieve(self, params, questions):
    self.asked += [q.question for q in questions]
    rows = np.full((SIZE, 3), -1)
    rows[: len(questions)] = [4, 5, 6]
    return types.SimpleNamespace(rows=rows)

  def passages(self, rows):
    return [stored(row, f'found {row}') for row in rows.tolist()]


@pytest.fixture
def make(tmp_path):
  reader = vocabularies.load_vocabulary(decoder_folders.write(tmp_path / 'reader', 'smollm2'))
  letters = tmp_path / 'vocab.txt'
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'what', 'is', '?', *LETTERS]
  letters.write_text('\n'.join(pieces) + '\n')
  retriever = vocabularies.load_vocabulary(letters)

  def encode_queries(params, tokens, mask):
    """A letter's place in the alphabet, on a circle."""
    letter = jnp.max(jnp.where(tokens >= 8, tokens - 8, 0), axis=-1)
    return jnp.stack([jnp.cos(letter / 3), jnp.sin(letter / 3)], axis=-1) * params

  def make(rows=ROWS, reader_format='x {query} {text}', order='best_last', **options):
    text = TextConfig(
      question_format='Question: {question}\nAnswer:',
      target_format=' {answer}',
      reader_format=reader_format,
    )
    tokenizer = QueryTokenizer(text, reader, retriever)
    model = types.SimpleNamespace(encode_queries=encode_queries, passage_order=order)
    spec = types.SimpleNamespace(tokenizer=tokenizer, text=text, model=model)
    path = tmp_path / 'shown.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    pool = Pool.read(ReadingOptions(demonstrations=str(path), **options), 'qa')
    return Demonstrations(pool, spec, Partitioner(), SIZE)

  make.decode = reader.decode
  return make


def shown(make, demonstrations, questions=('who?',), source=None):
  heads = demonstrations.heads(jnp.ones(()), questions, source or Source())
  return [make.decode(head) for head in heads]


def asked(text):
  return [line[-2] for line in text.split('\n') if line.startswith('Question: ')]


def test_the_same_for_all_by_hash(make):
  first = shown(make, make(num_demonstrations=3), ['who?', 'where?'])
  (head,) = first
  assert len(asked(head)) == 3
  # The order of the file plays no part, more contain the fewer, and the seed is one.
  again = shown(make, make(rows=ROWS[::-1], num_demonstrations=3))
  more = shown(make, make(num_demonstrations=5))
  other = shown(make, make(num_demonstrations=3, demonstrations_seed=1))
  assert again == first and asked(more[0])[:3] == asked(head) and other != first


def test_the_nearest_to_each_question_the_nearest_one_last(make):
  few = {'num_demonstrations': 3, 'demonstration_choice': 'nearest'}
  heads = shown(make, make(**few), ['is it h', 'is it a'])
  assert len(heads) == SIZE and heads[2] == ''  # of padding
  assert [asked(head) for head in heads[:2]] == [list('fgh'), list('cba')]


def test_passages_of_the_record_then_gold_then_retrieved(make):
  rows = [
    {**ROWS[0], 'passages': [{'title': 'T', 'text': 'own'}, {'title': '', 'text': 'more'}]},
    *ROWS[1:3],
  ]
  source = Source()
  demonstrations = make(rows, num_demonstrations=3, demonstration_passages=2)
  (head,) = shown(make, demonstrations, source=source)
  parts = dict(zip(asked(head), head.split('Answer: ')))
  before = {letter: part.split('\n')[-3:-1] for letter, part in parts.items()}
  assert before['a'] == ['Context: T. own', 'Question: what is a?'] or 'own' in parts['a']
  assert 'Context: more\nContext: T. own\nQuestion: what is a?\n' in head  # best last
  assert 'Context: gold\nQuestion: what is b?\n' in head
  assert 'Context: found 5\nContext: found 4\nQuestion: what is c?\n' in head
  assert source.asked == ['what is c?']
  shown(make, demonstrations, source=source)
  assert source.asked == ['what is c?']  # once
  first = make(rows, order='best_first', num_demonstrations=3, demonstration_passages=2)
  assert 'Context: T. own\nContext: more\nQuestion' in shown(make, first)[0]
  (bare,) = shown(make, make(rows, num_demonstrations=3, demonstration_passages=0))
  (closed,) = shown(make, make(rows, num_demonstrations=3, reader_format='{query}'))
  assert bare == closed and 'Context' not in bare


def test_no_passage_anywhere(make, caplog):
  class Nowhere(Source):
    def retrieve(self, params, questions):
      return types.SimpleNamespace(rows=np.full((SIZE, 3), -1))

  with caplog.at_level(logging.WARNING):
    shown(make, make(ROWS[:4]), source=Nowhere())
  assert '3 of 4 demonstrations are shown without a passage' in caplog.text


@pytest.mark.parametrize('question', ['what is c?', 'What is  C'])
@pytest.mark.parametrize('choice', ['seed', 'nearest'])
def test_a_question_that_is_asked_is_refused(make, question, choice):
  demonstrations = make(num_demonstrations=1, demonstration_choice=choice)
  with pytest.raises(ValueError, match=r'shown.jsonl:3\), which would tell its answer'):
    shown(make, demonstrations, ['who?', question])
  same = types.SimpleNamespace(question=question, path='asked.jsonl', line=7)
  with pytest.raises(ValueError, match=r'^asked.jsonl:7: .*shown.jsonl:3'):
    demonstrations.check([same])


def test_patterns_targets_and_too_few(make):
  rows = [
    {**ROWS[0], 'answers': ['x+y'], 'patterns': True},
    {**ROWS[1], 'answers': ['p', 'q'], 'target': 'q'},
  ]
  (head,) = shown(make, make(rows, num_demonstrations=2))
  assert 'Answer: xy\n' in head and 'Answer: q\n' in head
  with pytest.raises(ValueError, match='holds 2 questions with an answer, fewer than the 4'):
    make([*rows, {'question': 'what is c?', 'answers': ['']}])  # as QED's files have them


@pytest.mark.parametrize(
  'options, message',
  [
    ({'num_demonstrations': 2}, '--num_demonstrations is of demonstrations'),
    ({'num_demonstrations': 4}, '--num_demonstrations is of demonstrations'),
    ({'demonstrations': 'x', 'demonstration_choice': 'best'}, 'must be one of seed, nearest'),
    ({'passage_order': 'random'}, 'must be one of best_last, best_first'),
    ({'demonstrations': 'x', 'num_demonstrations': 0}, 'num_demonstrations must be at least 1'),
  ],
)
def test_options_at_fault(options, message):
  with pytest.raises(ValueError, match=message):
    ReadingOptions(**options)
