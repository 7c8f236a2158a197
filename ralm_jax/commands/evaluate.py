"""Eval: answer a file of questions and score the answers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys
from typing import Any

from ralm_jax.commands import launch
from ralm_jax.data import text_config
from ralm_jax.data.questions import multiple_choice
from ralm_jax.data.questions.formats import catalogue
from ralm_jax.evaluation import answering, option_fields, task as evaluation_task
from ralm_jax.evaluation.scores import by_task
from ralm_jax.evaluation.task import EvaluationTask
from ralm_jax.jobs import runner
from ralm_jax.jobs.runner import Index, JobOptions, Task
from ralm_jax.retrieval import index_source, search_filter
from ralm_jax.retrieval.device import search
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import evaluation


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Evaluates from command-line flags, or from gin files."""
  _run(argv, prog, __doc__)


def infer(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Answers, with or without known answers."""
  description = 'Infer: answer a file of questions, with or without known answers.'
  _run(argv, prog, description, require_answers=False)


def _run(
  argv: Sequence[str] | None,
  prog: str | None,
  description: str | None,
  *,
  require_answers: bool = True,
) -> None:
  """One evaluation from flags, many from gin files, or those of a run."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if any(argument.startswith('--gin') for argument in argv):
    launch.run_from_gin(
      runner.run,
      argv,
      prog=prog,
      description=description,
      arguments_of=None if require_answers else {'require_answers': False},
    )
    return
  parser = argparse.ArgumentParser(
    prog=prog,
    description=description,
    epilog='--gin_file FILE instead of all these evaluates many checkpoints '
    'on many tasks with many indexes; see '
    'gin_configs/runs/evaluation.gin',
  )
  add_flags(parser)
  arguments = parser.parse_args(argv)
  if (arguments.checkpoint is None) == (arguments.watch is None):
    parser.error('give either --checkpoint or --watch')
  if arguments.watch is None:
    for name in ('until_step', 'idle_s'):
      if getattr(arguments, name) is not None:
        parser.error(f'--{name} is of --watch')
  elif not arguments.resume:
    parser.error('--no_resume does not go with --watch; name another --output')
  values = answering.with_choices(vars(arguments))
  values |= {'require_answers': require_answers, 'text': text_config.parse_fields(arguments.text)}
  if arguments.watch is not None:
    _watch(arguments, values)
    return
  metrics = evaluation.evaluate(
    arguments.checkpoint,
    option_fields.fill(EvaluationTask, values),
    IndexSource.from_flags(values),
    arguments.output,
    batch_size=arguments.batch_size,
    resume=arguments.resume,
  )
  if require_answers:
    for name, value in metrics.items():
      if isinstance(value, (int, float)):
        print(f'{name:<18} ' + (str(value) if name == 'count' else f'{value:.4f}'))
    print(f'written to {arguments.output}/predictions.jsonl and metrics.json')
  else:
    print(f'{metrics["count"]} answers in {arguments.output}/predictions.jsonl')


def _watch(arguments: argparse.Namespace, values: dict[str, Any]) -> None:
  """The flags' evaluation of every checkpoint that a run saves."""
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


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Flags that evaluation and inference share."""
  parser.add_argument('--checkpoint', metavar='CKPT')
  parser.add_argument(
    '--watch',
    metavar='RUN',
    help='MODEL_DIR of a run that is training: its checkpoints are evaluated as they come',
  )
  parser.add_argument(
    '--until_step', type=int, help="of --watch: the step to end at (default: the run's last)"
  )
  parser.add_argument(
    '--idle_s',
    type=float,
    metavar='SECONDS',
    help='of --watch: end when nothing new has come for so long',
  )
  parser.add_argument(
    '--questions',
    required=True,
    nargs='+',
    metavar='FILE',
    help='jsonl of {question, answers, id?, gold_passage_id?}; globs allowed',
  )
  parser.add_argument(
    '--record_format',
    choices=catalogue.FORMATS,
    default='qa',
    help='layout of the questions; qa is our own, the others are those in '
    'which benchmarks are published',
  )
  parser.add_argument(
    '--metrics',
    choices=by_task.FAMILIES,
    help='what answers are scored by (default: that of the record format)',
  )
  parser.add_argument(
    '--on_error',
    choices=('raise', 'skip'),
    default='raise',
    help='what to do about a malformed record: stop, or leave it out and count it',
  )
  parser.add_argument('--num_examples', type=int, help='only the first so many questions')
  parser.add_argument('--shots', type=int, help='only so many questions, chosen by hash')
  parser.add_argument('--shots_seed', type=int, default=0, help='of that choice')
  parser.add_argument(
    '--text',
    nargs='+',
    action='extend',
    default=[],
    metavar='FIELD=VALUE',
    help="fields of TextConfig to use instead of the checkpoint's own, such "
    "as question_format='{question}' and reader_query_length=512",
  )
  parser.add_argument(
    '--permutations',
    choices=multiple_choice.PERMUTATIONS,
    default='cyclic',
    help="orders of a multiple choice's options that are averaged",
  )
  add_retrieval_flags(parser)
  parser.add_argument('--generation', type=int, help='of the index (default: the current one)')
  parser.add_argument(
    '--passages_from',
    choices=evaluation_task.PASSAGES_FROM,
    default='index',
    help='an index; the file of questions itself; or none, closed-book',
  )
  parser.add_argument(
    '--retrieve_only', action='store_true', help='find passages and leave the reader out'
  )
  parser.add_argument(
    '--passage_effects',
    action='store_true',
    help="also each passage's effect on the answer's log-likelihood",
  )
  parser.add_argument(
    '--with_loss', action='store_true', help="also the negative log-likelihood of a target's tokens"
  )
  parser.add_argument(
    '--search_filter',
    choices=search_filter.FILTERS,
    default='passage',
    help='what the exclusions of a question drop; none ignores dates too',
  )
  parser.add_argument(
    '--n_candidates',
    type=int,
    help='fetch so many from a stale index and keep the --n_passages that '
    "the checkpoint's own encoders find best",
  )
  parser.add_argument('--rerank_chunk', type=int, help='candidates encoded at a time')
  parser.add_argument('--output', required=True, metavar='DIR')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument(
    '--no_resume',
    dest='resume',
    action='store_false',
    help='begin anew instead of behind the predictions of an interrupted call',
  )
  answering.add_flags(parser)


def add_retrieval_flags(parser: argparse.ArgumentParser) -> None:
  """Flags that say where passages come from."""
  parser.add_argument('--index', metavar='INDEX', help='index folder')
  parser.add_argument(
    '--retrieval_address',
    metavar='HOST:PORT',
    help='a running retrieval process, instead of --index',
  )
  parser.add_argument('--corpus', metavar='CORPUS', help="where the index's corpus is now")
  parser.add_argument('--n_passages', type=int, help='passages retrieved for a question')
  parser.add_argument(
    '--retry_for_s',
    type=float,
    default=30.0,
    metavar='SECONDS',
    help='how long an unreachable retrieval process is waited for',
  )
  parser.add_argument(
    '--backend',
    choices=index_source.BACKENDS,
    default='process',
    help="what searches: a process with the index (FAISS), or this program's devices, exactly",
  )
  parser.add_argument(
    '--device_dtype',
    choices=search.DTYPES,
    default='bfloat16',
    help='of the embeddings on the devices; float16 is what is stored',
  )
