"""Title reassignment on a small real corpus."""

import json

import numpy as np
import pytest
import sentencepiece

from ralm_jax.data.corpus import passage_store
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.quickstart.reassignment import TitleReassignment


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  root = tmp_path_factory.mktemp('corpus')
  names = [f'module{i}.name{i * 7 % 13}_{i}' for i in range(30)]
  with open(root / 'passages.jsonl', 'w', encoding='utf-8') as file:
    for i, name in enumerate(names):
      file.write(
        json.dumps({'id': name, 'title': name, 'text': f'Return the thing number {i}.'}) + '\n'
      )
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(names * 5 + ['Return the thing number 1 2 3.'] * 9),
    model_prefix=str(root / 'pieces'),
    vocab_size=80,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  vocabulary = root / 'pieces.model'
  return passage_store.build_corpus(
    root / 'passages.jsonl', root / 'corpus', vocabulary, vocabulary, progress=False
  )


def queries_for(store, rows):
  text = TextConfig(question_format='{question}', target_format='{answer}', target_length=24)
  tokenizer = QueryTokenizer(text, store.reader_vocabulary, store.retriever_vocabulary)
  titles = [store.passage(row).title for row in rows]
  return tokenizer.batch(['q'] * len(rows), titles), tokenizer


def test_targets_are_the_titles_now_shown_over_the_gold_passage(store):
  gold = np.array([3, 17, 9, 22])
  queries, tokenizer = queries_for(store, gold)
  rows = np.array([[1, 3, 2], [4, 5, 6], [8, 9, 10], [1, 2, 22]])
  allowed = np.arange(0, 10)
  augment = TitleReassignment(store, title_rows=allowed, seed=1)
  shown = augment(queries, rows, step=5)
  assert np.array_equal(shown.rows[:, 0], gold)
  # The search missed 17, which takes the place of the last one found.
  assert shown.rows[1].tolist() == [17, 4, 5]
  names = {store.passage(row).title for row in allowed}
  for i in range(4):
    title = tokenizer.reader_vocabulary.decode(shown.titles[i * 3])
    assert tokenizer.answer(shown.queries.target_tokens[i]) == title
    assert title in names
  again = augment(queries, rows, step=5)
  assert again.titles.to_lists() == shown.titles.to_lists()
  other = augment(queries, rows, step=6)
  assert other.titles.to_lists() != shown.titles.to_lists()


def test_random_titles_are_targets_too(store):
  queries, tokenizer = queries_for(store, np.arange(8))
  rows = np.arange(16).reshape(8, 2)
  augment = TitleReassignment(store, random_titles=1.0, max_title_length=6)
  shown = augment(queries, rows, step=0)
  known = {tuple(t) for t in store.tokens(np.arange(30), 'reader_title').to_lists()}
  for i in range(8):
    title = shown.titles[2 * i]
    assert 3 <= len(title) <= 6 and tuple(title) not in known
    target = shown.queries.target_tokens[i]
    assert target[: len(title) + 1].tolist() == [*title, 1]


def test_an_answer_that_is_no_title_has_no_target(store):
  queries, _ = queries_for(store, np.array([3, 4]))
  queries.target_tokens[1, 0] += 1
  rows = np.array([[3, 1], [5, 6]])
  shown = TitleReassignment(store)(queries, rows, step=0)
  assert shown.queries.target_tokens[0].any()
  assert not shown.queries.target_tokens[1].any()
  assert shown.rows[1].tolist() == [5, 6]
