"""The commands of the manual's pages, as a reader would type them."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex

from tests import tiny

PAGES = ['README.md', 'CONTRIBUTING.md'] + sorted(
  str(path.relative_to(tiny.ROOT)) for path in (tiny.ROOT / 'docs').glob('*.md')
)
_BLOCK = re.compile(r'^```bash\n(.*?)^```', re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Command:
  """One command.

  Attributes:
    words: as the shell splits them, without redirections.
    stdin: the file that is read, if any.
  """

  words: tuple[str, ...]
  stdin: str | None = None

  @property
  def name(self) -> str:
    """'ralm eval', or the program."""
    return ' '.join(self.words[:2]) if self.words[0] == 'ralm' else self.words[0]


def of_text(text: str) -> list[Command]:
  """The commands of a script: joined lines, no comments, `&&` as several."""
  found = []
  for line in re.sub(r'\\\n\s*', ' ', text).splitlines():
    words = shlex.split(line, comments=True)
    while words:
      end = words.index('&&') if '&&' in words else len(words)
      command, words = words[:end], words[end + 1 :]
      stdin = None
      if '<' in command:
        at = command.index('<')
        stdin = command[at + 1]
        del command[at : at + 2]
      found.append(Command(tuple(command), stdin))
  return found


def of_page(page: str) -> list[Command]:
  text = (tiny.ROOT / page).read_text(encoding='utf-8')
  return [command for block in _BLOCK.findall(text) for command in of_text(block)]


def missing_words(page: str) -> list[str]:
  """Commands that leave words out (…), which nobody can type."""
  return [
    ' '.join(command.words)
    for command in of_page(page)
    if any('…' in word or word == '...' for word in command.words)
  ]


def gin_files(words: tuple[str, ...]) -> list[str]:
  """The values of `--gin_file FILE` and `--gin_file=FILE`."""
  joined = ' '.join(words).replace('--gin_file ', '--gin_file=')
  return re.findall(r'--gin_file=(\S+)', joined)


def existing(path: str) -> pathlib.Path | None:
  """A file of the project, if it is one."""
  file = tiny.ROOT / path
  return file if file.exists() else None
