"""RAG's and DPR's inputs, token for token as Hugging Face makes them."""

import json
import types

import numpy as np
import pytest

from ralm_jax.data import batches
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import templates, vocabularies
from ralm_jax.data.text.templates import TokenTemplate
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.retrieval import assembler as assembler_lib
from ralm_jax.retrieval.assembler import Assembler

transformers = pytest.importorskip('transformers')

QUESTIONS = ['who wrote the file ?', 'what is a path', 'naïve « question » 7']
ANSWERS = ['the file', 'Etude', 'nothing at all ' * 5]
LENGTH = 40


def make_text(**changes) -> TextConfig:
  return TextConfig(
    **{
      **dict(
        question_format='{question}',
        target_format='{answer}',
        reader_format=templates.RAG_READER_FORMAT,
        retriever_format=templates.DPR_RETRIEVER_FORMAT,
        query_length=24,
        reader_query_length=LENGTH,
        passage_length=LENGTH,
        retriever_passage_length=32,
        target_length=8,
        n_passages=3,
      ),
      **changes,
    }
  )


@pytest.fixture(scope='module')
def peer(byte_pair_folder):
  content = json.loads((byte_pair_folder / 'tokenizer.json').read_text())
  return transformers.BartTokenizer(
    vocab=content['model']['vocab'],
    merges=[tuple(pair) for pair in content['model']['merges']],
    mask_token=transformers.AddedToken('<mask>', lstrip=True, special=True),
  )


@pytest.fixture(scope='module')
def store(
  tmp_path_factory, small_passages, write_jsonl, byte_pair_folder, wordpiece_file
) -> PassageStore:
  folder = tmp_path_factory.mktemp('corpus')
  source = write_jsonl(folder / 'source.jsonl', small_passages)
  return passage_store.build_corpus(
    source,
    folder / 'corpus',
    byte_pair_folder / 'vocab.json',
    wordpiece_file,
    shard_size=16,
    n_workers=1,
    progress=False,
  )


def make_assembler(store, **changes) -> Assembler:
  return Assembler(
    QueryTokenizer(make_text(**changes), store.reader_vocabulary, store.retriever_vocabulary), store
  )


def test_reader_inputs_are_those_of_rag(store, peer):
  """Every passage: empty titles and texts, truncated ones, other scripts."""
  assembler = make_assembler(store)
  rows = np.concatenate([np.arange(40), [6, 5]]).reshape(3, 14)
  batch = assembler.reader_batch(assembler.tokenizer.batch(QUESTIONS, ANSWERS), rows)
  passages = [store.passages(one) for one in rows]
  # What RagRetriever itself joins and tokenises.
  retriever = types.SimpleNamespace(
    config=types.SimpleNamespace(title_sep=' / ', doc_sep=' // ', max_combined_length=LENGTH),
    generator_tokenizer=peer,
  )
  ids, mask = transformers.RagRetriever.postprocess_docs(
    retriever,
    [
      {
        'title': [p.merged_title for p in some],
        'text': [' '.join(p.text.split()) if p.text.isascii() else p.text for p in some],
      }
      for some in passages
    ],
    QUESTIONS,
    None,
    rows.shape[1],
    return_tensors='np',
  )
  assert (np.asarray(mask).sum(1) == LENGTH).any()
  assert not np.asarray(mask).all()
  np.testing.assert_array_equal(batch.reader_tokens.reshape(-1, LENGTH), ids)
  np.testing.assert_array_equal(batch.reader_mask.reshape(-1, LENGTH), np.asarray(mask, bool))


def test_targets_are_those_of_rag(store, peer):
  """Truncated targets keep their end, and padding is not a token."""
  tokenizer = make_assembler(store).tokenizer
  batch = tokenizer.batch(QUESTIONS, ANSWERS, size=5)
  expected = peer(text_target=ANSWERS, max_length=8, truncation=True, padding='max_length')
  np.testing.assert_array_equal(batch.target_tokens[:3], expected['input_ids'])
  assert (batch.target_tokens[3:] == 1).all()
  reader_batch = make_assembler(store).reader_batch(batch, np.full((5, 3), 4), with_retriever=False)
  np.testing.assert_array_equal(
    reader_batch.target_mask[:3], np.array(expected['attention_mask'], bool)
  )
  assert not reader_batch.target_mask[3:].any()
  assert [tokenizer.answer(row) for row in batch.target_tokens[:2]] == ANSWERS[:2]


@pytest.mark.parametrize(
  'format',
  [
    '{query}',
    '{query} title: {title} context: {text}',
    'question: {query} context: {text}',
    '{title} / {text}',
    '{{ {title} {query}',
  ],
)
def test_whatever_comes_first_begins_the_text(store, peer, format):
  """A query, a title or a literal; an empty one leaves the space behind it."""
  assembler = make_assembler(store, reader_format=format)
  rows = np.arange(3, 12).reshape(3, 3)
  batch = assembler.reader_batch(assembler.tokenizer.batch(QUESTIONS), rows, with_retriever=False)
  for b, question in enumerate(QUESTIONS):
    for k, passage in enumerate(store.passages(rows[b])):
      text = format.format(
        query=question, title=passage.merged_title, text=' '.join(passage.text.split(' '))
      )
      text = text.replace('  ', ' ')
      if passage.text.isascii():
        text = (' ' if text.startswith(' ') else '') + ' '.join(text.split())
      expected = peer(text.rstrip(' '), max_length=LENGTH, truncation=True).input_ids
      assert batch.reader_tokens[b, k][batch.reader_mask[b, k]].tolist() == expected


def test_missing_passages_leave_the_query(store):
  assembler = make_assembler(store)
  batch = assembler.reader_batch(
    assembler.tokenizer.batch(QUESTIONS), np.full((3, 2), -1), with_retriever=False
  )
  vocabulary = store.reader_vocabulary
  assert not batch.passage_mask.any()
  for b, question in enumerate(QUESTIONS):
    assert batch.reader_tokens[b, 1][batch.reader_mask[b, 1]].tolist() == [
      0,
      *vocabulary.encode(question),
      2,
    ]


def test_dpr_passages_are_pairs_of_bert(
  tmp_path, shared_data, small_passages, write_jsonl, byte_pair_folder
):
  """`[CLS] title [SEP] text [SEP]`, in the official vocabulary."""
  folder = shared_data / 'tokenizers/bert-base-uncased'
  peer = transformers.BertTokenizer.from_pretrained(folder)
  store = passage_store.build_corpus(
    [write_jsonl(tmp_path / 'source.jsonl', small_passages), shared_data / 'passages/w100.jsonl'],
    tmp_path / 'corpus',
    byte_pair_folder / 'tokenizer.json',
    folder / 'vocab.txt',
    n_workers=1,
    progress=False,
  )
  assembler = make_assembler(store)
  rows = np.arange(240)
  inputs = assembler.passage_inputs(rows)
  passages = store.passages(rows)
  expected = peer(
    [p.merged_title for p in passages],
    [p.text for p in passages],
    max_length=32,
    truncation='only_second',
    padding='max_length',
  )
  np.testing.assert_array_equal(inputs.tokens[:, 0], expected['input_ids'])
  np.testing.assert_array_equal(inputs.mask[:, 0], np.array(expected['attention_mask'], bool))
  queries = assembler.tokenizer.batch(QUESTIONS)
  np.testing.assert_array_equal(
    queries.query_tokens,
    peer(QUESTIONS, max_length=24, truncation=True, padding='max_length').input_ids,
  )


def test_recall_finds_answers_inside_passages(store):
  """An answer's first word has other ids in a target than in a passage."""
  assembler = make_assembler(store)
  texts = [store.passage(row).text.split() for row in (1, 2, 3, 8)]
  answers = [' '.join(texts[0][2:4]), 'absent words', texts[2][0], '']
  batch = assembler.reader_batch(
    assembler.tokenizer.batch(['q'] * 4, answers),
    np.array([[0, 1], [2, 3], [3, 4], [8, 9]]),
    with_retriever=False,
  )
  # As they are, only the empty answer seems to be found, by its <s>.
  assert assembler_lib.answer_recall(batch) == 1 / 4
  assert assembler.answer_recall(batch) == pytest.approx(2 / 3)
  # There is no sentinel to leave out: half of an answer is none.
  halves = [f'absent {texts[0][2]}', texts[1][1], texts[2][0], '']
  batch = assembler.reader_batch(
    assembler.tokenizer.batch(['q'] * 4, halves),
    np.array([[0, 1], [2, 3], [3, 4], [8, 9]]),
    with_retriever=False,
  )
  for skip in (0, 1):
    assert assembler.answer_recall(batch, skip) == pytest.approx(2 / 3)


def test_templates_that_cannot_begin_so(store):
  for format, message in (
    ('{text} // {query}', r'begins with \{text\}'),
    ('{query} / {text} // {query}', 'is first and occurs again'),
  ):
    with pytest.raises(ValueError, match=message):
      make_assembler(store, reader_format=format)
  # A title may come again: the corpus holds it both ways.
  template = TokenTemplate.for_reader(store.reader_vocabulary, '{title} / {title}')
  assert template.fields == ('title_start', 'title')
  # Vocabularies whose first word is like any other take all of them.
  TokenTemplate.for_retriever(store.retriever_vocabulary, '{text}')


def test_other_titles_cannot_begin_a_text(store):
  template = TokenTemplate.for_reader(store.reader_vocabulary, templates.RAG_READER_FORMAT)
  with pytest.raises(ValueError, match='other titles cannot take its place'):
    batches.assemble_reader_inputs(
      RaggedTokens.empty(1), np.array([[1]]), store, template, 20, titles=RaggedTokens.empty(1)
    )


def test_sentinels_need_a_vocabulary_that_has_them(store):
  with pytest.raises(ValueError, match='target_format .* has a sentinel of T5'):
    make_assembler(store, target_format='<extra_id_0> {answer}')
  with pytest.raises(ValueError, match='question_format .* has a sentinel of T5'):
    make_assembler(store, question_format='{question} <extra_id_0>')


def test_corpus_holds_titles_as_they_begin_a_text(store, small_passages):
  vocabulary = store.reader_vocabulary
  rows = np.arange(40)
  assert store.tokens(rows, 'reader_title_start').to_lists() == [
    vocabulary.encode_start(p.merged_title) for p in small_passages
  ]
  assert store.tokens(rows, 'reader_title').to_lists() == [
    vocabulary.encode(p.merged_title) for p in small_passages
  ]
  with pytest.raises(ValueError, match="no column 'retriever_title_start'"):
    store.tokens(rows, 'retriever_title_start')
  # Added passages have it as well, and the folder keeps the vocabulary.
  assert (
    vocabularies.load_vocabulary(store.directory / 'reader_vocabulary.json').fingerprint
    == vocabulary.fingerprint
  )


def test_added_passages_have_titles_that_begin_a_text(
  tmp_path, small_passages, write_jsonl, byte_pair_folder
):
  """One vocabulary for both models, and passages that came later."""
  file = byte_pair_folder / 'tokenizer.json'
  store = passage_store.build_corpus(
    write_jsonl(tmp_path / 'a.jsonl', small_passages[:9]),
    tmp_path / 'corpus',
    file,
    file,
    n_workers=1,
    progress=False,
  )
  rows = passage_store.append_passages(store.directory, small_passages[9:12])
  store.reload()
  for column in ('reader_title_start', 'retriever_title_start'):
    assert store.tokens(rows, column).to_lists() == [
      store.reader_vocabulary.encode_start(p.merged_title) for p in small_passages[9:12]
    ]
  assembler = Assembler(
    QueryTokenizer(
      make_text(retriever_format='{title} {text}'),
      store.reader_vocabulary,
      store.retriever_vocabulary,
    ),
    store,
  )
  ids = assembler.passage_inputs(rows[:1])
  text = f'{small_passages[9].merged_title} {small_passages[9].text}'
  assert ids.tokens[0, 0][ids.mask[0, 0]].tolist() == [
    0,
    *store.reader_vocabulary.encode_start(text)[:30],
    2,
  ]
  query = assembler.tokenizer.retriever_query('the file')
  assert query == [0, *store.reader_vocabulary.encode_start('the file'), 2]


def test_corpus_without_the_column_names_the_remedy(
  tmp_path, small_passages, write_jsonl, byte_pair_folder, wordpiece_file, monkeypatch
):
  """A corpus built before there was such a column."""
  from ralm_jax.data.text import byte_pair_vocabulary

  with monkeypatch.context() as patched:
    patched.setattr(byte_pair_vocabulary.BytePairVocabulary, 'first_word_differs', False)
    store = passage_store.build_corpus(
      write_jsonl(tmp_path / 'a.jsonl', small_passages[:9]),
      tmp_path / 'corpus',
      byte_pair_folder / 'tokenizer.json',
      wordpiece_file,
      n_workers=1,
      progress=False,
    )
  make_assembler(store, reader_format='{query} / {title} {text}')
  with pytest.raises(ValueError, match="'reader_title_start'.*`ralm corpus`"):
    make_assembler(store)


def test_corpora_of_other_vocabularies_have_no_such_column(small_store):
  with pytest.raises(ValueError, match="no column 'reader_title_start'"):
    small_store.tokens(np.arange(3), 'reader_title_start')
