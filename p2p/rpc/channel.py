"""gRPC channels and servers of the control plane: options, and proof of who calls.

With a cluster secret every call carries `authorization: Damselfly <token>`, purpose "rpc" and the host id as subject; a
server with the secret refuses every call without one (UNAUTHENTICATED). A token opens a call when it begins: a session
may outlive it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc

from p2p.auth import ClusterSecret, authorization, bearer_token
from p2p.errors import UnauthorizedError

RPC_PURPOSE = "rpc"

MESSAGE_BYTES = 16 * 1024 * 1024
"""The longest message either side takes: the digests of a million pieces, or some hundred holdings."""

_AUTHORIZATION = "authorization"

_COMMON_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

_CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    *_COMMON_OPTIONS,
    # The link decides when to try again; retries underneath would say things twice or late.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The environment's proxy may be this very peer.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

_SERVER_OPTIONS: Sequence[tuple[str, Any]] = (
    *_COMMON_OPTIONS,
    # Without this two schedulers could listen on one port and share its connections in silence.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel to the scheduler at `address` ("host:port"); it connects when first used. Close it after use."""
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def session_metadata(secret: ClusterSecret | None, host_id: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call by `host_id`, signed for now; nothing without a secret."""
    if secret is None:
        return ()
    return ((_AUTHORIZATION, authorization(secret.sign(RPC_PURPOSE, host_id, now=time.time()))),)


def open_server(secret: ClusterSecret | None) -> grpc.aio.Server:
    """Return a server that refuses callers without a token of `secret`, if one is given; not yet listening."""
    interceptors = [_Doorkeeper(secret)] if secret else []
    return grpc.aio.server(interceptors=interceptors, options=_SERVER_OPTIONS)


def caller(secret: ClusterSecret, metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the host id that a call's metadata proves. Raises UnauthorizedError."""
    for name, value in metadata:
        if name == _AUTHORIZATION and isinstance(value, str):
            return secret.verify(bearer_token(value), RPC_PURPOSE, now=time.time())
    raise UnauthorizedError("no cluster token was given; give this host the cluster's --cluster-secret-file")


class _Doorkeeper(grpc.aio.ServerInterceptor):
    """Lets a call through only if it proves that it knows the secret."""

    def __init__(self, secret: ClusterSecret) -> None:
        self._secret = secret

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Continue, or answer UNAUTHENTICATED before the first message is read."""
        try:
            caller(self._secret, handler_call_details.invocation_metadata)
        except UnauthorizedError as error:
            reason = str(error)

            async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

            return grpc.stream_stream_rpc_method_handler(refuse)
        return await continuation(handler_call_details)
