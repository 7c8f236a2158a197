"""Corpus: passage files to a PassageStore."""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Builds a corpus from command-line flags."""
  parser = flags.Parser(prog, __doc__)
  add = parser.add_argument
  text = 'jsonl (id, title, section?, text) or DPR tsv; globs and compressed files allowed'
  add('--input', required=True, nargs='+', metavar='FILE', help=text)
  add('--output', required=True, metavar='CORPUS', help='the folder to make')
  flags.shared(parser, 'checkpoint', help='a run whose vocabularies are taken (default: none)')
  for side in ('reader', 'retriever'):
    text = f"of the {side}: a file, a model's folder, or its name (default: that of --checkpoint)"
    flags.shared(parser, f'{side}_vocabulary', help=text)
  text = (
    'cut longer passages into equal parts of at most so many words, in Chinese, Japanese, Thai and '
    'their like characters (default: as they are)'
  )
  add('--max_words', type=flags.COUNT, help=text)
  add('--workers', type=flags.COUNT, help='processes (default: one a core)')
  add('--restart', action='store_true', help='discard what the folder holds')
  arguments = parser.parse_args(argv)
  vocabularies = {
    side: getattr(arguments, f'{side}_vocabulary') for side in ('reader', 'retriever')
  }
  if arguments.checkpoint is None and None in vocabularies.values():
    raise ValueError(
      'A corpus is tokenised for a reader and a retriever: give --checkpoint, or both '
      '--reader_vocabulary and --retriever_vocabulary.'
    )
  from ralm_jax.data.corpus import cut_text, passage_store
  from ralm_jax.data.text_config import TextConfig
  from ralm_jax.interop import gguf_tokenizer

  formats, whose = TextConfig(), 'default lengths'
  for side, name in vocabularies.items():
    vocabularies[side] = name and gguf_tokenizer.load_vocabulary(name)
  if arguments.checkpoint is not None:
    from ralm_jax.checkpoints import store as checkpoints
    from ralm_jax.checkpoints.specification import Specification

    spec = Specification.load(checkpoints.find(arguments.checkpoint)[0])
    formats, whose = spec.text, "checkpoint's lengths"
    for side in vocabularies:
      vocabularies[side] = vocabularies[side] or getattr(spec.tokenizer, f'{side}_vocabulary')
  store = passage_store.build_corpus(
    arguments.input,
    arguments.output,
    vocabularies['reader'],
    vocabularies['retriever'],
    max_words=arguments.max_words,
    n_workers=arguments.workers,
    resume=not arguments.restart,
  )
  print(f'{arguments.output}: {len(store):,} passages')
  if empty := store.count_empty():
    print(f'{empty:,} of them with neither text nor title, which are kept but say nothing')
  if note := cut_text.note(store, formats, whose):
    print(f'note: {note}')
