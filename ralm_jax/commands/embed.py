"""Embed: encode a corpus with a checkpoint and build its index."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.runs.embedding import embed
from retrieval_service.options import IndexOptions


def add_index_flags(parser: argparse.ArgumentParser) -> None:
  """Flags that describe the index to build."""
  parser.add_argument(
    '--index_type',
    default='flat',
    help='flat, pq, ivf_flat, ivf_pq, or a FAISS factory string such as '
    'OPQ64_256,PQ64np (default: flat)',
  )
  parser.add_argument('--bytes_per_vector', type=int, default=64, help='of pq and ivf_pq')
  parser.add_argument('--nlist', type=int, help='inverted lists of ivf_*')
  parser.add_argument('--nprobe', type=int, help='inverted lists visited')
  parser.add_argument('--opq', action='store_true', help='rotate before quantising')
  parser.add_argument('--rerank', type=int, help='candidates re-ranked exactly')


def index_options(arguments: argparse.Namespace) -> IndexOptions:
  """The options that `add_index_flags` read."""
  return IndexOptions(
    index_type=arguments.index_type,
    bytes_per_vector=arguments.bytes_per_vector,
    nlist=arguments.nlist,
    nprobe=arguments.nprobe,
    opq=arguments.opq,
    rerank=arguments.rerank,
  )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Embeds from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  parser.add_argument('--checkpoint', required=True, metavar='CKPT')
  parser.add_argument('--corpus', required=True, metavar='CORPUS')
  parser.add_argument('--output', required=True, metavar='INDEX')
  parser.add_argument('--batch_size', type=int, default=256)
  add_index_flags(parser)
  arguments = parser.parse_args(argv)
  number = embed(
    checkpoint=arguments.checkpoint,
    corpus=arguments.corpus,
    output=arguments.output,
    options=index_options(arguments),
    batch_size=arguments.batch_size,
  )
  print(f'{arguments.output}: generation {number}')
