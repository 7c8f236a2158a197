"""Arrays of prompts: what fits, in which order it is cut, and what is said of it."""

import numpy as np
import pytest

from ralm_jax.data.questions.file_passages import FilePassages
from ralm_jax.data.questions.rows import FilePassage
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.prompts import Demonstration
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.retrieval.prompt_assembler import PromptAssembler, PromptLayout
from tests import decoder_folders

PASSAGES = (
  FilePassage('a', 'Paris', 'The city of Paris is the capital of France and lies on a river'),
  FilePassage('b', '', 'Hamlet was written by William Shakespeare in 1601'),
  FilePassage('c', 'Question', 'Of what colour is it? Nobody has written it'),
)
QUESTIONS = ['what is the capital?', 'who wrote Hamlet?']
ROWS = np.array([[0, 1, 2], [2, -1, 0]])


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = decoder_folders.write(tmp_path_factory.mktemp('decoder'), 'smollm2')
  return vocabularies.load_vocabulary(path)


@pytest.fixture
def make(vocabulary, tmp_path):
  def make(layout=None, **changes):
    path = tmp_path / 'vocab.txt'
    path.write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n')
    text = TextConfig(
      **{
        'question_format': 'Question: {question}\nAnswer:',
        'target_format': ' {answer}',
        'passage_length': 60,
        'reader_query_length': 40,
        'target_length': 8,
        **changes,
      }
    )
    tokenizer = QueryTokenizer(text, vocabulary, vocabularies.load_vocabulary(path))
    store = FilePassages(PASSAGES, vocabulary, tokenizer.retriever_vocabulary)
    layout = {'positions': 400, 'together': True, **(layout or {})}
    return PromptAssembler(tokenizer, store, PromptLayout(**layout))

  return make


def batch_of(assembler, heads=None, rows=ROWS, answers=('Paris', 'x')):
  queries = assembler.tokenizer.batch(QUESTIONS[: len(rows)], answers[: len(rows)])
  return assembler.reader_batch(queries, rows, with_retriever=False, heads=heads)


def texts(vocabulary, batch):
  """Of each example: head, passages, tail."""
  tokens = lambda name: getattr(batch, f'{name}_tokens')
  read = lambda name, *i: vocabulary.decode(tokens(name)[i][getattr(batch, f'{name}_mask')[i]])
  return [
    [read('head', i), *(read('reader', i, j) for j in range(batch.reader_tokens.shape[1]))]
    + [read('tail', i)]
    for i in range(len(batch.reader_tokens))
  ]


def test_segments_in_retrieval_order(make, vocabulary):
  assembler = make()
  shown = Demonstration('a?', 'b', (('Paris', 'it is.'),))
  head = assembler.tokenizer.prompts.head([shown])
  batch = batch_of(assembler, [head])
  before = 'Context: Paris. it is.\nQuestion: a?\nAnswer: b\n'
  a = 'Context: Paris. The city of Paris is the capital of France and lies on a river\n'
  b = 'Context: Hamlet was written by William Shakespeare in 1601\n'
  c = 'Context: Question. Of what colour is it? Nobody has written it\n'
  assert texts(vocabulary, batch) == [
    [before, a, b, c, 'Question: what is the capital?\nAnswer:'],
    [before, c, '', a, 'Question: who wrote Hamlet?\nAnswer:'],
  ]
  assert batch.passage_mask.tolist() == [[True] * 3, [True, False, True]]
  assert batch.head_is_shared and batch.head_tokens.shape[1] % 16 == 0
  # Static, as training needs them, and with room for the answer.
  assert batch.reader_tokens.shape == (2, 3, 60) and batch.tail_tokens.shape == (2, 40)
  assert batch.prompt_length == 400 - 8
  # Whatever of another question is asked is found, behind a space.
  assert assembler.answer_recall(batch) == 0.5
  each = batch_of(assembler, [head, assembler.tokenizer.prompts.head()])
  assert not each.head_is_shared and [row[0] for row in texts(vocabulary, each)] == [before, '']


def test_nothing_before_the_passages(make):
  batch = batch_of(make())
  assert batch.head_tokens.shape == (2, 0) and batch.head_is_shared


def test_titles_in_place_of_the_own_ones(make, vocabulary):
  from ralm_jax.data.ragged import RaggedTokens

  assembler = make()
  titles = RaggedTokens.from_lists(vocabulary.encode_batch(['it', 'it', '', 'a', 'b', 'c']))
  queries = assembler.tokenizer.batch(QUESTIONS)
  batch = assembler.reader_batch(queries, ROWS, with_retriever=False, titles=titles)
  found = [row[1:4] for row in texts(vocabulary, batch)]
  assert found[0][1].startswith('Context: it. Hamlet was')
  assert found[1][1] == '' and found[1][2].startswith('Context: c. The city')


@pytest.mark.parametrize('together', [True, False])
def test_the_worst_passages_are_cut_then_left_out(make, vocabulary, together):
  whole = batch_of(make())
  sizes = whole.reader_mask.sum(-1)
  asked = whole.tail_mask.sum(-1)
  for length in range(45, 190, 3):
    assembler = make({'together': together}, prompt_length=length)
    batch = batch_of(assembler)
    kept = batch.reader_mask.sum(-1)
    assert (batch.tail_tokens == whole.tail_tokens).all()  # never the question
    stored = assembler.store.passages(ROWS.ravel())
    queries = assembler.tokenizer.batch(QUESTIONS)
    read = assembler.characters_read(queries, ROWS, stored)
    for i in range(2):
      space = length - asked[i]
      total = kept[i].sum() if together else kept[i].max()
      assert total <= space
      for j in range(3):
        before = sizes[i, :j].sum() if together else 0
        left = max(space - before, 0)
        expected = sizes[i, j] if left >= sizes[i, j] else left if left >= 16 else 0
        assert kept[i, j] == expected and batch.passage_mask[i, j] == (expected > 0)
        title, text = read[3 * i + j]
        if ROWS[i, j] >= 0:
          assert (text is None) == (kept[i, j] == sizes[i, j])
          shown = vocabulary.decode(batch.reader_tokens[i, j][batch.reader_mask[i, j]])
          assert PASSAGES[ROWS[i, j]].text[:text] in shown
          assert not kept[i, j] or shown.endswith('\n')


def test_only_what_is_read_shares_a_prompt(make):
  batch = batch_of(make({'n_read': 1}, prompt_length=70))
  assert batch.passage_mask.tolist() == [[True] * 3, [True, False, True]]


def test_candidates_share_what_those_that_are_kept_have(make):
  """Any of them may be the best once they are re-ranked: none is left out, whatever fits before."""
  rows = np.array([[0, 1, 2, 0, 1, 2], [2, 1, 0, 2, 1, -1]])
  whole = batch_of(make(), rows=rows).reader_mask.sum(-1)
  for layout, kept in (({'kept': 2}, 2), ({'kept': 3, 'n_read': 2}, 2)):
    batch = batch_of(make(layout, prompt_length=60), rows=rows)
    asked = batch.tail_mask.sum(-1, keepdims=True)
    np.testing.assert_array_equal(
      batch.reader_mask.sum(-1), np.minimum(whole, (60 - asked) // kept)
    )
    assert batch.passage_mask.tolist() == (rows >= 0).tolist()
  # Those that are kept are cut as ever.
  np.testing.assert_array_equal(
    batch_of(make({'kept': 3}, prompt_length=70)).reader_mask,
    batch_of(make(prompt_length=70)).reader_mask,
  )


def test_compact_batches(make):
  whole, compact = batch_of(make()), batch_of(make({'compact': True}))
  longest = (whole.reader_mask.sum((1, 2)) + whole.tail_mask.sum(-1)).max()
  assert longest <= compact.prompt_length < longest + 128 and compact.prompt_length % 128 == 0
  apart = batch_of(make({'compact': True, 'together': False}, passage_length=300))
  assert apart.reader_tokens.shape == (2, 3, 64)
  one = (apart.reader_mask.sum(-1).max(-1) + apart.tail_mask.sum(-1)).max()
  assert one <= apart.prompt_length < one + 128


def test_closed_book(make, vocabulary):
  assembler = make(reader_format='{query}')
  queries = assembler.tokenizer.batch(QUESTIONS)
  batch = assembler.reader_batch(queries, np.full((2, 1), -1), with_retriever=False)
  assert not batch.reader_mask.any() and not batch.passage_mask.any()
  assert texts(vocabulary, batch)[1] == ['', '', 'Question: who wrote Hamlet?\nAnswer:']


def test_prompts_that_do_not_fit(make):
  shown = Demonstration('what is the capital of France? ' * 20, 'Paris')
  for changes, said in (
    ({}, r'400 positions of the reader, of which 8 are of the answer'),
    ({'prompt_length': 120}, r'longer than its 120 \(TextConfig.prompt_length 120'),
  ):
    assembler = make(**changes)
    with pytest.raises(ValueError, match=said) as error:
      batch_of(assembler, [assembler.tokenizer.prompts.head([shown] * 3)])
    assert '--num_demonstrations' in str(error.value)
  with pytest.raises(
    ValueError, match='longer than its 4 .*: shorten .*reader_query_length'
  ) as error:
    batch_of(make(prompt_length=4), None)
  assert 'demonstrations' not in str(error.value)
