"""What is shown of answers, and how a session ends."""

import json

import pytest

from ralm_jax.commands import ask
from ralm_jax.data.corpus.passage_store import StoredPassage
from ralm_jax.evaluation.records import Answer, AnsweredPassage

PASSAGE = StoredPassage(id='p1', title='Röntgen', section='Prize', text='The first one.', row=3)
ANSWER = Answer(
  '1901', -0.5, (AnsweredPassage(PASSAGE, 0.75, 0.625),), 1, alternatives=(('2', -3),)
)


def test_an_answer_as_json_is_one_line():
  line = ask.as_json('when?', ANSWER)
  assert '\n' not in line and 'Röntgen' in line
  assert json.loads(line) == {
    'question': 'when?',
    'answer': '1901',
    'log_probability': -0.5,
    'alternatives': ['2'],
    'passages': [
      {
        **{'id': 'p1', 'title': 'Röntgen', 'section': 'Prize', 'text': 'The first one.'},
        **{'score': 0.75, 'probability': 0.625},
      }
    ],
  }


def test_an_answer_as_text():
  shown = ask.format_answer(ANSWER)
  assert shown.startswith('answer: 1901\n    or: 2\n')
  assert '1. Röntgen: Prize  [p1]  score 0.750  probability 0.625' in shown


@pytest.mark.parametrize('end', [StopIteration, KeyboardInterrupt])
def test_a_typed_session_ends(end, capsys):
  """With the end of the file, and with an interrupt of the asking."""

  class Terminal:
    lines = ['why?\n', 'who?\n']

    def __iter__(self):
      return self

    def __next__(self):
      if not self.lines:
        raise end
      return self.lines.pop(0)

  terminal = Terminal()
  terminal.lines = list(Terminal.lines)
  assert list(ask._prompted(terminal)) == ['why?\n', 'who?\n']
  assert capsys.readouterr().err == 'question> ' * 3 + '\n'


def test_flags_of_several_values_leave_the_question_alone():
  argv = ['--demonstrations', 'a.jsonl', '--text', 'n_passages=2', 'who', 'wrote', 'it']
  found = ask._parser('ralm ask').parse_args([*argv, '--text', 'target_length=8'])
  assert found.question == ['who', 'wrote', 'it'] and found.demonstrations == ['a.jsonl']
  assert found.text == ['n_passages=2', 'target_length=8']
