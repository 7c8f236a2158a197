"""Vocabularies as folders of today hold them, against `transformers` on the same folder."""

import json
import string

import pytest

from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.vocabularies import UnigramVocabulary, WordPieceVocabulary
from ralm_jax.interop import huggingface_tokenizers

transformers = pytest.importorskip('transformers')

TEXTS = [
  'Paris US Turkey paris',
  'naïve café ÀÉ ü',
  'e\u0301 é',
  '東京 tower',
  'İstanbul I ı',
  '\u200bzero \x00 ctl\x07',
  '🙂 smile',
  '[MASK] of [SEP]x [PAD]',
  'a <extra_id_1> b <extra_id_0>c',
  '<extra_id_99><extra_id_0>',
  '  a  \n b\t',
  '',
  'x' * 120,
  'ſﬁ ligature ²',
  "don't 3.14",
  ' nbsp\u00a0x',
  'ΑΣ Σ',
  'new tokens <new> [ent] NEW',
]
LETTERS = string.ascii_letters + 'éÀÉüıΑΣς東京'
PIECES = [
  *('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'),
  *LETTERS,
  *('##' + letter for letter in LETTERS),
  *('Paris', 'paris', 'Turkey', 'turkey', 'US', 'us', 'naive', '##\u0301'),
]
# What tokenizer_config.json says beside vocab.txt.
CONFIGS = {
  'uncased': {},
  'cased': {'do_lower_case': False},
  'multilingual': {'do_lower_case': False, 'tokenize_chinese_chars': True, 'strip_accents': None},
  'accents kept': {'do_lower_case': True, 'strip_accents': False},
  'accents stripped': {'do_lower_case': False, 'strip_accents': True},
  'chinese in words': {'do_lower_case': False, 'tokenize_chinese_chars': False},
}


def _bert(folder, config):
  folder.mkdir(exist_ok=True)
  (folder / 'vocab.txt').write_text('\n'.join(PIECES) + '\n', encoding='utf-8')
  content = {'tokenizer_class': 'BertTokenizer', **config}
  (folder / 'tokenizer_config.json').write_text(json.dumps(content))
  return transformers.AutoTokenizer.from_pretrained(folder)


def _agrees(vocabulary, peer, tmp_path):
  expected = peer(TEXTS, add_special_tokens=False).input_ids
  assert vocabulary.encode_batch(TEXTS) == expected
  assert [vocabulary.encode(text) for text in TEXTS] == expected
  assert vocabulary.vocab_size == len(peer)
  assert (vocabulary.pad_id, vocabulary.unk_id) == (peer.pad_token_id, peer.unk_token_id)
  saved = vocabularies.load_vocabulary(tmp_path / vocabulary.save(tmp_path, 'saved'))
  assert saved.fingerprint == vocabulary.fingerprint
  assert saved.encode_batch(TEXTS) == expected


@pytest.mark.parametrize('name', CONFIGS)
def test_wordpiece_obeys_its_folder(name, tmp_path):
  peer = _bert(tmp_path / 'old', CONFIGS[name])
  old = vocabularies.load_vocabulary(tmp_path / 'old' / 'vocab.txt')
  _agrees(old, peer, tmp_path)
  # As transformers 5 saves it: tokenizer.json alone. It is the same vocabulary.
  peer.save_pretrained(tmp_path / 'new')
  assert not (tmp_path / 'new' / 'vocab.txt').exists()
  new = vocabularies.load_vocabulary(tmp_path / 'new' / 'tokenizer.json')
  assert new.fingerprint == old.fingerprint
  _agrees(new, peer, tmp_path)
  assert (old.suffix == '.txt') == (name == 'uncased')
  # Exported, it is read with the same ids.
  (tmp_path / 'out').mkdir()
  huggingface_tokenizers.write(str(tmp_path / 'out'), new, 'bert')
  out = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out', config=_config('bert'))
  assert out(TEXTS).input_ids == peer(TEXTS).input_ids


def _config(kind):
  made = {
    'bert': transformers.BertConfig,
    't5': transformers.T5Config,
    'bart': transformers.BartConfig,
  }
  return made[kind]()


def test_added_tokens_are_part_of_the_vocabulary(tmp_path):
  peer = _bert(tmp_path / 'old', {'do_lower_case': True})
  peer.add_tokens(['<new>', transformers.AddedToken('[ent]', special=True, normalized=False)])
  peer.save_pretrained(tmp_path / 'new')
  vocabulary = vocabularies.load_vocabulary(tmp_path / 'new' / 'tokenizer.json')
  _agrees(vocabulary, peer, tmp_path)
  assert vocabulary.encode('<new>') == [len(PIECES)]


def test_lower_casing_by_sentence_transformers(tmp_path):
  peer = _bert(tmp_path / 'st', {'do_lower_case': False})
  (tmp_path / 'st' / 'sentence_bert_config.json').write_text('{"do_lower_case": true}')
  vocabulary = vocabularies.load_vocabulary(tmp_path / 'st' / 'vocab.txt')
  for text in ('Paris US Turkey', 'É é e\u0301'):
    expected = peer(text.lower(), add_special_tokens=False).input_ids
    assert vocabulary.encode(text) == expected


@pytest.mark.parametrize(
  'config,message',
  [
    ({'tokenizer_class': 'BertJapaneseTokenizer'}, 'BertJapaneseTokenizer cuts texts otherwise'),
    ({'tokenizer_class': 'XLMRobertaTokenizer'}, 'XLMRobertaTokenizer cuts texts otherwise'),
    ({'do_basic_tokenize': False}, 'do_basic_tokenize false is not computed'),
    ({'additional_special_tokens': ['[ENT]']}, r"special token '\[ENT\]', which has no id"),
  ],
)
def test_folders_that_cut_texts_otherwise_are_refused(config, message, tmp_path):
  (tmp_path / 'vocab.txt').write_text('\n'.join(PIECES) + '\n', encoding='utf-8')
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=message):
    vocabularies.load_vocabulary(tmp_path / 'vocab.txt')


@pytest.fixture(scope='module')
def t5_folders(sentencepiece_file, tmp_path_factory):
  old, new = tmp_path_factory.mktemp('old'), tmp_path_factory.mktemp('new')
  (old / 'spiece.model').write_bytes(sentencepiece_file.read_bytes())
  peer = transformers.T5Tokenizer.from_pretrained(old)
  peer.save_pretrained(new)
  assert not (new / 'spiece.model').exists()
  return old, new, peer


def test_unigram_of_t5(t5_folders, tmp_path):
  old, new, peer = t5_folders
  vocabulary = vocabularies.load_vocabulary(new / 'tokenizer.json')
  assert isinstance(vocabulary, UnigramVocabulary)
  _agrees(vocabulary, peer, tmp_path)
  with_model = vocabularies.load_vocabulary(old / 'spiece.model')
  assert vocabulary.encode_batch(TEXTS) == with_model.encode_batch(TEXTS)
  for name in ('vocab_size', 'pad_id', 'eos_id', 'unk_id', 'extra_ids', 'reader_prefix'):
    assert getattr(vocabulary, name) == getattr(with_model, name)
  assert vocabulary.sentinel_id(7) == with_model.sentinel_id(7) == peer.encode('<extra_id_7>')[0]
  ids = with_model.encode('the file <extra_id_0> is') + [1, 0, 0]
  for keep in (False, True):
    assert vocabulary.decode(ids, keep) == with_model.decode(ids, keep)


def test_added_tokens_of_t5(t5_folders, tmp_path):
  *_, new, _ = t5_folders
  peer = transformers.AutoTokenizer.from_pretrained(new)
  peer.add_tokens(['<new>'])
  peer.save_pretrained(tmp_path / 'added')
  vocabulary = vocabularies.load_vocabulary(tmp_path / 'added' / 'tokenizer.json')
  assert vocabulary.encode('a <new>') == peer('a <new>', add_special_tokens=False).input_ids
  # Its sentinels are no longer the last ids, on which the objectives build.
  assert vocabulary.extra_ids == 0


@pytest.mark.parametrize('kind', ['t5', 'bert', 'bart'])
@pytest.mark.parametrize('name', ['sentencepiece', 'unigram', 'wordpiece', 'byte_pair'])
def test_any_vocabulary_is_exported_with_any_model(
  kind, name, t5_folders, sentencepiece_file, wordpiece_file, byte_pair_folder, tmp_path
):
  files = {
    'sentencepiece': sentencepiece_file,
    'unigram': t5_folders[1] / 'tokenizer.json',
    'wordpiece': wordpiece_file,
    'byte_pair': byte_pair_folder / 'tokenizer.json',
  }
  vocabulary = vocabularies.load_vocabulary(files[name])
  huggingface_tokenizers.write(str(tmp_path), vocabulary, kind)
  _config(kind).save_pretrained(tmp_path)
  peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  texts = ['the file is a list', 'not in it: 東京 x²', 'a', 'two words']
  assert peer(texts, add_special_tokens=False).input_ids == vocabulary.encode_start_batch(texts)
  framed = [
    [*vocabulary.retriever_prefix, *ids, vocabulary.eos_id]
    for ids in vocabulary.encode_start_batch(texts)
  ]
  assert peer(texts).input_ids == framed
  assert (peer.pad_token_id, peer.eos_token_id or peer.sep_token_id) == (
    vocabulary.pad_id,
    vocabulary.eos_id,
  )


def test_other_json_files_are_refused(tmp_path):
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps({'model': {'type': 'WordPiece', 'vocab': {'a': 0}}}))
  with pytest.raises(ValueError, match="normalizer is None, of BERT it is 'BertNormalizer'"):
    vocabularies.load_vocabulary(path)
  path.write_text(json.dumps({'model': {'type': 'Unigram', 'vocab': [['a', 0.0]], 'unk_id': 0}}))
  with pytest.raises(ValueError, match='has no token <pad>'):
    vocabularies.load_vocabulary(path)


def test_wordpiece_of_nothing_but_letters_is_none(tmp_path):
  (tmp_path / 'vocab.txt').write_text('[UNK]\na\nb\n')
  with pytest.raises(ValueError, match='no line'):
    WordPieceVocabulary(tmp_path / 'vocab.txt')
