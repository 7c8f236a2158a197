"""Questions that are too long: what is cut of a query, and what is not."""

import numpy as np
import pytest

from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig

WORDS = 'this is the file that a path names and of which nobody knows the size'
SUFFIXED = (
  'question: {question} answer: <extra_id_0>',
  '{question} <extra_id_1>',
  '{question}\nanswer:',
  'q {question} and {question} again',
)


def make(sentencepiece_file, wordpiece_file, format, length=40, **changes):
  text = TextConfig(
    question_format=format, reader_query_length=length, query_length=length, **changes
  )
  return QueryTokenizer(
    text, *map(vocabularies.load_vocabulary, (sentencepiece_file, wordpiece_file))
  )


@pytest.mark.parametrize('format', SUFFIXED)
def test_what_follows_the_question_survives(sentencepiece_file, wordpiece_file, format):
  for length in range(20, 40):
    tokenizer = make(sentencepiece_file, wordpiece_file, format, length)
    vocabulary = tokenizer.reader_vocabulary
    end = vocabulary.encode(format.rpartition('{question}')[2])
    for n in range(1, 15):
      question = ' '.join(WORDS.split()[:n])
      whole = vocabulary.encode(tokenizer.text.query(question))
      found = tokenizer.reader_question(question)
      if len(whole) <= length:
        assert found == whole
      else:
        assert len(found) == length and found[-len(end) :] == end
        kept = length - len(end)
        assert found[:kept] == whole[:kept]


@pytest.mark.parametrize('format', ['{question}', 'question: {question}', '{question} '])
def test_formats_with_nothing_behind(sentencepiece_file, wordpiece_file, format):
  tokenizer = make(sentencepiece_file, wordpiece_file, format, 12)
  query = tokenizer.text.query(WORDS)
  assert tokenizer.reader_question(WORDS) == tokenizer.reader_query(query)
  assert len(tokenizer.reader_query(query)) == 12


def test_lengths_that_hold_no_more_than_the_format(sentencepiece_file, wordpiece_file):
  tokenizer = make(sentencepiece_file, wordpiece_file, SUFFIXED[0], 3)
  assert tokenizer.reader_question(WORDS) == tokenizer.reader_query(tokenizer.text.query(WORDS))


def test_batches_are_cut_so(sentencepiece_file, wordpiece_file):
  tokenizer = make(sentencepiece_file, wordpiece_file, SUFFIXED[0], 30)
  batch = tokenizer.batch(['short', WORDS])
  sentinel = tokenizer.reader_vocabulary.sentinel_id(0)
  for row, question in zip(batch.reader_query_tokens, ['short', WORDS]):
    ids = [int(i) for i in row if i != tokenizer.reader_vocabulary.pad_id]
    assert ids == tokenizer.reader_question(question) and ids[-1] == sentinel
  # The retriever has no use for it, and keeps more of the question.
  assert batch.query_tokens[1].tolist() == tokenizer.retriever_query(tokenizer.text.query(WORDS))


@pytest.mark.parametrize('prompt', ['', 'query: '])
def test_a_retriever_is_asked_in_its_own_form(sentencepiece_file, wordpiece_file, prompt):
  own = {'query_format': 'find {question} !', 'query_prompt': prompt}
  tokenizer = make(sentencepiece_file, wordpiece_file, SUFFIXED[0], 60, **own)
  like = make(sentencepiece_file, wordpiece_file, own['query_format'], 60, query_prompt=prompt)
  atlas = make(sentencepiece_file, wordpiece_file, SUFFIXED[0], 60)
  ours, asked, read = (one.batch(['the lake']) for one in (tokenizer, like, atlas))
  np.testing.assert_array_equal(ours.query_tokens, asked.query_tokens)
  np.testing.assert_array_equal(ours.reader_query_tokens, read.reader_query_tokens)
  assert (ours.query_tokens != read.query_tokens).any()
  # What is cut of it is told of its own form, too.
  room = tokenizer.query_space - len(tokenizer.retriever_vocabulary.encode(' find !'))
  word = next(w for w in ('a', 'the') if len(tokenizer.retriever_vocabulary.encode(w)) == 1)
  for count, is_cut in ((room, False), (room + 1, True)):
    question = ' '.join([word] * count)
    assert ('query' in tokenizer.cut(question)) == is_cut
    assert tokenizer.count_cut([question], [])['queries (query_length)'] == is_cut
  with pytest.raises(ValueError, match="TextConfig.query_format 'find' must contain {question}"):
    make(sentencepiece_file, wordpiece_file, SUFFIXED[0], 60, query_format='find')


def test_vocabularies_whose_first_word_differs(byte_pair_folder, wordpiece_file):
  text = TextConfig(
    question_format='{question} asked',
    target_format='{answer}',
    reader_format='{query} // {title} {text}',
    reader_query_length=20,
  )
  vocabulary = vocabularies.load_vocabulary(byte_pair_folder / 'vocab.json')
  tokenizer = QueryTokenizer(text, vocabulary, vocabularies.load_vocabulary(wordpiece_file))
  end = vocabulary.encode(' asked')
  assert vocabulary.encode_start('the asked')[-len(end) :] == end
  assert tokenizer.reader_question('the') == vocabulary.encode_start('the asked')
  assert tokenizer.reader_question(WORDS) == (vocabulary.encode_start(WORDS)[: 20 - len(end)] + end)
