"""Assembled inputs equal tokenised texts, passage by passage."""

import numpy as np
import pytest

from ralm_jax.data import batches
from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import templates
from ralm_jax.data.text.templates import TokenTemplate

QUERIES = ['where is the file', 'what', 'a much longer question about the title number 5']


@pytest.fixture(scope='module')
def rows(small_store):
  rng = np.random.default_rng(0)
  rows = rng.integers(0, len(small_store), (3, 6))
  rows[0, 0], rows[0, 1], rows[1, 0], rows[2, 5] = 5, 6, 7, -1
  return rows


@pytest.fixture(scope='module')
def queries(small_store):
  return RaggedTokens.from_lists(small_store.reader_vocabulary.encode_batch(QUERIES))


def expected_reader_tokens(store, query, row, length, title_row=None):
  passage = store.passage(row)
  title = store.passage(row if title_row is None else title_row).merged_title
  text = f'{query} title: {title} context: {passage.text}' if row >= 0 else query
  vocabulary = store.reader_vocabulary
  return vocabulary.encode(text)[: length - 1] + [vocabulary.eos_id]


@pytest.mark.parametrize('length', [2, 12, 40, 300])
def test_reader_inputs_equal_tokenised_text(small_store, rows, queries, length):
  template = TokenTemplate.for_reader(small_store.reader_vocabulary)
  inputs = batches.assemble_reader_inputs(queries, rows, small_store, template, length)
  assert inputs.tokens.shape == inputs.mask.shape == (3, 6, length)
  assert inputs.tokens.dtype == np.int32 and inputs.mask.dtype == bool
  for b, k in np.ndindex(*rows.shape):
    expected = expected_reader_tokens(small_store, QUERIES[b], rows[b, k], length)
    assert inputs.tokens[b, k][inputs.mask[b, k]].tolist() == expected
    assert inputs.mask[b, k].tolist() == [True] * len(expected) + [False] * (length - len(expected))
    assert not inputs.tokens[b, k][~inputs.mask[b, k]].any()
  assert inputs.passage_mask.tolist() == (rows >= 0).tolist()


def test_a_long_query_evicts_the_passage(small_store, rows):
  vocabulary = small_store.reader_vocabulary
  template = TokenTemplate.for_reader(vocabulary)
  query = vocabulary.encode('many words ' * 30)
  inputs = batches.assemble_reader_inputs(
    RaggedTokens.from_lists([query] * 3), rows, small_store, template, 16
  )
  for tokens in inputs.tokens.reshape(-1, 16):
    assert tokens.tolist() == query[:15] + [vocabulary.eos_id]


def test_padded_queries_equal_ragged_ones(small_store, rows, queries):
  template = TokenTemplate.for_reader(small_store.reader_vocabulary)
  one = batches.assemble_reader_inputs(queries, rows, small_store, template, 50)
  two = batches.assemble_reader_inputs(queries.pad(80), rows, small_store, template, 50)
  np.testing.assert_array_equal(one.tokens, two.tokens)
  np.testing.assert_array_equal(one.mask, two.mask)


def test_titles_of_other_passages(small_store, rows, queries):
  template = TokenTemplate.for_reader(small_store.reader_vocabulary)
  title_rows = np.roll(rows, 1, axis=1)
  titles = small_store.tokens(title_rows.ravel(), 'reader_title')
  inputs = batches.assemble_reader_inputs(queries, rows, small_store, template, 60, titles=titles)
  for b, k in np.ndindex(*rows.shape):
    row, title_row = rows[b, k], title_rows[b, k]
    assert inputs.tokens[b, k][inputs.mask[b, k]].tolist() == expected_reader_tokens(
      small_store, QUERIES[b], row, 60, title_row
    )


def test_retriever_inputs_of_a_sentencepiece_retriever(small_store, rows):
  # The reader's columns under the retriever's names: one vocabulary for both.
  class OneVocabulary:
    def tokens(self, rows, column, *, max_length=None):
      return small_store.tokens(rows, column.replace('retriever', 'reader'), max_length=max_length)

  vocabulary = small_store.reader_vocabulary
  template = TokenTemplate.for_retriever(vocabulary)
  inputs = batches.assemble_retriever_inputs(rows, OneVocabulary(), template, 30)
  for b, k in np.ndindex(*rows.shape):
    passage = small_store.passage(rows[b, k])
    ids = vocabulary.encode(f'{passage.merged_title} {passage.text}')[:29]
    assert inputs.tokens[b, k][inputs.mask[b, k]].tolist() == [*ids, vocabulary.eos_id]
  assert inputs.mask.any(-1).all()  # Attention is never fully masked.


@pytest.mark.parametrize(
  'format, text',
  [(templates.CLOSED_BOOK_FORMAT, '{}'), ('question: {query} answer:', 'question: {} answer:')],
)
def test_closed_book(small_store, queries, format, text):
  vocabulary = small_store.reader_vocabulary
  template = TokenTemplate.for_reader(vocabulary, format)
  inputs = batches.assemble_reader_inputs(
    queries, np.full((3, 1), batches.NO_PASSAGE), None, template, 80
  )
  for b, query in enumerate(QUERIES):
    assert inputs.tokens[b, 0][inputs.mask[b, 0]].tolist() == [
      *vocabulary.encode(text.format(query)),
      vocabulary.eos_id,
    ]
  assert not inputs.passage_mask.any()


def test_errors(small_store, rows, queries):
  template = TokenTemplate.for_reader(small_store.reader_vocabulary)
  assemble = batches.assemble_reader_inputs
  with pytest.raises(ValueError, match='2 queries, but rows for 3'):
    assemble(queries.take([0, 1]), rows, small_store, template, 9)
  with pytest.raises(ValueError, match='expected integer rows'):
    assemble(queries, rows[0], small_store, template, 9)
  with pytest.raises(ValueError, match='expected integer rows'):
    assemble(queries, rows * 1.0, small_store, template, 9)
  with pytest.raises(ValueError, match='1 titles for'):
    assemble(queries, rows, small_store, template, 9, titles=queries.take([0]))
  with pytest.raises(ValueError, match='give a store'):
    assemble(queries, rows, None, template, 9)
  with pytest.raises(IndexError, match='no row 40; the store has 40 passages'):
    assemble(queries, np.full((3, 1), 40), small_store, template, 9)


def test_query_batch():
  tokens = np.zeros((2, 4), np.int32)
  batch = QueryBatch(tokens, tokens, tokens, np.array([3, -1]))
  assert len(batch) == 2 and batch.is_example.tolist() == [True, False]
  with pytest.raises(ValueError, match='differ in size'):
    QueryBatch(tokens, tokens, tokens, np.array([3]))


def test_real_passages_equal_tokenised_text(shared_data, tmp_path):
  from ralm_jax.data.corpus import passage_store as corpus  # pylint: disable=g-import-not-at-top

  store = corpus.build_corpus(
    [shared_data / 'passages/w100.jsonl', shared_data / 'passages/xquad_en.jsonl'],
    tmp_path / 'corpus',
    shared_data / 'tokenizers/t5/spiece.model',
    shared_data / 'tokenizers/bert-base-uncased/vocab.txt',
    shard_size=400,
    n_workers=1,
    progress=False,
  )
  texts = ['question: who was he answer: <extra_id_0>', 'when was the film made']
  vocabulary = store.reader_vocabulary
  rows = np.random.default_rng(1).permutation(len(store))[:1200].reshape(2, 600)
  inputs = batches.assemble_reader_inputs(
    RaggedTokens.from_lists(vocabulary.encode_batch(texts)),
    rows,
    store,
    TokenTemplate.for_reader(vocabulary),
    256,
  )
  retriever_inputs = batches.assemble_retriever_inputs(
    rows, store, TokenTemplate.for_retriever(store.retriever_vocabulary), 128
  )
  for b in range(2):
    for k, passage in enumerate(store.passages(rows[b])):
      assert inputs.tokens[b, k][inputs.mask[b, k]].tolist() == vocabulary.encode(
        f'{texts[b]} title: {passage.merged_title} context: {passage.text}'
      )[:255] + [vocabulary.eos_id]
      ids = store.retriever_vocabulary.encode(
        f'{passage.merged_title} {passage.text}', add_special_tokens=True
      )
      expected = ids if len(ids) <= 128 else [*ids[:127], ids[-1]]
      assert retriever_inputs.tokens[b, k][retriever_inputs.mask[b, k]].tolist() == expected
