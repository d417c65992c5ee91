# SPDX-License-Identifier: Apache-2.0
# Sourced by run, test, lab, lint and lock: $scripts is their folder, $python a Python that can start the set-up.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(command -v python3 || command -v python3.12 || command -v python3.11) || {
  echo "Could not find Python. Hint: sudo apt install python3 (any from 3.6 on; the set-up finds or fetches the right one)" >&2
  exit 1
}
