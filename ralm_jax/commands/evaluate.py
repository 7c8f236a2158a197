"""Eval and infer: answer a file of questions, and score the answers or not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys
from typing import Any

from ralm_jax.commands import flags, launch
from ralm_jax.commands.flags import Parser
from ralm_jax.data import option_values


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Eval: answer a file of questions and score the answers."""
  _run(argv, prog, main.__doc__, require_answers=True)


def infer(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Infer: answer a file of questions, with or without known answers."""
  _run(argv, prog, infer.__doc__, require_answers=False)


def _run(
  argv: Sequence[str] | None, prog: str | None, description: str | None, *, require_answers: bool
) -> None:
  """One evaluation from flags, many from gin files, or those of a run."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if any(argument.startswith('--gin') for argument in argv):
    arguments = launch.parse(launch.parser(prog, description), argv)
    from ralm_jax.jobs import runner

    launch.call(runner.run, arguments, **({} if require_answers else {'require_answers': False}))
    return
  parser = _parser(prog, description)
  arguments = parser.parse_args(argv)
  if (arguments.checkpoint is None) == (arguments.watch is None):
    parser.error('give either --checkpoint or --watch')
  if arguments.watch is None:
    for name in ('until_step', 'idle_s'):
      if getattr(arguments, name) is not None:
        parser.error(f'--{name} is of --watch')
  elif not arguments.resume:
    parser.error('--no_resume does not go with --watch; name another --output')
  from ralm_jax.data import text_config

  values = vars(arguments) | {
    'require_answers': require_answers,
    'text': text_config.parse_fields(arguments.text),
  }
  if arguments.watch is not None:
    _watch(arguments, values)
    return
  metrics = _evaluate(arguments, values)
  if require_answers:
    from ralm_jax.evaluation import summary

    for name, value, over in summary.numbers(metrics):
      print(f'{name:<18} {value:.4f}{over}')
    print(f'{"count":<18} {metrics["count"]}')
    print(f'written to {arguments.output}/predictions.jsonl and metrics.json')
  else:
    print(f'{metrics["count"]} answers in {arguments.output}/predictions.jsonl')


def _evaluate(arguments: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
  from ralm_jax.evaluation import option_fields
  from ralm_jax.evaluation.task import EvaluationTask
  from ralm_jax.retrieval.index_source import IndexSource
  from ralm_jax.runs import evaluation

  return evaluation.evaluate(
    arguments.checkpoint,
    option_fields.fill(EvaluationTask, values),
    IndexSource.from_flags(values),
    arguments.output,
    batch_size=arguments.batch_size,
    resume=arguments.resume,
  )


def _watch(arguments: argparse.Namespace, values: dict[str, Any]) -> None:
  """The flags' evaluation of every checkpoint that a run saves."""
  from ralm_jax.evaluation import option_fields
  from ralm_jax.jobs import runner
  from ralm_jax.jobs.config import Index, JobOptions, Task
  from ralm_jax.retrieval.index_source import IndexSource

  task = option_fields.fill(Task, {**values, 'name': 'questions'})
  task.check_source(IndexSource.from_flags(values))
  runner.run(
    tasks=[task],
    indexes=[Index.from_flags(values)] if arguments.index or arguments.retrieval_address else [],
    output=arguments.output,
    watch=arguments.watch,
    until_step=arguments.until_step,
    idle_s=arguments.idle_s,
    options=option_fields.fill(JobOptions, values),
  )


def _parser(prog: str | None, description: str | None) -> Parser:
  """Flags that evaluation and inference share."""
  parser = Parser(
    prog,
    description,
    compiles=True,
    epilog='--gin_file FILE in place of all these evaluates many checkpoints on many tasks\n'
    'with many indexes; see gin_configs/runs/evaluation.gin.',
  )
  add = parser.add_argument
  flags.shared(
    parser,
    'checkpoint',
    help='MODEL_DIR, whose newest is taken, or a checkpoint_STEP in it (default: those of --watch)',
  )
  text = 'MODEL_DIR of a run that is training: its checkpoints are evaluated as they come'
  add('--watch', metavar='RUN', help=f'{text} (default: --checkpoint alone)')
  add(
    '--until_step',
    type=flags.COUNT,
    help="of --watch: the step to end at (default: the run's last)",
  )
  text = 'of --watch: end when nothing new has come for so long (default: never)'
  add('--idle_s', type=flags.AMOUNT, metavar='SECONDS', help=text)
  flags.shared(parser, 'questions', 'record_format')
  text = 'what answers are scored by (default: that of the record format)'
  add('--metrics', choices=option_values.METRICS_FAMILIES, help=text)
  flags.shared(parser, 'page_field', 'page_separators')
  flags.shared(parser, 'on_error')
  add('--num_examples', type=flags.COUNT, help='only the first so many questions (default: all)')
  add('--shots', type=flags.COUNT, help='only so many questions, chosen by hash (default: all)')
  flags.shared(parser, 'shots_seed', 'text')
  text = "orders of a multiple choice's options that are averaged"
  add('--permutations', choices=option_values.PERMUTATIONS, default='cyclic', help=text)
  flags.shared(parser, *flags.SEARCH)
  add('--generation', type=flags.COUNT, help='of the index (default: the current one)')
  text = 'an index; the file of questions itself; or none, closed-book'
  add('--passages_from', choices=option_values.PASSAGES_FROM, default='index', help=text)
  add('--retrieve_only', action='store_true', help='find passages and leave the reader out')
  text = "also each passage's effect on the answer's log-likelihood"
  add('--passage_effects', action='store_true', help=text)
  text = "also the negative log-likelihood of a target's tokens"
  add('--with_loss', action='store_true', help=text)
  text = 'what the exclusions of a question drop; none ignores dates too'
  add('--search_filter', choices=option_values.SEARCH_FILTERS, default='passage', help=text)
  text = (
    "fetch so many from a stale index and keep the --n_passages that the checkpoint's own encoders "
    'find best (default: no such re-ranking)'
  )
  add('--n_candidates', type=flags.COUNT, help=text)
  add('--rerank_chunk', type=flags.COUNT, help='candidates encoded at a time (default: all)')
  add('--output', required=True, metavar='DIR', help='folder of the results')
  flags.shared(parser, 'batch_size', default=32, help='questions answered at a time')
  text = 'begin anew instead of behind the predictions of an interrupted call'
  add('--no_resume', dest='resume', action='store_false', help=f'{text} (default: it continues)')
  flags.shared(parser.add_argument_group('reading'), *flags.READING)
  flags.shared(parser.add_argument_group('decoding'), *flags.DECODING)
  return parser
