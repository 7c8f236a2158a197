"""Refresh: follow a run's checkpoints and publish its index anew from each.

A second job beside `ralm train` with RetrievalConfig.follow_current = True
(gin: FOLLOW_CURRENT), on devices of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Refreshes from command-line flags."""
  parser = flags.Parser(prog, __doc__, compiles=True)
  add = parser.add_argument
  add('--model_dir', required=True, metavar='RUN', help='MODEL_DIR of the run that is followed')
  flags.shared(parser, 'index', 'retrieval_address', 'corpus')
  text = 'publish when the run is so many steps further (default: every checkpoint)'
  add('--every_steps', type=flags.COUNT, default=1, metavar='N', help=text)
  text = 'how often a new checkpoint is looked for'
  add('--poll_s', type=flags.POSITIVE, default=10.0, metavar='SECONDS', help=text)
  add('--once', action='store_true', help='publish the newest checkpoint and stop')
  text = 'stop when a checkpoint of this step is published (default: run until interrupted)'
  add('--stop_after_steps', type=flags.COUNT, metavar='TOTAL', help=text)
  flags.shared(parser, 'batch_size', default=256, help='passages encoded at a time')
  text = 'newest generations kept in INDEX, besides pinned ones'
  add('--keep_generations', type=flags.COUNT, default=2, help=text)
  flags.shared(parser, 'retry_for_s', default=300.0)
  options = vars(parser.parse_args(argv))
  del options['compilation_cache']  # The parser has seen to it.
  from ralm_jax.runs import following

  published = following.refresh(**options)
  print(f'{published} generations published')
