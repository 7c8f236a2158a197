"""Orders and prompts of multiple choice, against Atlas's as it defines them."""

import dataclasses
import logging
import math

import pytest

from ralm_jax.data.questions import multiple_choice, reading
from ralm_jax.data.questions.choice_tokens import PromptTokenizer
from ralm_jax.data.questions.formats import mmlu
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.byte_pair_vocabulary import BytePairVocabulary
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig


def every_order(question, permutations):
  orders = multiple_choice.orderings(len(question.options), permutations)
  return [multiple_choice.permuted(question, order) for order in orders]


def ask(question='why?', options=('w', 'x', 'y', 'z'), answers=('C',), **fields):
  return Question('id', question, tuple(answers), (), 3, 'file', options=tuple(options), **fields)


@pytest.fixture(scope='module')
def small(sentencepiece_file, wordpiece_file):
  return QueryTokenizer(
    TextConfig(reader_query_length=128),
    vocabularies.load_vocabulary(sentencepiece_file),
    vocabularies.load_vocabulary(wordpiece_file),
  )


@pytest.fixture(scope='module')
def official(shared_data):
  """Our tokenizer of T5 and BERT."""
  folder = shared_data / 'tokenizers'
  return QueryTokenizer(
    TextConfig(query_length=512, reader_query_length=512),
    vocabularies.load_vocabulary(folder / 't5/spiece.model'),
    vocabularies.load_vocabulary(folder / 'bert-base-uncased/vocab.txt'),
  )


def test_orders():
  assert multiple_choice.orderings(4, 'single') == [(0, 1, 2, 3)]
  assert multiple_choice.orderings(4, 'cyclic') == [
    (0, 1, 2, 3),
    (3, 0, 1, 2),
    (2, 3, 0, 1),
    (1, 2, 3, 0),
  ]
  every = multiple_choice.orderings(4, 'all')
  assert len(set(every)) == math.factorial(4) and every == sorted(every)
  with pytest.raises(ValueError, match='must be one of single, cyclic, all'):
    multiple_choice.orderings(4, 'none')
  with pytest.raises(ValueError, match='7 options are too many'):
    multiple_choice.orderings(7, 'all')


def test_the_answer_moves_with_its_option():
  question = ask()
  for kind in multiple_choice.PERMUTATIONS:
    for shown in every_order(question, kind):
      at = 'ABCD'.index(shown.answers[0])
      assert shown.options[at] == 'y' and sorted(shown.options) == list('wxyz')
  assert multiple_choice.permuted(question, (3, 0, 1, 2)).answers == ('D',)
  shown = multiple_choice.permuted(ask(answers='AC', target='C'), (3, 0, 1, 2))
  assert shown.answers == ('B', 'D') and shown.target == 'D'


def test_options_of_equal_text_are_told_apart():
  """Atlas takes the first letter whose option has the answer's text."""
  question = ask(options=('same', 'b', 'same', 'd'))
  shown = multiple_choice.permuted(question, (0, 2, 1, 3))
  assert shown.options[:2] == ('same', 'same') and shown.answers == ('B',)
  letters = [q.answers[0] for q in every_order(question, 'all')]
  assert {letter: letters.count(letter) for letter in 'ABCD'} == dict.fromkeys('ABCD', 6)


def test_prompt_is_that_of_atlas(small):
  shown = multiple_choice.render(ask(' why?\n', ('1', '2', '3')), small)
  assert small.text.query(shown.question) == (
    'question: why? options: (A) 1 (B) 2 (C) 3 answer: <extra_id_0>'
  )
  assert (shown.options, shown.answers) == (('1', '2', '3'), ('C',))


def _atlas_prompt(tokenizer, question, options, maximum_length=356):
  """Atlas's prompt, from the description of its code."""
  count = lambda text: len(tokenizer(text)['input_ids'])
  listed = ' '.join(f'({l}) {o}' for l, o in zip('ABCDEF', options)).strip()
  whole = lambda q: f'question: {q.strip()} options: {listed} answer: <extra_id_0>'
  if count(whole(question)) <= maximum_length:
    return whole(question)
  left = maximum_length - count(whole(''))
  return whole(tokenizer.decode(tokenizer(question)['input_ids'][-left:], skip_special_tokens=True))


def test_prompts_token_for_token(official, shared_data):
  """All the questions there are, and long ones made of them."""
  transformers = pytest.importorskip('transformers')
  peer = transformers.T5Tokenizer.from_pretrained(shared_data / 'tokenizers/t5')
  files = sorted((shared_data / 'mmlu').glob('test/*.csv'))
  if not files:
    pytest.skip('MMLU is not among the real data')
  rows = [r.row for file in files for r in mmlu.MMLU.records(str(file))]
  encode = official.reader_vocabulary.encode

  # Of runs of underscores the libraries break ties in their own ways.
  rows = [row for row in rows if '_' * 8 not in row['question']]
  assert len(rows) > 900
  # What T5 does not know is lost where Atlas cuts; we keep it.
  known = [
    row
    for row in rows
    if official.reader_vocabulary.unk_id
    not in encode(row['question'] + ' ' + ' '.join(row['options']))
  ]
  cases = [(r['question'], r['options']) for r in rows[::4]]
  for i in range(0, len(known) - 30, 25):
    for size in (14, 20, 30):
      text = '\n'.join(r['question'] for r in known[i : i + size])
      cases.append((text, known[i]['options']))
  cut = 0
  for question, options in cases:
    ours = official.text.query(multiple_choice.prompt(ask(question, options), official))
    theirs = _atlas_prompt(peer, question, options)
    ids = encode(ours)
    assert [*ids, 1] == peer(theirs).input_ids
    bert = official.retriever_vocabulary.encode
    # Decoding T5's tokens normalises: the ellipsis becomes three dots.
    assert bert(ours) == bert(theirs) or not ours.isascii()
    cut += question.strip() not in ours
    # Atlas keeps a token less than it might; a word cut within needs one more.
    assert len(ids) + 1 <= 356 + 1
  assert cut > 80


def test_the_end_of_a_long_question_is_kept(small):
  words = ' '.join('passage' + chr(97 + i % 26) * 3 for i in range(100))
  options = ('title', 'number')
  shown = multiple_choice.prompt(ask(words, options), small, 40)
  question, _, rest = shown.partition(' options: ')
  assert rest == '(A) title (B) number'
  assert words.endswith(question) and 0 < len(question) < len(words)
  count = len(small.reader_vocabulary.encode(small.text.query(shown))) + 1
  assert 35 <= count <= 40
  assert multiple_choice.prompt(ask(words, options), small, None).startswith(words)


def test_text_that_is_kept_stays_as_written(small):
  """Also what the vocabulary does not know and how it is spaced."""
  text = 'word ' * 100 + '{x}  ☃ , end .'
  shown = multiple_choice.prompt(ask(text), small, 60)
  assert '{x}  ☃ , end . options:' in shown and len(shown) < len(text)


def test_a_text_without_spaces_is_cut_within(small):
  for text in ('é' * 300, '{x}' * 100, 'passagenumber' * 50):
    shown = multiple_choice.prompt(ask(text), small, 60)
    kept = shown.partition(' options: ')[0]
    assert text.endswith(kept) and kept


def test_options_are_never_cut(small):
  """Where they fill the prompt alone, nothing of the question is left."""
  options = [' '.join(['passage number'] * 20)] * 2
  assert multiple_choice.prompt(ask('why is it so?', options), small, 30) == (
    f' options: (A) {options[0]} (B) {options[1]}'
  )


def test_last_tokens_of_a_byte_pair_vocabulary(byte_pair_folder):
  vocabulary = BytePairVocabulary(byte_pair_folder / 'tokenizer.json')
  text = 'the first and the last words'
  for count in range(12):
    kept = multiple_choice.last_tokens(text, count, vocabulary)
    assert text.endswith(kept.strip())
    assert len(vocabulary.encode(kept)) <= count + 1


def same_ids(questions, tokenizer, max_question_tokens=356):
  """Whether joined ids are those of the whole text, in every order."""
  joined = PromptTokenizer(questions, tokenizer, max_question_tokens)
  for number, question in enumerate(questions):
    for order in multiple_choice.orderings(len(question.options), 'all')[::5]:
      shown = multiple_choice.render(
        multiple_choice.permuted(question, order), tokenizer, max_question_tokens
      )
      query = tokenizer.text.query(shown.question)
      found = joined.ids(number, order)
      assert found.query.tolist() == tokenizer.retriever_question(shown.question)
      assert found.reader_query.tolist() == tokenizer.reader_query(query)
  return True


def test_joined_ids_of_real_questions(official, shared_data):
  files = sorted((shared_data / 'mmlu').glob('*/*.csv'))
  questions = reading.read_questions(files, record_format='mmlu')[::12]
  questions += [
    dataclasses.replace(questions[i], question=' '.join(q.question for q in questions[i : i + 20]))
    for i in range(0, 60, 20)
  ]
  assert same_ids(questions, official)
  short = dataclasses.replace(
    official, text=dataclasses.replace(official.text, query_length=30, reader_query_length=25)
  )
  assert same_ids(questions[:20], short)


@pytest.mark.parametrize(
  'question_format',
  ['{question}', 'choose: {question}', 'glued:{question}.', '{question} , {question} ?'],
)
@pytest.mark.parametrize('query_format', [None, 'of {question} which?', 'glued:{question}.'])
def test_joined_ids_of_any_format(
  question_format, query_format, small, byte_pair_folder, wordpiece_file
):
  questions = [ask('which passage?'), ask('the title ' * 60, ('a', 'number b'), 'A')]
  formats = {'question_format': question_format, 'query_format': query_format}
  text = dataclasses.replace(small.text, target_format='{answer}', **formats)
  assert same_ids(questions, dataclasses.replace(small, text=text), 90)
  bart = QueryTokenizer(
    dataclasses.replace(text, reader_format='{query} {title} {text}'),
    BytePairVocabulary(byte_pair_folder / 'tokenizer.json'),
    vocabularies.load_vocabulary(wordpiece_file),
  )
  assert same_ids(questions, bart, 90)


def test_prompts_that_do_not_fit(small, caplog):
  short = dataclasses.replace(small, text=dataclasses.replace(small.text, reader_query_length=20))
  long_options = ask(options=[' '.join(['passage number'] * 40)] * 2)
  with pytest.raises(
    ValueError, match=(r'1 of 1 .* longer than TextConfig.reader_query_length = 20.*set it to')
  ):
    multiple_choice.check_lengths([ask()], short)
  multiple_choice.check_lengths([ask()], small)
  with caplog.at_level(logging.WARNING):
    multiple_choice.check_lengths([ask(), long_options], small, 100)
  assert 'options of 1 questions alone' in caplog.text


def test_questions_without_options():
  with pytest.raises(ValueError, match="file:3: field 'options' is missing"):
    multiple_choice.check([ask(options=())])
  with pytest.raises(ValueError, match="'E' is not one of the options' letters"):
    multiple_choice.check([ask(answers=('E',))])
  with pytest.raises(ValueError, match="field 'target': 'y'"):
    multiple_choice.check([ask(target='y')])
