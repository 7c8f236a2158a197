"""Words, and what the first tokens of a text hold."""

import pytest

from ralm_jax.data.text import vocabularies, words


@pytest.mark.parametrize(
  'text, found',
  [
    ('two  words', ['two', 'words']),
    ('北京是首都', list('北京是首都')),
    ('東京タワー tower', [*'東京タワー', 'tower']),
    # A vowel sign or a tone mark is part of its character.
    ('ที่นี่', ['ที่', 'นี่']),
    ('서울 시', ['서울', '시']),
    ("don't, ever.", ["don't,", 'ever.']),
    ('', []),
  ],
)
def test_words_of_scripts(text, found):
  assert [text[first:last] for first, last in words.spans(text)] == found


class Letters:
  """A vocabulary whose tokens are single characters, so that counts are plain."""

  def encode(self, text):
    return list(text.replace(' ', ''))

  def encode_batch(self, texts):
    return [self.encode(text) for text in texts]


@pytest.mark.parametrize(
  'text, n_tokens, read',
  [
    ('ab cd ef', 4, 'ab cd'),
    ('ab cd ef', 5, 'ab cd'),  # half a word is none
    ('ab cd ef', 6, 'ab cd ef'),
    ('ab cd. ef', 4, 'ab cd'),  # the word is whole, but its full stop
    ('ab', 1, ''),
    ('ab', 0, ''),
    ('北京是首都', 3, '北京是'),
    ('see 北京是', 5, 'see 北京'),
  ],
)
def test_what_tokens_hold(text, n_tokens, read):
  assert text[: words.characters_of(text, Letters(), n_tokens)] == read


def test_what_tokens_of_t5_hold(shared_data):
  """Tokenised again, what was read has as many tokens, and with the next word too many."""
  (path,) = (shared_data / 'tokenizers' / 't5').glob('*.model')
  vocabulary = vocabularies.load_vocabulary(path)
  text = 'The zebra, "Équus" quagga, was sentenced to xylophones in 1984. ' * 30
  for n_tokens in (1, 7, 50, 200):
    end = words.characters_of(text, vocabulary, n_tokens)
    assert len(vocabulary.encode(text[:end])) <= n_tokens
    more = text.index(' ', end + 1)
    assert len(vocabulary.encode(text[:more])) > n_tokens
