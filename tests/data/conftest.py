"""Small vocabularies and passages, so that data tests need no real data."""

import io
import json
import os
import pathlib
import string

import pytest
import sentencepiece
import tokenizers

from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage

PROSE = [str(module.__doc__) for module in (io, json, os, pathlib, string, os.walk)]


@pytest.fixture(scope='session')
def train_sentencepiece():
  """A function that trains a model into a file."""
  return _train_sentencepiece


@pytest.fixture(scope='session')
def write_jsonl():
  """A function that writes passages into a file in Atlas's layout."""
  return _write_jsonl


@pytest.fixture(scope='session')
def sentencepiece_file(tmp_path_factory) -> pathlib.Path:
  """A SentencePiece model of a few hundred pieces, with T5's special ids."""
  path = tmp_path_factory.mktemp('vocabulary') / 'small.model'
  _train_sentencepiece(path)
  return path


def _train_sentencepiece(path: pathlib.Path, **options) -> None:
  """Trains a model on a little prose."""
  content = io.BytesIO()
  options = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1) | options
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter('\n'.join(PROSE).splitlines()),
    model_writer=content,
    vocab_size=300,
    hard_vocab_limit=False,
    minloglevel=2,
    **options,
  )
  path.write_bytes(content.getvalue())


@pytest.fixture(scope='session')
def wordpiece_file(tmp_path_factory) -> pathlib.Path:
  """A BERT vocabulary of letters and a few words."""
  letters = string.ascii_lowercase + string.digits
  pieces = [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[MASK]',
    *letters,
    *(f'##{letter}' for letter in letters),
    *string.punctuation,
    'the',
    'passage',
    'title',
    'number',
    '##ing',
  ]
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  path.write_text('\n'.join(pieces) + '\n')
  return path


@pytest.fixture(scope='session')
def byte_pair_folder(tmp_path_factory) -> pathlib.Path:
  """A byte-level BPE with BART's special ids, in both layouts.

  `tokenizer.json`, and `vocab.json` with `merges.txt`.
  """
  folder = tmp_path_factory.mktemp('byte_pair')
  _train_byte_pair(folder)
  return folder


def _train_byte_pair(folder: pathlib.Path) -> None:
  """Trains a few hundred pieces on a little prose."""
  trained = tokenizers.Tokenizer(tokenizers.models.BPE())
  trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  trained.decoder = tokenizers.decoders.ByteLevel()
  trained.train_from_iterator(
    '\n'.join(PROSE).splitlines(),
    tokenizers.trainers.BpeTrainer(
      vocab_size=600,
      show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=['<s>', '<pad>', '</s>', '<unk>'],
    ),
  )
  trained.add_special_tokens([tokenizers.AddedToken('<mask>', lstrip=True)])
  content = json.loads(trained.to_str())
  assert trained.token_to_id('<mask>') == trained.get_vocab_size() - 1
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  (folder / 'vocab.json').write_text(json.dumps(trained.get_vocab()))
  (folder / 'merges.txt').write_text(
    '#version: 0.2\n' + ''.join(' '.join(pair) + '\n' for pair in content['model']['merges']),
    'utf-8',
  )


@pytest.fixture(scope='session')
def small_passages() -> list[Passage]:
  """Forty passages, some with a section, one long, one empty, one not ASCII."""
  words = '\n'.join(PROSE).split()
  result = []
  for index in range(40):
    text = ' '.join(words[7 * index : 7 * index + 5 + index % 11])
    result.append(
      Passage(f'p-{index}', f'title number {index}', 'history' if index % 3 == 0 else '', text)
    )
  result[5] = Passage('p-5', 'long', '', ' '.join(words[:95]))
  result[6] = Passage('p-6', '', '', '')
  result[7] = Passage('é 7', 'Étude № 7', '', 'naïve — “quoted” 東京\u00a0text')
  return result


def _write_jsonl(path: pathlib.Path, items) -> pathlib.Path:
  """Writes passages in Atlas's layout."""
  path.write_text(
    ''.join(
      json.dumps(dict(id=p.id, title=p.title, section=p.section, text=p.text)) + '\n' for p in items
    )
  )
  return path


@pytest.fixture(scope='session')
def small_store(
  tmp_path_factory, small_passages, sentencepiece_file, wordpiece_file
) -> PassageStore:
  """The forty passages in shards of sixteen."""
  directory = tmp_path_factory.mktemp('corpus')
  source = _write_jsonl(directory / 'source.jsonl', small_passages)
  return passage_store.build_corpus(
    source,
    directory / 'corpus',
    sentencepiece_file,
    wordpiece_file,
    shard_size=16,
    n_workers=1,
    progress=False,
  )
