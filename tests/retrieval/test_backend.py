"""Both backends offer what the Protocol says, with the same arguments."""

import inspect

import pytest

from ralm_jax.retrieval.backend import SearchBackend
from ralm_jax.retrieval.device.index import DeviceIndex
from retrieval_service.client import RetrievalClient

_METHODS = [name for name, _ in inspect.getmembers(SearchBackend, inspect.isfunction)]
_METHODS = [name for name in _METHODS if not name.startswith('_')]


def _parameters(function):
  return {
    name: (
      parameter.kind,
      parameter.default,
      str(parameter.annotation).replace('Vectors', _VECTORS),
    )
    for name, parameter in inspect.signature(function).parameters.items()
  }


_VECTORS = 'tuple[np.ndarray | None, np.ndarray]'


@pytest.mark.parametrize('backend', [RetrievalClient, DeviceIndex])
@pytest.mark.parametrize('name', _METHODS)
def test_methods_are_those_of_the_protocol(backend, name):
  assert _parameters(getattr(backend, name)) == _parameters(getattr(SearchBackend, name))


def test_attributes_are_those_of_the_protocol(tmp_path):
  assert {'search', 'status', 'build', 'edit', 'missing', 'reload', 'pin'} <= set(_METHODS)
  client = RetrievalClient('localhost:1')
  assert client.address == 'localhost:1' and client.needs_strict_order is False
  assert isinstance(DeviceIndex.needs_strict_order, property)
  for backend in (RetrievalClient, DeviceIndex):
    assert backend.add.__doc__ and backend.delete.__doc__
