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
from ralm_jax.evaluation import answering as answering_lib
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.records import Answer
from ralm_jax.runs import opening


@contextlib.contextmanager
def open_session(
  *,
  checkpoint: str,
  index: str | None = None,
  retrieval_address: str | None = None,
  corpus: str | None = None,
  n_passages: int | None = None,
  retry_for_s: float = 30.0,
  backend: str = 'process',
  device_dtype: str = 'bfloat16',
  **answering: Any,
) -> Iterator[Callable[[str], Answer]]:
  """Gives a function from a question to its answer.

  Arguments are as for `eval.evaluate`. Whatever the retrieval process serves
  when a question is asked, it is answered from that.
  """
  options = AnswerOptions.make(**answering)
  opened = opening.open_checkpoint(checkpoint)
  with opening.open_evaluator(
    opened,
    index=index,
    retrieval_address=retrieval_address,
    corpus=corpus,
    n_passages=n_passages,
    batch_size=opened.partitioner.mesh.size,
    retry_for_s=retry_for_s,
    backend=backend,
    device_dtype=device_dtype,
    evaluation={'answering': options},
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
  answering_lib.add_flags(parser)
  arguments = answering_lib.with_choices(vars(parser.parse_args(argv)))
  question = arguments.pop('question')
  if question is None:
    ask_lines(sys.stdin, **arguments)
  else:
    print(format_answer(ask(question, **arguments)))
