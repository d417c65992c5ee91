# SPDX-License-Identifier: Apache-2.0
"""What the kit fetches once and keeps: wheels, server trees, model checkpoints."""
