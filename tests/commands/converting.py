"""Folders as they are released, tiny, and what tests of `ralm convert` share."""

from dataclasses import fields
import pathlib
import shutil

import flax.traverse_util
import jax
import numpy as np
import tokenizers

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.commands import convert as convert_command
from ralm_jax.interop import convert as conversion
from ralm_jax.interop.convert import Checks, Overrides
from ralm_jax.interop.run_source import RunSource
from tests import tiny
from tests.interop import huggingface_folders as folders

TEXT = dict(
  question_format='{question}',
  query_length=32,
  reader_query_length=24,
  passage_length=64,
  retriever_passage_length=32,
  target_length=8,
  n_passages=3,
)


def make(folder: pathlib.Path) -> pathlib.Path:
  """Fills a folder with folders as they are released, with vocabularies."""
  (folder / 'data').mkdir()
  data = tiny.make_data(folder / 'data')

  def save(name, model, *vocabulary):
    model.save_pretrained(folder / name)
    for file, as_name in vocabulary:
      (folder / name / as_name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(file, folder / name / as_name)

  pieces = (data.retriever_vocabulary, 'vocab.txt')
  save('t5', folders.t5(vocab_size=256), (data.reader_vocabulary, 'spiece.model'))
  save('bert', folders.bert(vocab_size=128), pieces)
  save('question', folders.dpr('Question', vocab_size=128), pieces)
  save('context', folders.dpr('Context', 1, vocab_size=128), pieces)
  bpe = tokenizers.ByteLevelBPETokenizer()
  bpe.train_from_iterator(
    (p['text'] for p in tiny.passages()),
    vocab_size=300,
    show_progress=False,
    special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'],
  )
  bpe.save_model(str(folder))
  files = [(folder / name, name) for name in ('vocab.json', 'merges.txt')]
  save('bart', folders.bart(vocab_size=304, max_position_embeddings=80), *files)
  save(
    'rag',
    folders.rag('Sequence', folders.t5(vocab_size=256)),
    (data.reader_vocabulary, 'generator_tokenizer/spiece.model'),
    (data.retriever_vocabulary, 'question_encoder_tokenizer/vocab.txt'),
  )
  return folder


def converted(to, *paths, **options):
  """`convert.convert` with `PART=PATH` or PATH, and its options by name alone."""
  options = {'text': TEXT, 'progress': False, **options}
  groups = {
    group: kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})
    for group, kind in (('overrides', Overrides), ('checks', Checks))
  }
  sources = [convert_command.parse_source(str(path)) for path in paths]
  return conversion.convert(sources, str(to), **groups, **options)


def convert(to, *paths, **options):
  """The lines of `converted`."""
  return converted(to, *paths, **options).lines


class Opened:
  """A run's specification and host arrays, with no mesh."""

  def __init__(self, run):
    source = RunSource(run)
    self.spec = Specification.load(source.directory)
    self.params = flax.traverse_util.unflatten_dict(
      {name: source[name] for name in source}, sep='/'
    )


def assert_equal(first, second):
  assert jax.tree.structure(first) == jax.tree.structure(second)
  jax.tree.map(np.testing.assert_array_equal, first, second)
