"""Embed: encode a corpus with a checkpoint and build its index."""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import flags
from retrieval_service.options import IndexOptions


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Embeds from command-line flags."""
  parser = flags.Parser(prog, __doc__, compiles=True)
  flags.shared(parser, 'checkpoint', required=True)
  flags.shared(parser, 'corpus', required=True, help='the folder to embed')
  parser.add_argument(
    '--output', required=True, metavar='INDEX', help='index folder, made where there is none'
  )
  flags.shared(parser, 'batch_size', default=256, help='passages encoded at a time')
  flags.shared(parser, *flags.BUILD)
  arguments = parser.parse_args(argv)
  from ralm_jax.runs import embedding

  number = embedding.embed(
    checkpoint=arguments.checkpoint,
    corpus=arguments.corpus,
    output=arguments.output,
    options=IndexOptions(**flags.pick(arguments, flags.BUILD)),
    batch_size=arguments.batch_size,
  )
  print(f'{arguments.output}: generation {number}')
