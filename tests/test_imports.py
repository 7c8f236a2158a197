"""What may import what, see the map of the code in README.md."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAVY = ('tensorflow', 'seqio', 'faiss', 'grpc', 'pyarrow', 'gin')
# A machine with jax, flax and optax alone runs a train step with these.
PURE = [
  *(f'ralm_jax/{folder}' for folder in ('models', 'losses', 'decoding')),
  'ralm_jax/training/train_step.py',
  'ralm_jax/training/train_state.py',
  'ralm_jax/training/partitioning.py',
  'ralm_jax/training/optimizers.py',
  'ralm_jax/training/schedules.py',
]
# Layers, lowest first: a file imports from its own or lower ones.
LAYERS = [
  [
    'ralm_jax/progress.py',
    'ralm_jax/losses',
    'ralm_jax/models',
    'ralm_jax/decoding',
    'ralm_jax/data',
  ],
  [
    'ralm_jax/interop',
    'ralm_jax/specification.py',
    'ralm_jax/training',
    'ralm_jax/retrieval',
    'ralm_jax/evaluation',
  ],
  ['tasks'],
  ['ralm_jax'],
]
# Modules besides the pipeline's that need TensorFlow; the others start fast.
TENSORFLOW = ('ralm_jax/data/pipeline.py', 'ralm_jax/data/features.py', 'tasks/')


def _modules(*folders: str) -> list[str]:
  files = []
  for folder in folders:
    path = ROOT / folder
    files += [path] if path.is_file() else sorted(path.rglob('*.py'))
  assert files
  return [str(file.relative_to(ROOT)) for file in files]


def _imports(file: str, lazy: bool = True) -> set[str]:
  """Dotted names that a file imports; without those inside functions."""
  tree = ast.parse((ROOT / file).read_text())
  skipped = set()
  if not lazy:
    for node in ast.walk(tree):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        skipped.update(map(id, ast.walk(node)))
  names = set()
  for node in ast.walk(tree):
    if id(node) in skipped:
      continue
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{file} imports relatively'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _tops(names: set[str]) -> set[str]:
  return {name.split('.')[0] for name in names}


@pytest.mark.parametrize('file', _modules(*PURE))
def test_the_core_names_nothing_heavy(file):
  assert not _tops(_imports(file)) & set(HEAVY)


def test_the_core_loads_nothing_heavy():
  """Through whatever it imports, too."""
  modules = [
    file.removesuffix('.py').removesuffix('/__init__').replace('/', '.') for file in _modules(*PURE)
  ]
  code = (
    f'import sys, importlib\n'
    f'for name in {modules!r}: importlib.import_module(name)\n'
    f'sys.exit(" ".join({set(HEAVY)!r} & set(sys.modules)) or 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_the_retrieval_process_is_apart():
  for file in _modules('retrieval_service'):
    assert not _tops(_imports(file)) & {'jax', 'flax', 'ralm_jax', 'tensorflow', 'tasks'}, file
  code = (
    'import sys, retrieval_service.server, retrieval_service.servicer\n'
    'import retrieval_service.client, retrieval_service.local\n'
    'sys.exit(" ".join({"jax", "flax", "ralm_jax", "tensorflow"} & '
    'set(sys.modules)) or 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_the_client_needs_no_faiss():
  code = 'import sys, retrieval_service.client\nsys.exit("faiss" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_tensorflow_and_seqio_live_in_the_pipeline():
  for file in _modules('ralm_jax', 'tasks'):
    if file.startswith(TENSORFLOW):
      continue
    assert not _tops(_imports(file)) & {'tensorflow', 'seqio'}, file


def test_gin_is_for_entry_points():
  for file in _modules('ralm_jax', 'tasks', 'retrieval_service'):
    if file.count('/') == 1 and file.startswith('ralm_jax/'):
      continue
    assert 'gin' not in _tops(_imports(file)), file


def test_commands_start_without_tensorflow():
  code = (
    'import sys\n'
    'from ralm_jax.commands import ask, flags, embed, add, corpus, serve\n'
    'sys.exit("tensorflow" in sys.modules or "seqio" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def _layer(name: str) -> int:
  """Of a file's path or a dotted module name."""
  path = name.removesuffix('.py').replace('.', '/') + '/'
  for level, parts in enumerate(LAYERS):
    if any(path.startswith(part.removesuffix('.py') + '/') for part in parts):
      return level
  raise AssertionError(f'{name} is in no layer')


@pytest.mark.parametrize('file', _modules('ralm_jax', 'tasks'))
def test_imports_go_downwards(file):
  for name in _imports(file):
    if name.split('.')[0] in ('ralm_jax', 'tasks'):
      assert _layer(name) <= _layer(file), f'{file} imports {name}'
