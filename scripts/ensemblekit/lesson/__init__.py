# SPDX-License-Identifier: Apache-2.0
"""What a notebook is made of: parameters, a session with servers, checks, records, pictures, widgets."""
