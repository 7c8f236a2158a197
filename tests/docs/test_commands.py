"""Every command of the manual is run, or read as far as it can be."""

import contextlib
import io
import pathlib
import re
import sys

import pytest

from ralm_jax import cli
from retrieval_service.local import LocalRetrievalServer
from tests import tiny
from tests.docs import commands_of_pages, worlds
from tests.docs.commands_of_pages import Command

WORLDS = {
  'README.md': worlds.files,
  'docs/documents_and_questions.md': worlds.files,
  'docs/training.md': worlds.trained,
  'docs/rag.md': worlds.trained,
  'docs/tasks.md': worlds.published,
  'docs/evaluation_jobs.md': worlds.jobs,
  'docs/retrieval_process.md': worlds.swapped,
}
# In seconds; the others train or compile a while.
FAST = ('docs/training.md', 'docs/rag.md')
# Their commands are not of `ralm`, or need hosts, hours or released weights; see `_read`.
# Conversions are run on tiny folders by tests/commands/test_convert.py.
READ = (
  'docs/getting_started.md',
  'docs/results.md',
  'docs/several_hosts.md',
  'docs/released_weights.md',
  'CONTRIBUTING.md',
)


def test_every_page_is_looked_after():
  pages = {page for page in commands_of_pages.PAGES if commands_of_pages.of_page(page)}
  assert pages == {*WORLDS, *READ}


@pytest.mark.parametrize('page', commands_of_pages.PAGES)
def test_commands_are_whole(page):
  assert not commands_of_pages.missing_words(page)


@pytest.mark.parametrize('page', commands_of_pages.PAGES)
def test_files_that_are_named_exist(page):
  text = (tiny.ROOT / page).read_text(encoding='utf-8')
  names = re.findall(r'(?:gin_configs|benchmarks|tests)/[\w/]+\.(?:gin|py)', text)
  assert not [name for name in names if not commands_of_pages.existing(name)]
  for link in re.findall(r'\]\(((?!http)[\w./]+\.md)', text):
    assert ((tiny.ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize('page', [*READ, *WORLDS])
def test_commands_are_understood(page):
  """Flags and programs are known, whatever running them would take."""
  for command in commands_of_pages.of_page(page):
    _read(command)


@pytest.mark.parametrize(
  'page', [pytest.param(p, marks=() if p in FAST else pytest.mark.slow) for p in WORLDS]
)
def test_commands_run(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  WORLDS[page](tmp_path)
  with contextlib.ExitStack() as stack:
    server = None
    for command in commands_of_pages.of_page(page):
      if command.name == 'ralm serve':
        index = command.words[command.words.index('--index') + 1]
        server = server or stack.enter_context(LocalRetrievalServer(tmp_path / index))
      elif command.words[0] == 'ralm':
        _run(command, server, monkeypatch)
      else:
        _read(command)


def _run(command: Command, server, monkeypatch) -> None:
  words = [
    server.address if server and word == 'localhost:50051' else word for word in command.words
  ]
  words = worlds.shortened(words[1:], commands_of_pages.gin_files(command.words))
  if words[0] == 'quickstart' or '--documents' in words:
    return  # tests/quickstart/test_main.py; released weights: tests/runs/test_workspace.py
  with monkeypatch.context() as patch:
    text = pathlib.Path(command.stdin).read_text() if command.stdin else ''
    patch.setattr(sys, 'stdin', io.StringIO(text))
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
      status = cli.main(words)
  assert status == 0, f'{" ".join(words)}\n{errors.getvalue()}'


def _read(command: Command) -> None:
  """A `ralm` command's flags parse; another program is one that CI runs, or has help."""
  words = command.words
  if words[0] == 'ralm':
    known = _flags_of(words[1])
    given = [re.match(r'--[\w-]+', word)[0] for word in words[2:] if word.startswith('--')]
    unknown = [flag for flag in given if flag not in known and flag != '--gin']
    assert not unknown, f'{" ".join(words)}: {unknown}'
    for file in commands_of_pages.gin_files(words):
      assert not file.startswith('gin_configs/') or commands_of_pages.existing(file), file
  elif words[0] in ('python', 'python3') and words[1].endswith('.py'):
    assert commands_of_pages.existing(words[1]), words[1]
  else:
    ci = (tiny.ROOT / '.ci' / 'run').read_text()
    program = ' '.join(words[:3] if words[0].startswith('python') else words[:2])
    known = ('python -m pytest', 'python3 -m venv', '. .venv/bin/activate', 'pip install',
             'pre-commit install')  # fmt: skip
    assert program in ci or program in known, words


def _flags_of(command: str) -> set[str]:
  shown = io.StringIO()
  with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
    cli.main([command, '--help'])
  return set(re.findall(r'--[\w-]+', shown.getvalue()))
