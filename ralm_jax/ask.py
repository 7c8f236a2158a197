"""Ask: answer one question and show the passages it was answered from."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys
import textwrap

from ralm_jax import eval as eval_lib
from ralm_jax import runs
from ralm_jax.evaluation import evaluator as evaluator_lib


def ask(
    question: str,
    *,
    checkpoint: str,
    index: str | None = None,
    retrieval_address: str | None = None,
    corpus: str | None = None,
    n_passages: int | None = None,
    retry_for_s: float = 30.0,
    backend: str = 'process',
    device_dtype: str = 'bfloat16',
) -> evaluator_lib.Answer:
  """Answers a question; arguments as for `eval.evaluate`."""
  if not question.strip():
    raise ValueError('The question is empty; write it as an argument.')
  opened = runs.open_checkpoint(checkpoint)
  with runs.open_evaluator(
      opened, index=index, retrieval_address=retrieval_address, corpus=corpus,
      n_passages=n_passages, batch_size=opened.partitioner.mesh.size,
      retry_for_s=retry_for_s, backend=backend, device_dtype=device_dtype,
  ) as evaluator:
    return evaluator.answer(opened.params, [question])[0]


def format_answer(answer: evaluator_lib.Answer) -> str:
  """The answer and its passages, best first, for a terminal."""
  lines = [f'answer: {answer.prediction}']
  for rank, shown in enumerate(answer.passages, 1):
    passage = shown.passage
    lines.append(
        f'  {rank}. {passage.merged_title}  [{passage.id}]  '
        f'score {shown.score:.3f}  probability {shown.probability:.3f}'
    )
    lines.append(textwrap.indent(
        textwrap.shorten(passage.text, 160, placeholder=' …'), '     '))
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Asks from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  parser.add_argument('question')
  parser.add_argument('--checkpoint', required=True, metavar='CKPT')
  eval_lib.add_retrieval_flags(parser)
  arguments = vars(parser.parse_args(argv))
  print(format_answer(ask(arguments.pop('question'), **arguments)))


if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['ask', *sys.argv[1:]]))
