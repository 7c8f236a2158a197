"""Vocabularies against transformers, and the whitespace property."""

import itertools
import json
import random

import pytest

from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.vocabularies import SentencePieceVocabulary, WordPieceVocabulary

TRICKY = [
  '',
  ' ',
  'a',
  '  two  spaces ',
  'tab\tand\nline',
  'non\u00a0breaking',
  'naïve café',
  '東京 tower',
  'ﬁne ligature',
  '“quotes” — dash…',
  'x²+y²',
  '🙂 smile',
  '\u200bzero width',
  'UPPER lower',
  "don't",
  '3.14159',
  'a_b-c/d',
  'Σ ς',
  'é vs e\u0301',
  'supercalifragilisticexpialidocious' * 5,
]


@pytest.fixture(scope='module')
def t5(shared_data):
  return SentencePieceVocabulary(shared_data / 'tokenizers/t5/spiece.model')


@pytest.fixture(scope='module')
def bert(shared_data):
  return WordPieceVocabulary(shared_data / 'tokenizers/bert-base-uncased/vocab.txt')


@pytest.fixture(scope='module')
def real_texts(shared_data):
  """Questions, titles and texts from every file of passages."""
  texts = []
  for path in sorted((shared_data / 'passages').glob('*.jsonl')):
    with open(path, encoding='utf-8') as file:
      for line in itertools.islice(file, 0, None, 41):
        passage = json.loads(line)
        texts.append((passage['title'], passage['text']))
  with open(shared_data / 'qa/qed_dev.jsonl', encoding='utf-8') as file:
    questions = [json.loads(line)['question'] for line in file]
  return questions, texts


def test_t5_agrees_with_transformers(t5, real_texts, shared_data):
  transformers = pytest.importorskip('transformers')
  peer = transformers.T5Tokenizer.from_pretrained(shared_data / 'tokenizers/t5')
  questions, passages = real_texts
  texts = (
    TRICKY
    + questions[::5]
    + [text for _, text in passages]
    + [
      '<extra_id_0> A',
      'x <extra_id_0>y z',
      'q <extra_id_1> , b',
      '<extra_id_99>',
      'a<extra_id_2>b',
      '<extra_id_0><extra_id_1>',
      'no <extra_id_> here',
      'question: who? answer: <extra_id_0>',
    ]
  )
  expected = peer(texts, add_special_tokens=False).input_ids
  assert [t5.encode(text) for text in texts] == expected
  assert t5.encode_batch(texts) == expected
  assert (t5.vocab_size, t5.pad_id, t5.eos_id, t5.unk_id) == (32100, 0, 1, 2)
  for text in questions[::50]:
    ids = t5.encode(text) + [1, 0, 0]
    assert t5.decode(ids) == peer.decode(ids, skip_special_tokens=True)


def test_bert_agrees_with_transformers(bert, real_texts, shared_data):
  transformers = pytest.importorskip('transformers')
  peer = transformers.BertTokenizer.from_pretrained(shared_data / 'tokenizers/bert-base-uncased')
  questions, passages = real_texts
  texts = (
    TRICKY
    + questions[::5]
    + [text for _, text in passages]
    + ['question: who? answer: <extra_id_0>', 'a [SEP] b', '[MASK]']
  )
  expected = peer(texts, add_special_tokens=False).input_ids
  assert bert.encode_batch(texts) == expected
  assert [bert.encode(text) for text in texts] == expected
  assert bert.encode_batch(texts, add_special_tokens=True) == peer(texts).input_ids
  assert bert.vocab_size == 30522
  assert (bert.cls_id, bert.sep_id, bert.pad_id) == (101, 102, 0)
  assert bert.decode(bert.encode('Hello, world', True)) == 'hello, world'


@pytest.mark.parametrize('name', ['t5', 'bert'])
def test_ids_of_whitespace_separated_pieces_concatenate(name, real_texts, request):
  vocabulary = request.getfixturevalue(name)
  questions, passages = real_texts
  rng = random.Random(0)
  checked = 0
  for query in questions + TRICKY * 20:
    title, text = rng.choice(passages)
    pieces = [query, 'title:', title, 'context:', text]
    ids = vocabulary.encode_batch(pieces)
    joined = f'{query} title: {title} context: {text}'
    assert list(itertools.chain(*ids)) == vocabulary.encode(joined)
    # And at a place inside the text.
    words = text.split(' ')
    cut = rng.randrange(len(words))
    left, right = ' '.join(words[:cut]), ' '.join(words[cut:])
    assert vocabulary.encode(left) + vocabulary.encode(right) == ids[-1]
    checked += 5
  assert checked > 5000


def test_sentinels(sentencepiece_file):
  vocabulary = SentencePieceVocabulary(sentencepiece_file, extra_ids=3)
  size = vocabulary.vocab_size
  assert vocabulary.sentinel_id(0) == size - 1
  assert vocabulary.encode('<extra_id_2>') == [size - 3]
  assert vocabulary.encode(' the <extra_id_0>  file ') == [
    *vocabulary.encode('the'),
    size - 1,
    *vocabulary.encode('file'),
  ]
  # Beyond the three there are only words.
  assert max(vocabulary.encode('<extra_id_3>')) < size - 3
  ids = [
    *vocabulary.encode('the file'),
    size - 1,
    *vocabulary.encode('is'),
    vocabulary.eos_id,
    vocabulary.pad_id,
    size + 20,
  ]
  assert vocabulary.decode(ids) == 'the file is'
  assert vocabulary.decode(ids, keep_sentinels=True) == 'the file <extra_id_0> is'
  with pytest.raises(ValueError, match='sentinel 3'):
    vocabulary.sentinel_id(3)


def test_load_vocabulary_tells_kinds_apart(sentencepiece_file, wordpiece_file):
  first = vocabularies.load_vocabulary(sentencepiece_file)
  second = vocabularies.load_vocabulary(wordpiece_file)
  assert isinstance(first, SentencePieceVocabulary)
  assert isinstance(second, WordPieceVocabulary)
  assert second.encode('the passage', add_special_tokens=True) == [
    second.cls_id,
    *second.encode('the'),
    *second.encode('passage'),
    second.sep_id,
  ]
  assert second.eos_id == second.sep_id
  assert first.fingerprint != second.fingerprint
  assert first.fingerprint == vocabularies.load_vocabulary(sentencepiece_file).fingerprint
  assert (
    first.fingerprint != vocabularies.load_vocabulary(sentencepiece_file, extra_ids=1).fingerprint
  )


@pytest.mark.parametrize(
  'content, message',
  [
    (b'{"a": 1, "[UNK]": 2}', 'neither a SentencePiece model'),
    (b'\x80\x04pickle', 'neither a SentencePiece model'),
    (b'', 'neither a SentencePiece model'),
    (b'\x0anot a model', 'not a SentencePiece model'),
    (b'[PAD]\n[UNK]\n[CLS]\n', r'no line \[SEP\], \[MASK\]'),
    (b'[PAD]\n[UNK]\nthe\nthe\n', ":4: piece 'the' is already on line 3"),
    (b'[UNK]\n\xff\xfe', 'not a WordPiece vocabulary'),
  ],
)
def test_other_files_are_refused(tmp_path, content, message):
  path = tmp_path / 'vocabulary'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    vocabularies.load_vocabulary(path)
  assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing.model'):
    vocabularies.load_vocabulary(tmp_path / 'nothing.model')
  with pytest.raises(ValueError, match='a folder'):
    vocabularies.load_vocabulary(tmp_path)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(split_by_whitespace=False), 'does not split at whitespace'),
    (dict(add_dummy_prefix=False), 'does not split at whitespace'),
    (dict(remove_extra_whitespaces=False), 'does not split at whitespace'),
    (dict(treat_whitespace_as_suffix=True), 'does not split at whitespace'),
    (dict(pad_id=-1, eos_id=1, unk_id=0), 'no pad_id'),
  ],
)
def test_unusable_sentencepiece_models_are_refused(tmp_path, train_sentencepiece, options, message):
  path = tmp_path / 'odd.model'
  train_sentencepiece(path, **options)
  with pytest.raises(ValueError, match=message):
    vocabularies.load_vocabulary(path)


def test_a_model_cut_between_two_pieces(sentencepiece_file, tmp_path):
  """What is left is a model in itself, of fewer pieces."""
  content = sentencepiece_file.read_bytes()
  at = 0
  for _ in range(200):  # A short piece: its key, its length, its content.
    assert content[at] == 10 and content[at + 1] < 128
    at += 2 + content[at + 1]
  path = tmp_path / 'spiece.model'
  path.write_bytes(content[:at])
  with pytest.raises(ValueError, match='spiece.model: damaged: the end .* missing'):
    vocabularies.load_vocabulary(path)
