"""Ask: answer questions and show the passages they were answered from.

Without a question on the command line they are read from standard input, one a
line, and each is answered before the next is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import sys
import textwrap
from typing import Any

from ralm_jax.commands import evaluate
from ralm_jax.evaluation import answering, option_fields
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.records import Answer
from ralm_jax.evaluation.task import PassageOptions
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import opening


@contextlib.contextmanager
def open_session(
  *,
  checkpoint: str,
  source: IndexSource | None = None,
  n_passages: int | None = None,
  answering: AnswerOptions = AnswerOptions(),
) -> Iterator[Callable[[str], Answer]]:
  """Gives a function from a question to its answer.

  Whatever the retrieval process serves when a question is asked, it is answered
  from that.
  """
  opened = opening.open_checkpoint(checkpoint)
  with opening.open_evaluator(
    opened,
    source,
    batch_size=opened.partitioner.mesh.size,
    passages=PassageOptions(n_passages=n_passages),
    answering=answering,
  ) as evaluator:
    yield lambda question: evaluator.answer(opened.params, [question])[0]


def ask(question: str, **session: Any) -> Answer:
  """Answers one question; arguments as for `open_session`."""
  if not question.strip():
    raise ValueError('The question is empty; write it as an argument.')
  with open_session(**session) as answer:
    return answer(question)


def ask_lines(lines: Iterable[str], **session: Any) -> int:
  """Answers one question a line and prints each answer at once.

  A question that cannot be answered is complained of on stderr, and the next
  one is asked.

  Args:
    lines: questions; blank ones are left out.
    **session: see `open_session`.

  Returns:
    How many were answered.

  Raises:
    RuntimeError: some were not, in the end.
  """
  asked = failed = 0
  with open_session(**session) as answer:
    _prompt()
    for line in lines:
      question = line.strip()
      if question:
        asked += 1
        try:
          print(format_answer(answer(question)), flush=True)
        except (ValueError, OSError, LookupError, RuntimeError) as e:
          failed += 1
          print(f'error: {e}', file=sys.stderr, flush=True)
      _prompt()
  if failed:
    raise RuntimeError(f'{failed} of {asked} questions were not answered.')
  return asked


def _prompt() -> None:
  """Where a person types."""
  if sys.stdin.isatty():
    print('question> ', end='', file=sys.stderr, flush=True)


def format_answer(answer: Answer) -> str:
  """The answer and its passages, best first, for a terminal."""
  lines = [f'answer: {answer.prediction}']
  lines += [f'    or: {text}' for text, _ in answer.alternatives]
  for rank, shown in enumerate(answer.passages, 1):
    passage = shown.passage
    lines.append(
      f'  {rank}. {passage.merged_title}  [{passage.id}]  '
      f'score {shown.score:.3f}  probability {shown.probability:.3f}'
    )
    lines.append(textwrap.indent(textwrap.shorten(passage.text, 160, placeholder=' …'), '     '))
  if answer.index_id:
    lines.append(f'  from generation {answer.generation} of index {answer.index_id}')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Asks from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  parser.add_argument(
    'question', nargs='?', help='without it, questions are read from standard input, one a line'
  )
  parser.add_argument('--checkpoint', required=True, metavar='CKPT')
  evaluate.add_retrieval_flags(parser)
  answering.add_flags(parser)
  arguments = parser.parse_args(argv)
  values = answering.with_choices(vars(arguments))
  session = {
    'checkpoint': arguments.checkpoint,
    'source': IndexSource.from_flags(values),
    'n_passages': arguments.n_passages,
    'answering': option_fields.fill(AnswerOptions, values),
  }
  if arguments.question is None:
    ask_lines(sys.stdin, **session)
  else:
    print(format_answer(ask(arguments.question, **session)))
