"""`tokenizer.model` of Llama 2 and Gemma: ids of SentencePiece itself and of transformers."""

import io
import json

import pytest
import sentencepiece

from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.decoder_vocabulary import DecoderVocabulary
from tests import decoder_folders
from tests.data.text.test_decoder_vocabulary import HARD

transformers = pytest.importorskip('transformers')
OPTIONS = dict(
  model_type='bpe',
  byte_fallback=True,
  split_digits=True,
  normalization_rule_name='identity',
  remove_extra_whitespaces=False,
  allow_whitespace_only_pieces=True,
  vocab_size=700,
  hard_vocab_limit=False,
  minloglevel=2,
)


def train(folder, **options):
  content = io.BytesIO()
  sentences = [line for text in decoder_folders.PROSE for line in text.splitlines()]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*sentences, *decoder_folders.SCRIPTS * 4]),
    model_writer=content,
    **{**OPTIONS, **options},
  )
  path = folder / 'tokenizer.model'
  path.write_bytes(content.getvalue())
  return path


@pytest.fixture(scope='module', params=['llama2', 'gemma3'])
def model(request, tmp_path_factory):
  options = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, add_dummy_prefix=False)
  options |= dict(bos_piece='<bos>', eos_piece='<eos>')
  path = train(
    tmp_path_factory.mktemp(request.param), **(options if request.param == 'gemma3' else {})
  )
  return path


def test_ids_are_those_of_sentencepiece(model):
  ours = vocabularies.load_vocabulary(model)
  theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
  assert isinstance(ours, DecoderVocabulary)
  assert ours.vocab_size == theirs.vocab_size()
  assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id())
  for text in HARD:
    if '<0x0A>' not in text and '\x00' not in text:  # SentencePiece reads the first as a byte.
      assert ours.encode_start(text) == theirs.encode(text), text
      text = text.replace('\u2581', ' ')
      assert ours.decode(ours.encode_segment(text)) == text


def test_ids_are_those_of_transformers(model):
  dummy = 'llama2' in str(model)
  config = decoder_folders.CONFIGS['llama2' if dummy else 'gemma3']
  (model.parent / 'tokenizer_config.json').write_text(json.dumps(config))
  (model.parent / 'config.json').write_text(
    json.dumps({'model_type': 'llama' if dummy else 'gemma3_text'})
  )
  ours = vocabularies.load_vocabulary(model)
  theirs = transformers.AutoTokenizer.from_pretrained(model.parent)
  for text in HARD:
    found = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert ours.encode_start(text) == found, text


def test_what_normalises_is_refused(tmp_path):
  path = train(tmp_path, normalization_rule_name='nmt_nfkc', remove_extra_whitespaces=True)
  with pytest.raises(ValueError, match=r'tokenizer.model: normalises texts \(nmt_nfkc\)'):
    vocabularies.load_vocabulary(path)
