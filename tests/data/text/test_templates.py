"""Rendering on ids equals tokenising the rendered text."""

import numpy as np
import pytest

from ralm_jax.data import ragged
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import templates, vocabularies
from ralm_jax.data.text.templates import TokenTemplate

QUERIES = ['what is this', '', 'one two three four five six']
TITLES = ['A title', 'title: number 3', '']
TEXTS = ['some text, with “marks”.', '', 'long ' * 30]


@pytest.fixture(scope='module')
def vocabulary(sentencepiece_file):
  return vocabularies.load_vocabulary(sentencepiece_file)


@pytest.fixture(scope='module')
def fields(vocabulary):
  return {
    name: RaggedTokens.from_lists(vocabulary.encode_batch(texts))
    for name, texts in (('query', QUERIES), ('title', TITLES), ('text', TEXTS))
  }


@pytest.mark.parametrize(
  'format',
  [
    templates.READER_FORMAT,
    '{query}',
    '{title} {text}',
    'a {{b}} {text}\n{query} end',
    'question: {query} answer: <extra_id_0> {text}',
    '{text} {text}',
  ],
)
@pytest.mark.parametrize('length', [1, 2, 8, 20, 200])
def test_rendering_equals_tokenising(vocabulary, fields, format, length):
  template = TokenTemplate.for_reader(vocabulary, format)
  rendered = template.render(fields, length)
  for index in range(3):
    text = format.format(query=QUERIES[index], title=TITLES[index], text=TEXTS[index])
    expected = vocabulary.encode(text)[: length - 1] + [vocabulary.eos_id]
    assert rendered[index].tolist() == expected


def test_wordpiece_gets_its_special_tokens(wordpiece_file):
  vocabulary = vocabularies.load_vocabulary(wordpiece_file)
  template = TokenTemplate.for_retriever(vocabulary)
  fields = {
    name: RaggedTokens.from_lists(vocabulary.encode_batch(texts))
    for name, texts in (('title', TITLES), ('text', TEXTS))
  }
  rendered = template.render(fields, 12)
  for index in range(3):
    ids = vocabulary.encode(f'{TITLES[index]} {TEXTS[index]}')[:10]
    assert rendered[index].tolist() == [vocabulary.cls_id, *ids, vocabulary.sep_id]
  query = TokenTemplate.for_retriever(vocabulary, '{query}', known_fields=('query',))
  assert query.fields == ('query',)


def test_without_passage_only_the_query_is_left(vocabulary, fields):
  template = TokenTemplate.for_reader(vocabulary)
  rendered = template.render(fields, 100, has_passage=np.array([False, True, False]))
  for index in (0, 2):
    assert rendered[index].tolist() == [*vocabulary.encode(QUERIES[index]), vocabulary.eos_id]
  assert len(rendered[1]) > 3


@pytest.mark.parametrize(
  'format, message',
  [
    ('{query} {titel}', "unknown field 'titel'; known: query, title, text"),
    ('{query} {}', "unknown field ''"),
    ('{query} title:{title}', "'title' must stand between whitespace"),
    ('{query}? {text}', "'query' must stand between whitespace"),
    ('{title}{text}', "'title' must stand between whitespace"),
    ('{text!r}', 'must stand alone in its braces'),
    ('{text:10}', 'must stand alone in its braces'),
    ('{text', 'expected'),
    ('no field', 'has no field'),
  ],
)
def test_bad_templates(vocabulary, format, message):
  with pytest.raises(ValueError, match='template') as caught:
    TokenTemplate.for_reader(vocabulary, format)
  assert message in str(caught.value)


def test_bad_rendering(vocabulary, fields):
  template = TokenTemplate.for_reader(vocabulary)
  with pytest.raises(ValueError, match="needs field 'text'; given: query, title"):
    template.render({name: fields[name] for name in ('query', 'title')}, 10)
  with pytest.raises(ValueError, match='differ in size'):
    template.render(fields | {'text': fields['text'].take([0])}, 10)
  with pytest.raises(ValueError, match='length 0 does not hold'):
    template.render(fields, 0)


def test_ragged_tokens():
  lists = [[1, 2, 3], [], [4], [5, 0, 6, 7]]
  tokens = RaggedTokens.from_lists(lists)
  assert tokens.to_lists() == lists and len(tokens) == 4
  assert tokens[-1].tolist() == [5, 0, 6, 7]
  assert tokens.lengths.tolist() == [3, 0, 1, 4]
  assert tokens.take([3, 3, 1]).to_lists() == [lists[3], lists[3], []]
  assert tokens.truncate(2).to_lists() == [[1, 2], [], [4], [5, 0]]
  assert tokens.truncate(9) is tokens
  padded = tokens.pad(3)
  assert padded.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0], [5, 0, 6]]
  assert padded.dtype == np.int32
  assert RaggedTokens.from_padded(padded).to_lists() == [[1, 2, 3], [], [4], [5, 0, 6]]
  assert RaggedTokens.from_padded(np.zeros((2, 0), int)).to_lists() == [[], []]
  joined = ragged.concatenate([tokens, RaggedTokens.empty(4), tokens])
  assert joined.to_lists() == [a + a for a in lists]
  assert RaggedTokens.from_lists([]).to_lists() == []
  with pytest.raises(IndexError):
    tokens[4]
  with pytest.raises(ValueError, match='cannot join'):
    ragged.concatenate([tokens, RaggedTokens.empty(3)])
