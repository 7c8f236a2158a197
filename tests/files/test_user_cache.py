"""Programs are compiled once for all commands, whatever the state of their folder."""

import os
import pathlib
import subprocess
import sys
import types
import zlib

import pytest

from ralm_jax.commands import flags
from ralm_jax.files import user_cache
from tests import tiny

# A command of ours: flags first, then JAX.
_COMMAND = """
import logging, sys
from ralm_jax.commands import flags
logging.basicConfig(level=logging.INFO)
flags.Parser('ralm', '', compiles=True).parse_args(sys.argv[1:])
import jax
compiled = []
jax.monitoring.register_event_listener(lambda name, **_: compiled.append(name))
assert float(jax.jit(lambda x: x * 3)(2.0)) == 6
print('hits', sum(name.endswith('cache_hits') for name in compiled))
"""


def _compile(home: pathlib.Path, *argv: str) -> tuple[int, str]:
  """Programs that were there already, and what is complained of."""
  environment = {k: v for k, v in tiny.environment().items() if 'CACHE' not in k}
  ran = subprocess.run(
    [sys.executable, '-c', _COMMAND, *argv],
    env={**environment, 'XDG_CACHE_HOME': str(home)},
    capture_output=True,
    text=True,
    check=True,
  )
  return int(ran.stdout.split()[-1]), ran.stderr


def _programs(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.rglob('*-cache'))


def test_the_second_command_compiles_nothing(tmp_path):
  assert _compile(tmp_path) == (0, '')
  kept = _programs(tmp_path / 'ralm' / 'compiled')
  assert _compile(tmp_path) == (len(kept), '') and kept
  kept[0].write_bytes(kept[0].read_bytes()[:50])  # A full disk, or a killed process.
  assert _compile(tmp_path) == (len(kept) - 1, '')
  assert zlib.decompress(kept[0].read_bytes())


def test_another_folder_or_none(tmp_path):
  assert _compile(tmp_path, '--compilation_cache', str(tmp_path / 'own')) == (0, '')
  assert _programs(tmp_path / 'own')
  assert _compile(tmp_path, '--compilation_cache=off') == (0, '')
  assert not (tmp_path / 'ralm').exists()


def test_a_folder_that_cannot_be_written_to(tmp_path):
  (tmp_path / 'ralm').write_text('no folder')
  hits, said = _compile(tmp_path)
  assert hits == 0 and said.count('\n') == 1
  assert 'Compiled programs are not kept in' in said and '--compilation_cache' in said


@pytest.mark.parametrize('free, told', [(10 << 20, 'the disk is full'), (10 << 30, '')])
def test_a_full_disk(free, told, tmp_path, monkeypatch, caplog):
  usage = types.SimpleNamespace(free=free)
  monkeypatch.setattr(user_cache.shutil, 'disk_usage', lambda _: usage)
  monkeypatch.delitem(sys.modules, 'jax', raising=False)
  monkeypatch.setattr(os, 'environ', {})
  user_cache.keep_compiled_programs(tmp_path)
  assert told in caplog.text
  assert ('JAX_COMPILATION_CACHE_DIR' in os.environ) == (not told)


def test_what_is_oldest_goes_first(tmp_path, monkeypatch):
  for number in range(4):
    program = tmp_path / f'jit_{number}-cache'
    program.write_bytes(zlib.compress(os.urandom(1000)))
    os.utime(program, (number, number))
  monkeypatch.setattr(user_cache, '_MAX_BYTES', 2500)
  user_cache._tidy(tmp_path)
  assert [path.name for path in _programs(tmp_path)] == ['jit_2-cache', 'jit_3-cache']


def test_commands_that_compile_nothing_have_no_such_flag(capsys):
  with pytest.raises(SystemExit):
    flags.Parser('ralm', '').parse_args(['--compilation_cache=off'])
  assert 'unknown flag' in capsys.readouterr().err
