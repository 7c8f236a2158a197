"""Ask: answer questions and show the passages they were answered from.

  ralm ask --checkpoint CKPT --index INDEX who wrote hamlet
  ralm ask --checkpoint CKPT --index INDEX "who wrote hamlet" "who wrote faust"
  ralm ask --checkpoint CKPT --index INDEX < questions.txt

Words without quotes are one question. Where an argument holds a space, each
argument is a question. Without any they are read from standard input, one a
line, and each is answered before the next is read.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from ralm_jax.commands import flags

if TYPE_CHECKING:
  from ralm_jax.evaluation.records import Answer


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Asks from command-line flags."""
  parser = flags.Parser(prog, __doc__, compiles=True)
  text = 'words of one question, or quoted questions (default: lines of standard input)'
  parser.add_argument('question', nargs='*', help=text)
  flags.shared(parser, 'checkpoint', required=True)
  flags.shared(parser, *flags.SEARCH)
  flags.shared(parser.add_argument_group('reading'), *flags.READING, 'text')
  flags.shared(parser.add_argument_group('decoding'), *flags.DECODING)
  arguments = parser.parse_intermixed_args(argv)
  questions = questions_of(arguments.question)
  from ralm_jax.data import text_config
  from ralm_jax.evaluation import option_fields
  from ralm_jax.evaluation.answering import AnswerOptions
  from ralm_jax.evaluation.task import ReadingOptions
  from ralm_jax.retrieval.index_source import IndexSource
  from ralm_jax.runs import asking

  session = {
    'checkpoint': arguments.checkpoint,
    'source': IndexSource.from_flags(vars(arguments)),
    'n_passages': arguments.n_passages,
    'answering': option_fields.fill(AnswerOptions, vars(arguments)),
    'how_read': option_fields.fill(ReadingOptions, vars(arguments)),
    'text': text_config.parse_fields(arguments.text),
  }
  if len(questions) == 1:
    print(format_answer(asking.ask(questions[0], **session)))
  else:
    ask_lines(questions or _typed_lines(), **session)


def questions_of(words: Sequence[str]) -> list[str]:
  """Questions as a shell passes them on: quoted ones, or the words of one."""
  if len(words) > 1 and not any(' ' in word for word in words):
    return [' '.join(words)]
  return list(words)


def ask_lines(lines: Iterable[str | bytes], **session: Any) -> int:
  """Answers one question a line and prints each answer at once.

  A question that cannot be answered is complained of on stderr, and the next one is
  asked; RuntimeError in the end. Blank lines are left out. For `session` see
  `asking.open_session`. Returns how many were answered.
  """
  from ralm_jax.runs import asking

  typed = sys.stdin.isatty() and not isinstance(lines, list)
  asked = failed = 0
  with asking.open_session(**session) as answer:
    _prompt(typed)
    for number, line in enumerate(lines, 1):
      if line.strip():
        asked += 1
        try:
          question = _text(line, number).strip()
          print(format_answer(answer(question)), flush=True)
        except (ValueError, OSError, LookupError, RuntimeError) as e:
          failed += 1
          print(f'error: {e}', file=sys.stderr, flush=True)
      _prompt(typed)
  if failed:
    raise RuntimeError(f'{failed} of {asked} questions were not answered.')
  return asked


def _typed_lines() -> Iterable[str | bytes]:
  """Lines of standard input, in bytes where they are not a test's: some may be no UTF-8."""
  return getattr(sys.stdin, 'buffer', sys.stdin)


def _text(line: str | bytes, number: int) -> str:
  from ralm_jax.files import json_records

  if isinstance(line, bytes):
    return json_records.text_of(line.removeprefix(codecs.BOM_UTF8), f'standard input:{number}')
  return line


def _prompt(typed: bool) -> None:
  if typed:
    print('question> ', end='', file=sys.stderr, flush=True)


def format_answer(answer: Answer) -> str:
  """The answer and its passages, best first, for a terminal."""
  lines = [f'answer: {answer.prediction}']
  lines += [f'    or: {text}' for text, _ in answer.alternatives]
  readers = {'query': 'the retriever', 'question': 'the reader'}
  if cut := [readers[one] for one in answer.cut if one in readers]:
    lines.append(f'  the question is longer than what {" and ".join(cut)} read of it')
  for rank, shown in enumerate(answer.passages, 1):
    passage = shown.passage
    scores = f'score {shown.score:.3f}  probability {shown.probability:.3f}'
    lines.append(f'  {rank}. {passage.merged_title}  [{passage.id}]  {scores}')
    lines.append(textwrap.indent(textwrap.shorten(passage.text, 160, placeholder=' …'), '     '))
  if answer.index_id:
    lines.append(f'  from generation {answer.generation} of index {answer.index_id}')
  return '\n'.join(lines)
