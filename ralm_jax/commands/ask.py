"""Ask: answer questions and show the passages they were answered from.

  ralm ask --documents FOLDER who wrote hamlet
  ralm ask --checkpoint CKPT --index INDEX who wrote hamlet
  ralm ask --checkpoint CKPT --index INDEX "who wrote hamlet" "who wrote faust"
  ralm ask --checkpoint CKPT --index INDEX < questions.txt

With --documents, weights are converted and passages are tokenised and embedded the
first time, and again where something has changed; all of it is kept in --workspace.

Words without quotes are one question. Where an argument holds a space, each
argument is a question. Without any they are read from standard input, one a
line, and each is answered before the next is read.
"""

from __future__ import annotations

import argparse
import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
import json
import logging
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from ralm_jax.commands import flags
from ralm_jax.files import user_cache

if TYPE_CHECKING:
  from ralm_jax.evaluation.records import Answer

MAX_WORDS = 100
PYTHON = 'python'  #: documents that everyone has
# Of an index that there is, in place of documents.
_OF_INDEX = ('checkpoint', 'index', 'retrieval_address', 'corpus')
_OF_DOCUMENTS = ('workspace', 'reader', 'retriever', 'max_words')


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Asks from command-line flags."""
  arguments = _parser(prog).parse_intermixed_args(argv)
  questions = questions_of(arguments.question)
  _check(arguments, questions)
  from ralm_jax.evaluation import option_fields
  from ralm_jax.evaluation.answering import AnswerOptions
  from ralm_jax.evaluation.task import ReadingOptions
  from ralm_jax.runs import asking

  session = {
    **(_documents(arguments) if arguments.documents else _checkpoint(arguments)),
    'n_passages': arguments.n_passages,
    'answering': option_fields.fill(AnswerOptions, vars(arguments)),
    'how_read': option_fields.fill(ReadingOptions, vars(arguments)),
  }
  show = as_json if arguments.json else _as_text
  if len(questions) == 1:
    print(show(questions[0], asking.ask(questions[0], **session)))
  else:
    ask_lines(questions or _typed_lines(), show=show, **session)


def _parser(prog: str | None) -> flags.Parser:
  parser = flags.Parser(prog, __doc__, compiles=True)
  text = 'words of one question, or quoted questions (default: lines of standard input)'
  parser.add_argument('question', nargs='*', help=text)
  documents = parser.add_argument_group('documents')
  add = documents.add_argument
  text = (
    'folder of passages (jsonl, tsv, csv; compressed or not), a file, a quoted glob, or python for '
    'the documentation of the Python that runs this'
  )
  add('--documents', metavar='FOLDER', help=f'{text} (default: those of --index)')
  text = 'folder for what is built (default: {}; it may be removed at any time)'
  add('--workspace', metavar='DIR', help=text.format(user_cache.folder('ask')))
  text = 'weights: a folder, a file, a name of the hub or package:NAME (default: what is found)'
  add('--reader', metavar='NAME', help=text)
  add('--retriever', metavar='NAME', help=text)
  text = f'of a passage; longer ones are cut into equal parts (default: {MAX_WORDS})'
  add('--max_words', type=flags.COUNT, help=text)
  of_index = parser.add_argument_group('an index that there is')
  text = 'MODEL_DIR (its newest), or a checkpoint_STEP in it (default: none, with --documents)'
  flags.shared(of_index, 'checkpoint', help=text)
  flags.shared(of_index, *flags.SEARCH)
  reading = parser.add_argument_group('reading')
  for name in (*flags.READING, 'text'):
    # Several values of one flag would take the words of the question.
    one: dict[str, Any] = (
      {'nargs': 1, 'action': 'extend'} if name in ('demonstrations', 'text') else {}
    )
    flags.shared(reading, name, **one)
  flags.shared(parser.add_argument_group('decoding'), *flags.DECODING)
  parser.add_argument('--json', action='store_true', help='one JSON object an answer')
  return parser


def _check(arguments: argparse.Namespace, questions: Sequence[str]) -> None:
  """Raises ValueError, before anything is loaded or built, for what cannot be."""
  given = lambda names: [f'--{name}' for name in names if getattr(arguments, name)]
  if arguments.documents is None:
    if found := given(_OF_DOCUMENTS):
      raise ValueError(f'{found[0]} goes with --documents FOLDER, which is not given.')
    if arguments.checkpoint is None:
      raise ValueError('Give --documents FOLDER, or --checkpoint CKPT with its --index INDEX.')
  elif found := given(_OF_INDEX):
    raise ValueError(
      f'--documents builds an index of its own and {found[0]} names another; leave one of them out.'
    )
  elif len(questions) == 1 and not questions[0].strip():
    raise ValueError('The question is empty; write it as an argument.')


def _checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
  from ralm_jax.retrieval.index_source import IndexSource

  return {'checkpoint': arguments.checkpoint, 'source': IndexSource.from_flags(vars(arguments))}


def _documents(arguments: argparse.Namespace) -> dict[str, Any]:
  from ralm_jax.data import text_config
  from ralm_jax.preparation import standard_library
  from ralm_jax.runs import default_weights
  from ralm_jax.runs.workspace import Ingredients, Workspace

  # Quiet where nothing is to be built.
  for told in ('retrieval_service', 'ralm_jax.retrieval'):
    logging.getLogger(told).setLevel(logging.WARNING)
  documents = arguments.documents
  if documents == PYTHON and not os.path.exists(documents):
    documents = standard_library.write_passages(user_cache.folder('documents'))
  ingredients = Ingredients(
    documents,
    arguments.reader or default_weights.find('reader'),
    arguments.retriever or default_weights.find('retriever'),
    arguments.max_words or MAX_WORDS,
    text_config.parse_fields(arguments.text),
  )
  return {'workspace': Workspace(arguments.workspace or user_cache.folder('ask'), ingredients)}


def questions_of(words: Sequence[str]) -> list[str]:
  """Questions as a shell passes them on: quoted ones, or the words of one."""
  if len(words) > 1 and not any(' ' in word for word in words):
    return [' '.join(words)]
  return list(words)


def ask_lines(
  lines: Iterable[str | bytes], *, show: Callable[[str, Answer], str] | None = None, **session: Any
) -> int:
  """Answers one question a line and prints each answer at once.

  A question that cannot be answered is complained of on stderr, and the next one is
  asked; RuntimeError in the end. Blank lines are left out. For `session` see
  `asking.open_session`. Returns how many were answered. What is typed ends with the end of the
  file or an interrupt.
  """
  from ralm_jax.runs import asking

  show = show or _as_text
  typed = sys.stdin.isatty() and not isinstance(lines, list)
  asked = failed = 0
  with asking.open_session(**session) as answer:
    lines = _prompted(lines) if typed else lines
    for number, line in enumerate(lines, 1):
      if line.strip():
        asked += 1
        try:
          question = _text(line, number).strip()
          print(show(question, answer(question)), flush=True)
        except (ValueError, OSError, LookupError, RuntimeError) as e:
          failed += 1
          print(f'error: {e}', file=sys.stderr, flush=True)
  if failed and not typed:
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


def _prompted(lines: Iterable[str | bytes]) -> Iterator[str | bytes]:
  """Lines that are asked for, until the end of the file or an interrupt of the asking."""
  lines = iter(lines)
  while True:
    print('question> ', end='', file=sys.stderr, flush=True)
    try:
      line = next(lines)
    except (StopIteration, KeyboardInterrupt):
      print(file=sys.stderr)
      return
    yield line


def as_json(question: str, answer: Answer) -> str:
  """An answer as one line of JSON."""
  passages = [
    {
      **{name: getattr(shown.passage, name) for name in ('id', 'title', 'section', 'text')},
      'score': shown.score,
      'probability': shown.probability,
    }
    for shown in answer.passages
  ]
  content = {
    'question': question,
    'answer': answer.prediction,
    'log_probability': answer.log_probability,
    'alternatives': [text for text, _ in answer.alternatives],
    'passages': passages,
  }
  return json.dumps(content, ensure_ascii=False)


def _as_text(question: str, answer: Answer) -> str:
  del question  # Who reads the answer has asked it.
  return format_answer(answer)


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
