"""Convert released weights and indexes to ours, or ours to Hugging Face.

  ralm convert --from reader=T5_FOLDER retriever=CONTRIEVER_FOLDER --to MODEL_DIR
  ralm convert --from RAG_FOLDER passage_encoder=DPR_FOLDER --to MODEL_DIR
  ralm convert --from model.pth.tar --to MODEL_DIR \\
      --reader_vocabulary spiece.model --retriever_vocabulary vocab.txt
  ralm convert --from MODEL_DIR --to FOLDER --to_format huggingface
  ralm convert --from atlas_index=FOLDER --to INDEX --to_corpus CORPUS \\
      --reader_vocabulary spiece.model --retriever_vocabulary vocab.txt
  ralm convert --from embeddings='passages_*' --corpus CORPUS --to INDEX

What is at a path is told by its content. Tensors are streamed: memory is needed
for the largest one and little more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.commands import embed
from ralm_jax.data import text_config
from ralm_jax.interop import convert as conversion, huggingface_export, recognition
from ralm_jax.interop.convert import Checks, Overrides

_INDEXES = ('atlas_index', 'embeddings')


def parse_source(argument: str) -> tuple[str | None, str]:
  """`PART=PATH` or `PATH` to (part or None, path).

  Raises:
    ValueError: what stands before '=' is no part, or there is no path.
  """
  part, equals, path = argument.partition('=')
  if not (path if equals else argument):
    raise ValueError(f'--from {argument or repr(argument)}: there is no path; write [PART=]PATH.')
  if equals and part in (*recognition.SIDES, *_INDEXES):
    return part, path
  # A path may have a '=' of its own.
  if equals and part.isidentifier():
    raise ValueError(
      f'--from {argument}: {part!r} is no part; parts are '
      f'{", ".join((*recognition.SIDES, *_INDEXES))}. For a path with such '
      'a name write ./ in front.'
    )
  return None, argument


def _convert_index(
  sources: Sequence[tuple[str | None, str]], arguments: argparse.Namespace
) -> list[str]:
  """Converts an index; returns the lines of its report."""
  from ralm_jax.interop import foreign_indexes

  kinds = sorted({str(kind) for kind, _ in sources})
  if len(kinds) > 1 or (kinds == ['atlas_index'] and len(sources) > 1):
    raise ValueError(f'An index is converted alone; give one --from (found {kinds}).')
  needed = {
    'atlas_index': ('to', 'to_corpus', 'reader_vocabulary', 'retriever_vocabulary'),
    'embeddings': ('to', 'corpus'),
  }[kinds[0]]
  for flag in needed:
    if getattr(arguments, flag) is None:
      raise ValueError(f'--from {kinds[0]}= needs --{flag}, too.')
  if arguments.dry_run:
    raise ValueError('--dry_run is for weights; an index is not converted dry.')
  options = embed.index_options(arguments)
  if kinds == ['atlas_index']:
    made = foreign_indexes.convert_atlas_index(
      sources[0][1],
      arguments.to_corpus,
      arguments.to,
      arguments.reader_vocabulary,
      arguments.retriever_vocabulary,
      options,
      own_ids=not arguments.row_ids,
    )
  else:
    made = foreign_indexes.convert_embeddings(
      [path for _, path in sources],
      arguments.corpus,
      arguments.to,
      options,
      id_prefix=arguments.id_prefix,
      allow_missing=arguments.allow_missing,
      allow_unused=arguments.allow_unused,
    )
  return [
    f'{arguments.to}: generation {made.generation} of {made.passages} passages, '
    f'{made.dim} dimensions'
  ]


def _parser(prog: str | None) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--from',
    dest='sources',
    required=True,
    nargs='+',
    action='extend',
    metavar='[PART=]PATH',
    help='what to convert; PART is reader, retriever, query_encoder or '
    'passage_encoder (or atlas_index, embeddings); without a PART a whole '
    'model, or a single part told by its configuration',
  )
  parser.add_argument('--to', metavar='DIR', help='the folder to make')
  parser.add_argument(
    '--to_format',
    choices=conversion.FORMATS,
    default='run',
    help='run: a MODEL_DIR with a sharded checkpoint (default); huggingface: '
    'DIR/reader, DIR/retriever or DIR/query_encoder and DIR/passage_encoder',
  )
  parser.add_argument(
    '--reader_vocabulary', metavar='FILE', help='where none lies beside the weights'
  )
  parser.add_argument('--retriever_vocabulary', metavar='FILE')
  parser.add_argument(
    '--scan_layers',
    action=argparse.BooleanOptionalAction,
    help='one compiled layer for each stack (default: as in the source)',
  )
  parser.add_argument(
    '--layer_norm',
    choices=conversion.LAYER_NORMS,
    help="of the retriever; atlas is the released code's and the default for Atlas checkpoints",
  )
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='of computation')
  parser.add_argument(
    '--reading',
    choices=('fusion', 'rag_sequence', 'rag_token'),
    help='how the reader reads (default: as the checkpoint says)',
  )
  parser.add_argument(
    '--text',
    nargs='+',
    action='extend',
    default=[],
    metavar='FIELD=VALUE',
    help='fields of TextConfig, such as n_passages=40',
  )
  parser.add_argument(
    '--retriever_heads', type=int, help='attention heads of an Atlas retriever, if not of size 64'
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='list what maps where and what is left over; write nothing',
  )
  parser.add_argument(
    '--allow_missing', action='store_true', help='initialise missing tensors at random'
  )
  parser.add_argument(
    '--allow_unused', action='store_true', help='leave tensors out that have no place'
  )
  parser.add_argument(
    '--verify',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='compare files with the checksums that lie beside them',
  )
  parser.add_argument(
    '--max_shard_bytes',
    type=int,
    default=huggingface_export.MAX_SHARD_BYTES,
    help='of one Hugging Face file',
  )
  parser.add_argument('--seed', type=int, default=0, help='of missing tensors')
  index = parser.add_argument_group('indexes (atlas_index=, embeddings=)')
  index.add_argument('--corpus', metavar='CORPUS', help='that was embedded')
  index.add_argument('--to_corpus', metavar='CORPUS', help='to make of an Atlas index')
  index.add_argument(
    '--row_ids',
    action='store_true',
    help='name the passages of an Atlas index by their row, where their own '
    'ids are missing or repeat',
  )
  index.add_argument(
    '--id_prefix',
    default='',
    metavar='TEXT',
    help="what ids of embeddings begin with and those of the corpus do not (DPR's wiki:)",
  )
  embed.add_index_flags(index)
  return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Converts from command-line flags."""
  arguments = _parser(prog).parse_args(argv)
  sources = [parse_source(argument) for argument in arguments.sources]
  if any(part in _INDEXES for part, _ in sources):
    for line in _convert_index(sources, arguments):
      print(line)
    return
  report = conversion.convert(
    sources,
    arguments.to,
    arguments.to_format,
    overrides=Overrides(
      reader_vocabulary=arguments.reader_vocabulary,
      retriever_vocabulary=arguments.retriever_vocabulary,
      scan_layers=arguments.scan_layers,
      layer_norm=arguments.layer_norm,
      dtype=arguments.dtype,
      reading=arguments.reading,
      text=text_config.parse_fields(arguments.text),
      retriever_heads=arguments.retriever_heads,
    ),
    checks=Checks(
      verify=arguments.verify,
      allow_missing=arguments.allow_missing,
      allow_unused=arguments.allow_unused,
      seed=arguments.seed,
    ),
    dry_run=arguments.dry_run,
    max_shard_bytes=arguments.max_shard_bytes,
  )
  for line in report.lines:
    print(line)
  if report.failure is not None:
    raise ValueError(f'this conversion would fail: {report.failure}')
