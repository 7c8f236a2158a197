"""What a run folder keeps of vocabularies, whatever file they came from."""

import dataclasses

import pytest

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from tests import tiny

READER = {'vocab_size': 640, 'pad_id': 1, 'eos_id': 2}


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def byte_pair_file(tmp_path_factory):
  """`vocab.json` and `merges.txt` of all bytes and a few words."""
  import tokenizers

  folder = tmp_path_factory.mktemp('byte_pair')
  trained = tokenizers.ByteLevelBPETokenizer()
  trained.train_from_iterator(
    ['the file is the one that it is'] * 3,
    vocab_size=300,
    show_progress=False,
    special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'],
  )
  trained.save_model(str(folder))
  return folder / 'vocab.json'


def make(data, reader_file, reader, **text) -> Specification:
  return Specification(
    tiny.make_model(reader=reader),
    QueryTokenizer(
      tiny.make_text(**text),
      vocabularies.load_vocabulary(reader_file),
      vocabularies.load_vocabulary(data.retriever_vocabulary),
    ),
  )


PLAIN = {'question_format': '{question}', 'target_format': '{answer}'}


def test_byte_pair_vocabulary_is_kept_in_one_file(data, byte_pair_file, tmp_path):
  spec = make(data, byte_pair_file, READER, **PLAIN)
  spec.check()
  spec.save(tmp_path)
  spec.save(tmp_path)
  assert {p.name for p in (tmp_path / 'vocabularies').iterdir()} == {'reader.json', 'retriever.txt'}
  loaded = Specification.load(tmp_path)
  assert loaded.model == spec.model and loaded.text == spec.text
  for side in ('reader', 'retriever'):
    ours, theirs = (getattr(s.tokenizer, f'{side}_vocabulary') for s in (spec, loaded))
    assert ours.fingerprint == theirs.fingerprint
    assert ours.encode_start('the file') == theirs.encode_start('the file')
  loaded.check_same_vocabularies(tmp_path)
  # And what was loaded can be saved elsewhere.
  loaded.save(tmp_path / 'other')
  Specification.load(tmp_path / 'other')


def test_another_vocabulary_is_noticed(data, byte_pair_file, tmp_path):
  spec = make(data, byte_pair_file, READER, **PLAIN)
  spec.save(tmp_path)
  other = make(data, data.reader_vocabulary, {})
  with pytest.raises(ValueError, match='another reader vocabulary'):
    other.check_same_vocabularies(tmp_path)
  path = tmp_path / 'vocabularies/reader.json'
  path.write_text(path.read_text().replace('"single_word": false', '"single_word": true', 1))
  with pytest.raises(ValueError, match='not the reader vocabulary the model was'):
    Specification.load(tmp_path)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'pad_id': 0}, 'pads with id 1, the reader model with 0'),
    ({'eos_id': 1}, 'ends sequences with id 2, the reader with 1'),
    ({'vocab_size': 64}, 'the reader model only 64'),
  ],
)
def test_special_ids_must_be_those_of_the_model(data, byte_pair_file, changes, message):
  spec = make(data, byte_pair_file, {**READER, **changes}, **PLAIN)
  with pytest.raises(ValueError, match=message):
    spec.check()


def test_sentencepiece_and_wordpiece_are_kept_as_they_are(data, tmp_path):
  spec = make(data, data.reader_vocabulary, {})
  spec.check()
  spec.save(tmp_path)
  for side, file in (('reader', data.reader_vocabulary), ('retriever', data.retriever_vocabulary)):
    [copy] = (tmp_path / 'vocabularies').glob(f'{side}.*')
    assert copy.read_bytes() == file.read_bytes()
  assert Specification.load(tmp_path).text == spec.text
  changed = dataclasses.replace(spec, model=tiny.make_model(reader={'pad_id': 5}))
  with pytest.raises(ValueError, match='pads with id 0, the reader model with 5'):
    changed.check()
