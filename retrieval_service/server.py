"""The retrieval process: a versioned index behind gRPC.

    python -m retrieval_service.server --index INDEX --address localhost:50051

Prints one line on stdout once it answers, everything else on stderr.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import concurrent.futures
import logging
import os
import select
import signal
import sys
import threading
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from retrieval_service import protocol, retrieval_pb2, retrieval_pb2_grpc, server_flags
from retrieval_service.files import PathLike
from retrieval_service.options import ServingOptions

logger = logging.getLogger(__name__)

_SERVICE = retrieval_pb2.DESCRIPTOR.services_by_name['Retrieval'].full_name
_CALLS = 16  # answered at a time; further ones wait
_SERVER_OPTIONS = protocol.MESSAGE_OPTIONS + (
  # Two servers on one port would share its calls at random.
  ('grpc.so_reuseport', 0),
  # The client's keepalive: more often than gRPC's servers like by default.
  ('grpc.http2.min_ping_interval_without_data_ms', 10_000),
  ('grpc.keepalive_permit_without_calls', 1),
)


class RetrievalServer:
  """Serves an index folder; also usable inside a program, for tests."""

  def __init__(self, index_directory: PathLike, address: str = 'localhost:50051', **options: Any):
    """Opens the index and the port; `start` answers calls. For the options see `ServingOptions`.

    The folder is made if it does not exist. Port 0 takes a free one, which `address` tells.

    Raises:
      ValueError: the index is damaged, or the address is malformed.
      OSError: the address cannot be listened on.
    """
    # Imported here and not above: see `run`.
    from retrieval_service.servicer import RetrievalServicer  # pylint: disable=g-import-not-at-top

    host, port = protocol.split_address(address)
    os.makedirs(index_directory, exist_ok=True)
    self._servicer = RetrievalServicer(index_directory, ServingOptions(**options))
    self._health = health.HealthServicer()
    prepare = self._servicer.prepare_thread
    pool = concurrent.futures.ThreadPoolExecutor(_CALLS, 'call', initializer=prepare)
    self._server = grpc.server(pool, options=_SERVER_OPTIONS)
    retrieval_pb2_grpc.add_RetrievalServicer_to_server(self._servicer, self._server)
    health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
    try:
      port = self._server.add_insecure_port(f'{host}:{port}')
    except RuntimeError as error:
      raise OSError(
        f'cannot listen on {address}: the port is taken or the host is not this machine; choose '
        'another address, or port 0 for any free one'
      ) from error
    self.address = f'{host}:{port}'

  @property
  def generation(self) -> int:
    """The number of the generation served, 0 for none."""
    view = self._servicer.current
    return view.number if view else 0

  @property
  def count(self) -> int:
    """The number of passages served."""
    view = self._servicer.current
    return view.count if view else 0

  def start(self) -> None:
    """Begins to answer."""
    self._server.start()
    for service in ('', _SERVICE):
      self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

  def stop(self, grace_s: float = 5.0) -> None:
    """Refuses new calls and gives running ones so long to end."""
    self._health.enter_graceful_shutdown()
    self._server.stop(grace_s).wait()

  def __enter__(self) -> RetrievalServer:
    self.start()
    return self

  def __exit__(self, *unused_exception) -> None:
    self.stop()


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the process until a signal ends it; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m retrieval_service.server',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  server_flags.add(parser)
  return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
  """`main` with its flags parsed."""
  logging.basicConfig(
    stream=sys.stderr, level=logging.INFO, format='%(asctime)s %(levelname)s %(message)s'
  )
  logging.getLogger('faiss').setLevel(logging.WARNING)
  # OpenMP threads that spin while they wait take the cores from gRPC and from
  # each other: on busy machines a search then takes ten times as long. The
  # runtime reads this while FAISS loads, hence the late imports above.
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
  stopping = threading.Event()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *unused: stopping.set())
  if arguments.exit_with_parent:
    threading.Thread(target=_watch_parent, args=(os.getppid(), stopping.set), daemon=True).start()
  options = vars(ServingOptions.from_flags(arguments))
  try:
    server = RetrievalServer(arguments.index, arguments.address, **options)
  except (ValueError, OSError) as error:
    print(f'retrieval process: {error}', file=sys.stderr)
    return 1
  with server:
    holds = f'generation {server.generation}, {server.count} passages'
    print(f'retrieval process ready at {server.address} ({holds})', flush=True)
    stopping.wait()
    logger.info('ending')
  return 0


def _watch_parent(parent: int, stop: Callable[[], None]) -> None:
  """Calls `stop` when stdin ends or, where a parent's forks keep it open, another adopts us."""
  while os.getppid() == parent:
    readable, _, _ = select.select([sys.stdin], [], [], 1.0)
    if readable and not os.read(sys.stdin.fileno(), 4096):
      break
  stop()


if __name__ == '__main__':
  sys.exit(main())
