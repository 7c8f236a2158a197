"""WikiText's and Wiki-40B's layouts."""

import pytest

from ralm_jax.data import wikitext

CONTENT = """ \n = First article = \n \n Lead of 5 @,@ 000 well @-@ known words . \n
 Second paragraph . \n \n = = Life = = \n \n Born . \n \n = = = Youth = = = \n
 Young = old . \n \n = = Empty = = \n \n = = Works = = \n \n One . \n = Other = \n Text . \n"""


def test_articles(tmp_path):
  path = tmp_path / 'wiki.valid.tokens'
  path.write_text(CONTENT)
  found = list(wikitext.read_articles(path))
  assert [(p['id'], p['document'], p['title'], p['section'], p['text']) for p in found] == [
    (
      'wiki-0-0',
      'wiki-0',
      'First article',
      '',
      'Lead of 5,000 well-known words .\nSecond paragraph .',
    ),
    ('wiki-0-1', 'wiki-0', 'First article', 'Life', 'Born .'),
    ('wiki-0-2', 'wiki-0', 'First article', 'Life: Youth', 'Young = old .'),
    ('wiki-0-3', 'wiki-0', 'First article', 'Works', 'One .'),
    ('wiki-1-0', 'wiki-1', 'Other', '', 'Text .'),
  ]
  kept = next(wikitext.read_articles(path, join=False))
  assert '5 @,@ 000' in kept['text']


def test_complaints(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'\n just text \n')
  with pytest.raises(ValueError, match=r'a\.txt:2: expected a title'):
    list(wikitext.read_articles(path))
  path.write_bytes(b' = A = \n x \xff \n')
  with pytest.raises(ValueError, match=r'a\.txt:2: not UTF-8'):
    list(wikitext.read_articles(path))
  with pytest.raises(FileNotFoundError):
    list(wikitext.read_articles(tmp_path / 'none'))


def test_real_files(shared_data):
  for name, articles in (('valid', 60), ('test', 62)):
    found = list(wikitext.read_articles(shared_data / f'wikitext2/{name}.txt'))
    assert len({p['document'] for p in found}) == articles
    assert len({p['id'] for p in found}) == len(found) > 500
    assert all(p['text'].strip() and '@-@' not in p['text'] for p in found)


def test_wiki40b():
  text = (
    '\n_START_ARTICLE_\nAn article\n_START_PARAGRAPH_\nOne._NEWLINE_Two.\n'
    '_START_SECTION_\nPart\n_START_PARAGRAPH_\nThree.'
  )
  assert wikitext.wiki40b_sections(text) == [
    {'title': 'An article', 'section': '', 'text': 'One.\nTwo.'},
    {'title': 'An article', 'section': 'Part', 'text': 'Three.'},
  ]
  assert wikitext.wiki40b_sections('plain') == [{'title': '', 'section': '', 'text': 'plain'}]
