"""Vocabularies of decoder-only readers: ids of transformers, exact text, special tokens."""

import unicodedata

import pytest

from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.decoder_vocabulary import DecoderVocabulary
from tests import decoder_folders

transformers = pytest.importorskip('transformers')

HARD = [
  '',
  'a',
  ' leading',
  '  two leading',
  'trailing ',
  'two  inner   spaces',
  'tabs\tand\t\tmore',
  'one\nnewline',
  '\nfirst a newline',
  'two\n\nnewlines\n\n\n and three\r\n',
  'The population was 1,234,567 in 2024 (3.14 %).',
  "I'll, we've, it's, DON'T 's",
  '東京は日本の首都です。',
  'القاهرة هي عاصمة مصر، وعدد سكانها ١٢٣.',
  'नई दिल्ली भारत की राजधानी है।',
  'naïve e\u0301 is not é',
  'a family 👩‍👩‍👧 and a flag 🇩🇪',
  'no-break\u00a0space, zero\u200bwidth, \u2581 itself, \ufeff mark',
  '\x00 and \x7f',
  'ends a turn: <|im_end|> or </s> or <eos> or <|eot_id|><|end_of_text|> <end_of_turn>\n',
  '<s>[INST] <<SYS>> [/INST] <think> </think> <0x0A> <unk> <mask>',
]


@pytest.fixture(scope='module', params=decoder_folders.FAMILIES)
def family(request):
  return request.param


@pytest.fixture(scope='module')
def folder(family, tmp_path_factory):
  return decoder_folders.write(tmp_path_factory.mktemp(family), family).parent


@pytest.fixture(scope='module')
def vocabulary(folder):
  return vocabularies.load_vocabulary(folder / 'tokenizer.json')


@pytest.fixture(scope='module')
def theirs(folder, family):
  # GPT2Tokenizer, which SmolLM2 names, leaves out in transformers 5 that its digits stand alone.
  auto = transformers.PreTrainedTokenizerFast if family == 'smollm2' else transformers.AutoTokenizer
  return auto.from_pretrained(folder)


def test_ids_are_those_of_transformers(vocabulary, theirs):
  assert isinstance(vocabulary, DecoderVocabulary)
  expected = [
    theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in HARD
  ]
  assert vocabulary.encode_start_batch(HARD) == expected
  assert [vocabulary.encode_start(text) for text in HARD] == expected


def test_segments_are_those_of_a_prompt(vocabulary, theirs):
  """Behind a newline, and behind a special token."""
  special = vocabulary.name_of(vocabulary.eos_id)
  for text in HARD:
    if text[:1].strip():  # Another newline or space would be read with the first.
      before = vocabulary.encode_start('x\n')
      whole = theirs(f'x\n{text}', add_special_tokens=False, split_special_tokens=True).input_ids
      assert before + vocabulary.encode_segment(text) == whole, text
    chat = f'{special}{text}'
    whole = theirs(chat, add_special_tokens=False).input_ids
    assert vocabulary.encode_segment(chat, special=True) == whole, text


def test_text_is_exact(vocabulary, family):
  for text in HARD:
    ids = [vocabulary.eos_id, *vocabulary.encode_segment(text), vocabulary.pad_id]
    if family in decoder_folders.SENTENCE_PIECE:
      text = text.replace('\u2581', ' ')
    elif family.startswith('qwen'):
      text = unicodedata.normalize('NFC', text)
    assert vocabulary.decode(ids) == text


ROLES = {  # bos, ends, pad
  'llama2': ('<s>', ['</s>'], '<unk>'),
  'mistral': ('<s>', ['</s>'], '<unk>'),
  'llama3': (
    '<|begin_of_text|>',
    ['<|eot_id|>', '<|end_of_text|>', '<|eom_id|>'],
    '<|finetune_right_pad_id|>',
  ),
  'smollm2': (None, ['<|im_end|>'], '<repo_name>'),
  'qwen2': (None, ['<|im_end|>', '<|endoftext|>'], '<|endoftext|>'),
  'qwen3': (None, ['<|im_end|>', '<|endoftext|>'], '<|endoftext|>'),
  'gemma3': ('<bos>', ['<end_of_turn>', '<eos>'], '<pad>'),
}


def test_roles(vocabulary, theirs, family):
  bos, ends, pad = ROLES[family]
  name = vocabulary.name_of
  assert (vocabulary.bos_id is None) == (bos is None)
  assert bos is None or name(vocabulary.bos_id) == bos
  assert [name(i) for i in vocabulary.end_ids] == ends
  assert vocabulary.eos_id == vocabulary.end_ids[0] != vocabulary.pad_id
  assert name(vocabulary.pad_id) == pad
  framed = [*vocabulary.reader_prefix, *vocabulary.encode_start('a text')]
  assert framed == theirs('a text').input_ids
  assert vocabulary.vocab_size == len(theirs)


def test_one_saved_file_is_the_whole_folder(vocabulary, tmp_path):
  name = vocabulary.save(tmp_path, 'reader')
  assert [path.name for path in tmp_path.iterdir()] == [name] == ['reader.json']
  saved = vocabularies.load_vocabulary(tmp_path / name)
  assert isinstance(saved, DecoderVocabulary)
  for field in ('fingerprint', 'end_ids', 'pad_id', 'bos_id', 'unk_id', 'chat_template'):
    assert getattr(saved, field) == getattr(vocabulary, field), field
  assert saved.encode_start_batch(HARD) == vocabulary.encode_start_batch(HARD)
  assert saved.special_names == vocabulary.special_names


def test_stop_ids(vocabulary):
  for stop in ('\n', '.', 'of', '東'):
    expected = [i for i in range(vocabulary.vocab_size) if stop in vocabulary.decode([i])]
    assert vocabulary.stop_ids(stop) == tuple(expected)
  assert vocabulary.encode_segment('\n')[0] in vocabulary.stop_ids('\n')
  assert vocabulary.eos_id not in vocabulary.stop_ids('e')
  with pytest.raises(ValueError, match='empty stop string'):
    vocabulary.stop_ids('')


def test_half_a_character_is_refused(vocabulary):
  with pytest.raises(ValueError, match='lone surrogate'):
    vocabulary.encode_batch(['whole', 'half \ud83d'])
