"""Title reassignment on a small real corpus."""
import json

import numpy as np
import pytest
import sentencepiece

from ralm_jax.data import corpus
from ralm_jax.data import tokenization
from ralm_jax.data import text_config
from ralm_jax.quickstart import reassignment


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  root = tmp_path_factory.mktemp('corpus')
  names = [f'module{i}.name{i * 7 % 13}_{i}' for i in range(30)]
  with open(root / 'passages.jsonl', 'w', encoding='utf-8') as file:
    for i, name in enumerate(names):
      file.write(json.dumps({
          'id': name, 'title': name, 'text': f'Return the thing number {i}.'
      }) + '\n')
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(names * 5 + ['Return the thing number 1 2 3.'] * 9),
      model_prefix=str(root / 'pieces'), vocab_size=80, pad_id=0, eos_id=1,
      unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
  )
  vocabulary = root / 'pieces.model'
  return corpus.build_corpus(
      root / 'passages.jsonl', root / 'corpus', vocabulary, vocabulary,
      progress=False,
  )


def queries_for(store, rows):
  text = text_config.TextConfig(
      question_format='{question}', target_format='{answer}', target_length=24)
  tokenizer = tokenization.QueryTokenizer(
      text, store.reader_vocabulary, store.retriever_vocabulary)
  titles = [store.passage(row).title for row in rows]
  return tokenizer.batch(['q'] * len(rows), titles), tokenizer


def test_targets_are_the_titles_now_shown_over_the_gold_passage(store):
  gold = np.array([3, 17, 9, 22])
  queries, tokenizer = queries_for(store, gold)
  rows = np.array([[3, 1, 2], [4, 5, 6], [8, 9, 10], [1, 2, 22]])
  pool = np.arange(0, 10)
  augment = reassignment.TitleReassignment(store, title_pool=pool, seed=1)
  shown, new_rows, title_rows = augment(queries, rows, step=5)
  for i in range(4):
    place = np.flatnonzero(new_rows[i] == gold[i])
    assert len(place) == 1  # put there where the search missed it
    title = store.passage(title_rows[i, place[0]]).title
    assert tokenizer.answer(shown.target_tokens[i]) == title
    assert set(title_rows[i]) <= set(pool)
  again = augment(queries, rows, step=5)
  assert np.array_equal(title_rows, again[2])
  other = augment(queries, rows, step=6)
  assert not np.array_equal(title_rows, other[2])


def test_unknown_answers_and_zero_probability_change_nothing(store):
  queries, tokenizer = queries_for(store, np.array([3, 4]))
  queries.target_tokens[1, 0] += 1  # no title any more
  rows = np.array([[3, 1], [5, 6]])
  augment = reassignment.TitleReassignment(store, probability=0.0)
  shown, new_rows, title_rows = augment(queries, rows, step=0)
  assert np.array_equal(shown.target_tokens, queries.target_tokens)
  assert np.array_equal(new_rows, title_rows)
  assert [sorted(row) for row in new_rows.tolist()] == [[1, 3], [5, 6]]


def test_fewer_passages_keep_the_gold_one(store):
  queries, _ = queries_for(store, np.array([3] * 8))
  rows = np.tile(np.array([[1, 2, 3, 4, 5]]), (8, 1))
  augment = reassignment.TitleReassignment(store, n_passages=2)
  _, new_rows, _ = augment(queries, rows, step=0)
  assert new_rows.shape == (8, 2)
  assert np.all(np.any(new_rows == 3, axis=-1))
  assert len({int(np.argmax(row == 3)) for row in new_rows}) == 2
