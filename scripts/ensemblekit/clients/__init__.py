# SPDX-License-Identifier: Apache-2.0
"""Ask a server: gRPC streaming through tritonclient, the HTTP generate endpoint, and its statistics."""
