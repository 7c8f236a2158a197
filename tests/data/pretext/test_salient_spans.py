"""Names, dates and numbers found by rules."""

import pytest

from ralm_jax.data.pretext import salient_spans


def _found(text):
  return [text[start:end] for start, end in salient_spans.find(text)]


@pytest.mark.parametrize(
  'text, expected',
  [
    (
      'The University of California was founded on March 23, 1868.',
      ['University of California', 'March 23, 1868'],
    ),
    (
      'In 1995 John Smith met J. R. R. Tolkien with 3,000 men, 12.5% of them.',
      ['1995', 'John Smith', 'J. R. R. Tolkien', '3,000', '12.5%'],
    ),
    # Tokenised text.
    (
      'Newton D . Baker was mayor from 1912 to 1915 , the 42nd .',
      ['Newton D . Baker', '1912', '1915', '42nd'],
    ),
    (
      'born 4 July 1776, or July 1776, in the 1990s, on 2010-05-06',
      ['4 July 1776', 'July 1776', '1990s', '2010-05-06'],
    ),
    # A capital letter that the sentence asks for is no name.
    ('The dog ran. Most of the United States knew. It Was so.', ['United States']),
    ('The Beatles came. He left. A B testing', []),
    ('in Washington, D.C. He went on', []),
    (
      "O'Neill Jean-Paul Sartre and Ludwig van Beethoven",
      ["O'Neill Jean-Paul Sartre and Ludwig van Beethoven"],
    ),
    ('Étienne Müller', ['Étienne Müller']),
    # Full stops inside names, and what follows them.
    ('Mr. Smith and Mrs. Jones met in St. Louis.', ['Mr. Smith and Mrs. Jones', 'St. Louis']),
    (
      'the Church of St. Mary by Prof . Dr . Max Planck',
      ['Church of St. Mary', 'Prof . Dr . Max Planck'],
    ),
    ('He lived on Main St. The dog saw John Smith and Gen. He left.', ['John Smith']),
    ("Angela Merkel's party, Mr. Kohl’s was in Levi's", ['Angela Merkel', 'Mr. Kohl']),
    ('covid19 and x2y, version 3.14.15', ['3.14.15']),
    ('', []),
    ('nothing to see here', []),
  ],
)
def test_rules(text, expected):
  assert _found(text) == expected


def test_spans_are_apart_and_in_order():
  text = 'On May 5, 1821 Napoleon Bonaparte died on Saint Helena aged 51 in May 1821.'
  spans = salient_spans.find(text)
  assert spans == sorted(spans)
  assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:]))
  assert _found(text) == ['May 5, 1821', 'Napoleon Bonaparte', 'Saint Helena', '51', 'May 1821']


def test_what_an_annotator_may_return():
  text = 'about 42 dogs'
  assert salient_spans.checked([(5, 8), (3, 3), (9, 13)], text) == [(6, 8), (9, 13)]
  for wrong, message in [
    ([(0, 99)], 'returned .0, 99. for a text of 13'),
    ([(5, 2)], '5, 2'),
    ([7], 'found 7'),
    ([(1, 2, 3)], 'pairs'),
  ]:
    with pytest.raises(ValueError, match=message):
      salient_spans.checked(wrong, text)
