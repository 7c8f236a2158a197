"""Passages that are longer than what is read of them."""

import dataclasses

import numpy as np
import pytest

from ralm_jax.data.corpus import cut_text, passage_store, passages as passages_lib
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.text.prompts import PromptFormat
from ralm_jax.data.text_config import TextConfig
from tests import decoder_folders, tiny


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny.make_data(tmp_path_factory.mktemp('data'))


def _corpus(data, folder, rows, **options):
  vocabularies = data.reader_vocabulary, data.retriever_vocabulary
  return passage_store.build_corpus(
    tiny.write_jsonl(folder / 'p.jsonl', rows),
    folder / f'corpus{len(options)}',
    *vocabularies,
    n_workers=1,
    progress=False,
    **options,
  )


def test_counts_and_remedy(data, tmp_path):
  """One passage in three has 12,005 words, of which 64 tokens are read."""
  long = ' '.join(['filler', 'word', 'here.'] * 4001 + ['xylophone', 'end'])
  rows = [{'id': str(i), 'title': 't', 'text': 'red lake'} for i in range(2)]
  rows.append({'id': 'long', 'title': 't', 'text': long})
  text = tiny.make_text()
  store = _corpus(data, tmp_path, rows)
  assert cut_text.cut_passages(store, text) == {'retriever': 1, 'reader': 1}
  note = cut_text.note(store, text)
  assert note and '1 of 3 passages' in note and '--max_words' in note
  assert cut_text.note(store, text, rows=np.array([0, 1])) is None
  assert '1 of 2 passages' in cut_text.note(store, text, rows=np.array([0, 2]))
  cut = _corpus(data, tmp_path, rows, max_words=5)
  assert cut_text.note(cut, text) is None and len(cut) == 2 + 2401


def test_counts_are_those_of_the_models_inputs(data, tmp_path):
  """The longest passages that fit, and one token more."""
  rows = [{'id': str(n), 'title': 'red', 'text': ' '.join(['red'] * n)} for n in range(55, 70)]
  text = tiny.make_text(retriever_passage_length=64)
  store = _corpus(data, tmp_path, rows)
  # [CLS] title text [SEP]: 61 words of one token fit.
  assert cut_text.cut_passages(store, text)['retriever'] == sum(n > 61 for n in range(55, 70))


def test_passages_of_prompts_are_counted_without_a_question(data, tmp_path):
  reader = decoder_folders.write(tmp_path / 'reader', 'smollm2', size=400)
  rows = [{'id': str(n), 'title': 'red', 'text': ' '.join(['red'] * n)} for n in range(20, 50)]
  store = passage_store.build_corpus(
    tiny.write_jsonl(tmp_path / 'p.jsonl', rows),
    tmp_path / 'corpus',
    reader,
    data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  text = TextConfig(passage_length=400, question_format='{question}', target_format='{answer}')
  prompts = PromptFormat(text, store.reader_vocabulary)
  lengths = list(map(len, prompts.passages([(row['title'], row['text']) for row in rows])))
  text = dataclasses.replace(text, passage_length=lengths[15])
  expected = sum(length > lengths[15] for length in lengths)
  assert cut_text.cut_passages(store, text)['reader'] == expected
  assert 'question' not in cut_text.note(store, text)


@pytest.mark.parametrize(
  'text, max_words, parts',
  [
    ('a b c d', 2, ['a b', 'c d']),
    ('北京是中国的首都。', 3, ['北京是', '中国的', '首都。']),
    ('東京は tower です', 3, ['東京は', 'tower です']),
    ('กรุงเทพ', 4, ['กรุง', 'เทพ']),
  ],
)
def test_max_words_in_scripts_without_spaces(text, max_words, parts):
  """An article in Chinese is not one word."""
  found = passages_lib.split_long(Passage('a', '', '', text), max_words)
  assert [part.text for part in found] == parts


@pytest.mark.parametrize(
  'fields, document',
  [
    ({'wikipedia_id': 290}, '290'),
    ({'wikipedia_id': '290', 'document': 'own'}, 'own'),
    ({'document': None, 'wikipedia_id': '290'}, '290'),
    ({}, ''),
  ],
)
def test_kilts_page_of_a_passage_is_its_document(tmp_path, fields, document):
  path = tiny.write_jsonl(tmp_path / 'p.jsonl', [{'id': 'wiki:0', 'text': 'x', **fields}])
  (passage,) = passages_lib.iterate_passages(path)
  assert passage.document == document
