"""What client and server must agree on beyond the .proto file."""

from __future__ import annotations

import socket

SERVICE_NAME = 'ralm-retrieval'
# Raised whenever an older peer would misread a message.
PROTOCOL_VERSION = 3

# gRPC's own limit of 4 MB is too small for a batch with stored embeddings.
MAX_MESSAGE_BYTES = 256 << 20
# What the client aims at; a message may exceed it by at most one row.
CHUNK_BYTES = 4 << 20
SEARCH_BYTES = 64 << 20

MESSAGE_OPTIONS = (
  ('grpc.max_send_message_length', MAX_MESSAGE_BYTES),
  ('grpc.max_receive_message_length', MAX_MESSAGE_BYTES),
)


def split_address(address: str) -> tuple[str, int]:
  """Splits 'host:port'; ValueError where it is not of that form."""
  host, colon, port = address.rpartition(':')
  if not colon or not host or not port.isdigit() or int(port) > 65535:
    raise ValueError(f'address {address!r} is not host:port, such as localhost:50051')
  return host, int(port)


# HTTP/2's opening: the preface, then an empty SETTINGS frame.
_HTTP2_HELLO = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes(3) + b'\x04' + bytes(5)
_FRAME_HEADER_BYTES = 9


def foreign_opening(address: str, timeout_s: float = 2.0) -> bytes | None:
  """What a listener answers to HTTP/2's opening; None for HTTP/2, silence, or no listener."""
  host, port = split_address(address)
  opening = b''
  try:
    with socket.create_connection((host.strip('[]'), port), timeout_s) as probe:
      probe.settimeout(timeout_s)
      probe.sendall(_HTTP2_HELLO)
      while len(opening) < _FRAME_HEADER_BYTES:
        data = probe.recv(_FRAME_HEADER_BYTES - len(opening))
        if not data:
          break
        opening += data
  except OSError:
    pass
  # A server begins with a SETTINGS frame: type 4, on stream 0.
  if not opening or (
    len(opening) == _FRAME_HEADER_BYTES and opening[3] == 4 and opening[5:] == bytes(4)
  ):
    return None
  return opening
