"""The documentation of the Python that runs the tests, as passages to ask about."""

import json
import os
import shutil

from ralm_jax.data.corpus import passages
from ralm_jax.preparation import standard_library


def test_passages_are_read_and_written_once(tmp_path):
  path = standard_library.write_passages(str(tmp_path / 'documents'))
  found = {one.id: one for one in passages.iterate_passages(path)}
  assert len(found) > 5000
  assert found['shutil.copyfile'].title == 'shutil.copyfile'
  assert ' '.join(found['shutil.copyfile'].text.split()) == ' '.join(
    shutil.copyfile.__doc__.split()
  )
  texts = [one.text for one in found.values()]
  assert len(set(texts)) == len(texts) and all(texts)
  written = os.stat(path)
  assert standard_library.write_passages(str(tmp_path / 'documents')) == path
  assert os.stat(path).st_mtime_ns == written.st_mtime_ns


def test_the_shortest_name_has_a_text_that_several_share(tmp_path, monkeypatch):
  several = [('a.long', 'f(x)\n\nDo it.'), ('b.do', 'Do it.'), ('b.do', 'Later.'), ('c', 'f(x)')]
  monkeypatch.setattr(standard_library, 'docstrings', lambda: iter(several))
  with open(standard_library.write_passages(str(tmp_path)), encoding='utf-8') as file:
    rows = list(map(json.loads, file))
  assert rows == [{'id': 'b.do', 'title': 'b.do', 'text': 'Do it.'}]
