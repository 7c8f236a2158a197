"""The passage files of a folder of documents."""

from __future__ import annotations

import collections
import dataclasses
import os

from ralm_jax.files import byte_streams, input_files

ENDINGS = ('.jsonl', '.json', '.tsv', '.csv')  #: what `passages.LineReader` reads


@dataclasses.dataclass(frozen=True)
class PassageFiles:
  """Files in the order of their names."""

  named: tuple[tuple[str, str], ...]  #: name in the folder, path
  left_out: str = ''  #: what is said of files that are no passages; '' where there are none

  @property
  def paths(self) -> list[str]:
    return [path for _, path in self.named]


def find(documents: str) -> PassageFiles:
  """The passage files below a folder, hidden ones left out; or a file, or those of a glob.

  Raises:
    FileNotFoundError: there is no such folder or file.
    ValueError: nothing in it is a passage file.
  """
  if not os.path.isdir(documents):
    paths = input_files.expand_inputs(documents)
    return PassageFiles(tuple((os.path.basename(path), path) for path in paths))
  named: list[tuple[str, str]] = []
  others: collections.Counter[str] = collections.Counter()
  for folder, below, files in os.walk(documents):
    below[:] = sorted(name for name in below if name[0] != '.')
    for name in sorted(name for name in files if name[0] != '.'):
      path = os.path.join(folder, name)
      packed = next((end for end in byte_streams.ENDINGS if name.endswith(end)), '')
      ending = os.path.splitext(name.removesuffix(packed))[1].lower()
      if ending in ENDINGS:
        named.append((os.path.relpath(path, documents), path))
      else:
        others[ending or 'without an ending'] += 1
  kinds = ', '.join(f'{count} {ending}' for ending, count in others.most_common(5))
  wanted = 'passages are read from jsonl, tsv and csv (id, text, title), plain or compressed'
  if not named:
    found = f'found {kinds}' if others else 'the folder is empty'
    raise ValueError(f'{documents}: no file of passages; {wanted}, {found}')
  left_out = f'{others.total()} files are left out ({kinds}): {wanted}' if others else ''
  return PassageFiles(tuple(named), left_out)
