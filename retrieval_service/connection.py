"""A channel to the retrieval process: calls, repeated while it is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import logging
import random
import time
from typing import Any

import grpc

from retrieval_service import protocol, retrieval_pb2, retrieval_pb2_grpc
from retrieval_service.results import IndexSwappedError

logger = logging.getLogger(__name__)

_CHANNEL_OPTIONS = protocol.MESSAGE_OPTIONS + (
  ('grpc.use_local_subchannel_pool', 1),
  ('grpc.enable_http_proxy', 0),  # the process is near, a proxy is not meant
  ('grpc.initial_reconnect_backoff_ms', 100),
  ('grpc.min_reconnect_backoff_ms', 100),
  ('grpc.max_reconnect_backoff_ms', 2000),
  # A host that vanishes without a word is noticed within a build, too.
  ('grpc.keepalive_time_ms', 30_000),
  ('grpc.keepalive_timeout_ms', 20_000),
)
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# What the process itself says of a call.
_ERRORS = {
  grpc.StatusCode.INVALID_ARGUMENT: ValueError,
  grpc.StatusCode.NOT_FOUND: LookupError,
  grpc.StatusCode.FAILED_PRECONDITION: RuntimeError,
}
_STATUS_REQUEST = retrieval_pb2.StatusRequest(protocol_version=protocol.PROTOCOL_VERSION)


def _waits() -> Iterator[float]:
  """Seconds between one try and the next."""
  wait_s = _FIRST_WAIT_S
  while True:
    yield wait_s
    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


class RetrievalError(ConnectionError):
  """The retrieval process cannot be reached, or is something else."""


class Connection:
  """Calls one process by the methods of `stub`; may be shared among threads."""

  def __init__(self, address: str, *, timeout_s: float, retry_for_s: float):
    """Connects on the first call; see `RetrievalClient`."""
    protocol.split_address(address)
    self.address = address
    self._timeout_s = timeout_s
    self._retry_for_s = retry_for_s
    self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    self.stub = retrieval_pb2_grpc.RetrievalStub(self._channel)
    self._acquainted = False

  def close(self) -> None:
    self._channel.close()

  def status(self, retry_for_s: float | None = None) -> retrieval_pb2.StatusResponse:
    """The process's status, once it is known to be ours, or RetrievalError."""
    response = self.call('status', self.stub.Status, _STATUS_REQUEST, retry_for_s=retry_for_s)
    self._check_acquaintance(response)
    return response

  def _check_acquaintance(self, response: retrieval_pb2.StatusResponse) -> None:
    if response.service != protocol.SERVICE_NAME:
      raise RetrievalError(
        f'{self.address} answers, but is no retrieval process: check the address'
      )
    if response.protocol_version != protocol.PROTOCOL_VERSION:
      raise RetrievalError(
        f'the retrieval process at {self.address} speaks protocol version '
        f'{response.protocol_version} and this client {protocol.PROTOCOL_VERSION}: run the same '
        'release on both sides'
      )

  def call(
    self,
    what: str,
    method: Callable,
    request: Any,
    *,
    timeout_s: float | None = -1,
    retry: bool = True,
    retry_for_s: float | None = None,
    failures: Sequence[Exception] = (),
  ) -> Any:
    """One call of a method of `stub`, repeated while the process cannot be reached.

    Args:
      what: its name in messages.
      request: a message, or a function that starts a stream of them.
      timeout_s: for one try; None: it may take any time.
      retry: whether a second try is possible.
      retry_for_s: in place of the connection's own.
      failures: what the stream raised, which no second try would change.

    Raises:
      ValueError, LookupError: the call was wrong, or names what does not exist.
      IndexSwappedError: it is for another index than the one served.
      RuntimeError: the process cannot do it as things are.
      RetrievalError: it cannot be reached, or is none of ours.
    """
    if timeout_s == -1:
      timeout_s = self._timeout_s
    if retry_for_s is None:
      retry_for_s = self._retry_for_s
    give_up = time.monotonic() + retry_for_s
    for wait_s in _waits():
      try:
        if not self._acquainted and what != 'status':
          self._check_acquaintance(self.stub.Status(_STATUS_REQUEST, timeout=self._timeout_s))
        response = method(request() if callable(request) else request, timeout=timeout_s)
        self._acquainted = True
        return response
      except grpc.RpcError as error:
        if error.code() not in _RETRIED or failures:
          raise self._explain(what, error) from error
        self._acquainted = False  # another process may come up there
        self._refuse_stranger(error)
        failed = f'{what} failed with {error.code().name}'
        if not retry or time.monotonic() + wait_s > give_up:
          tried = f', tried for {retry_for_s:.0f} s' if retry else ' and cannot be repeated'
          raise RetrievalError(
            f'the retrieval process at {self.address} cannot be reached: {failed} '
            f'({error.details()}){tried}. Start it with: python -m retrieval_service.server '
            f'--index INDEX --address {self.address}'
          ) from error
        if wait_s == _FIRST_WAIT_S:
          waiting = 'waiting for the retrieval process at %s: %s; trying for %.0f s'
          logger.warning(waiting, self.address, failed, retry_for_s)
      time.sleep(wait_s * random.uniform(0.8, 1.0))  # hosts spread out
    raise AssertionError('unreachable')

  def _explain(self, what: str, error: grpc.RpcError) -> Exception:
    """The exception for a status that no repetition would change."""
    code, details = error.code(), error.details()
    if code in _ERRORS:
      return _ERRORS[code](details)
    if code == grpc.StatusCode.ABORTED:
      return IndexSwappedError(f'at {self.address} {details}')
    if code == grpc.StatusCode.UNIMPLEMENTED:
      return RetrievalError(
        f'{self.address} answers, but is no retrieval process or an older '
        f'one ({details}): check the address'
      )
    if not self._acquainted and code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
      return RetrievalError(
        f'{self.address} does not answer as a retrieval process does ({details}): check the address'
      )
    return RuntimeError(
      f'{what} failed at the retrieval process at {self.address}: {details} ({code.name})'
    )

  def _refuse_stranger(self, error: grpc.RpcError) -> None:
    """Raises if what listens there, which gRPC calls unavailable, does not even speak HTTP/2."""
    opening = protocol.foreign_opening(self.address)
    if opening is not None:
      raise RetrievalError(
        f'what listens at {self.address} is no retrieval process (it opens '
        f'with {opening!r}): check the address'
      ) from error
