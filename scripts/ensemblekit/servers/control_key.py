# SPDX-License-Identifier: Apache-2.0
"""The key of a server's model-control API: whoever may load a model may run code as the user of the server.

Triton looks at neither Origin, Host nor Content-Type, so that without a key every web page can send it a model.py.
The key stands in the server's command line: another user of the machine who may list processes can read it there.
"""

import secrets

__all__ = ["control_arguments", "control_headers", "new_key"]

HEADER = "ensemblekit-key"
RESTRICTED = "model-repository"  # loading, unloading and the index


def new_key() -> str:
    """Return a key that nobody can guess."""
    return secrets.token_hex(16)


def control_arguments(key: str, *, grpc: bool = True) -> list[str]:
    """Return the arguments of a server that takes model control from holders of the key alone.

    Args:
        key: The key.
        grpc: Whether the server has a gRPC endpoint.

    >>> control_arguments("k", grpc=False)
    ['--http-restricted-api=model-repository:ensemblekit-key=k']
    """
    options = ["--http-restricted-api", *(["--grpc-restricted-protocol"] if grpc else [])]
    return [f"{option}={RESTRICTED}:{HEADER}={key}" for option in options]


def control_headers(key: str) -> dict[str, str]:
    """Return the HTTP headers of a request for model control."""
    return {HEADER: key}
