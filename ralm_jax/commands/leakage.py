"""Leakage: what evaluation questions share with training data and a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ralm_jax.commands import flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Reports leakage from command-line flags."""
  parser = flags.Parser(prog, __doc__)
  add = parser.add_argument
  flags.shared(parser, 'questions', help='the evaluation set; globs allowed')
  flags.shared(parser, 'record_format')
  text = 'training questions (default: none, which needs --corpus)'
  add('--training', nargs='+', metavar='FILE', help=text)
  text = 'of the training questions (default: that of the questions)'
  add('--training_format', type=flags.record_format, metavar='FORMAT', help=text)
  text = 'what to look through (default: none, which needs --training)'
  flags.shared(parser, 'corpus', help=text)
  text = 'of these questions; their metrics are given for clean questions too (default: none)'
  add('--predictions', metavar='predictions.jsonl', help=text)
  add('--output', required=True, metavar='NAME.jsonl', help='file that gets a line a question')
  text = 'a passage holds a question if one run of its words is so much of it'
  add('--span_share', type=flags.SHARE, default=0.75, help=text)
  text = 'two questions are near copies from this Jaccard similarity on'
  add('--word_overlap', type=flags.SHARE, default=0.8, help=text)
  add(
    '--min_words',
    type=flags.NUMBER,
    default=5,
    help='shorter questions are not looked for in the corpus',
  )
  flags.shared(parser, 'on_error')
  arguments = parser.parse_args(argv)
  from ralm_jax.evaluation import leakage
  from ralm_jax.evaluation.overlap import Settings
  from ralm_jax.evaluation.task import QuestionOptions

  training = None
  if arguments.training:
    record_format = arguments.training_format or arguments.record_format
    training = QuestionOptions(arguments.training, record_format, on_error=arguments.on_error)
  found = leakage.report(
    QuestionOptions(arguments.questions, arguments.record_format, on_error=arguments.on_error),
    arguments.output,
    training=training,
    corpus=arguments.corpus,
    predictions=arguments.predictions,
    settings=Settings(arguments.word_overlap, arguments.span_share, arguments.min_words),
  )
  _print(found)
  print(f'written to {arguments.output}, and its summary and clean_ids beside it')


def _print(found: dict[str, Any]) -> None:
  from ralm_jax.evaluation import summary

  count = found['count']
  for name, value in found.items():
    if isinstance(value, int):
      share = '' if name == 'count' else f'{value / count:8.1%}'
      print(f'{name:<22}{value:>9,}{share}')
  for part, scores in found.get('scores', {}).items():
    shown = '  '.join(f'{name} {value:.4f}{over}' for name, value, over in summary.numbers(scores))
    print(f'{part:<22}{scores["count"]:>9,}  {shown}')
