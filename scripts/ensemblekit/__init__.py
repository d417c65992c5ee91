# SPDX-License-Identifier: Apache-2.0
"""The ensemble kit: what the notebooks import. The names and their homes stand in `__init__.pyi`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
