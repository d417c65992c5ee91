# SPDX-License-Identifier: Apache-2.0
"""JupyterHub for a workshop on one machine: each seat signs in with its key and has a working copy of its own.

    .venv/bin/python -m pip install --require-hashes -r env/locks/hub.txt     # beside the kit's own packages
    npm install --prefix DIR configurable-http-proxy                          # and DIR/node_modules/.bin on the PATH
    ensemblekit workshop serve --seats 30                                     # the server that all seats ask
    ENSEMBLEKIT_SEATS=RUN/gate/seats.json ENSEMBLEKIT_SERVER=127.0.0.1:8000 \
      .venv/bin/jupyterhub -f env/jupyterhub/jupyterhub_config.py

All seats run as the user who starts the hub: right for a room that trusts itself, wrong for the open internet.
There, Zero to JupyterHub gives each seat a container; `values.yaml` beside this file is for it.
"""

import hmac
import json
import os
import sys
from pathlib import Path
from typing import Any

from jupyterhub.auth import Authenticator
from jupyterhub.spawner import SimpleLocalProcessSpawner

from ensemblekit.lesson.lab import lab_options, make_working_copy
from ensemblekit.servers.attach import URL_VARIABLE
from ensemblekit.servers.running import LAB_VARIABLE

SEATS = json.loads(Path(os.environ["ENSEMBLEKIT_SEATS"]).read_text())  # name -> key
SERVER = os.environ.get("ENSEMBLEKIT_SERVER", "")  # host:port of the shared server
ROOT_ALLOWED = ["--allow-root"] if os.geteuid() == 0 else []  # as in a container
HOME = Path(os.environ.get("ENSEMBLEKIT_HUB_DIR", "hub")).resolve()

c = get_config()  # type: ignore[name-defined]  # noqa: F821 - JupyterHub gives it


class SeatAuthenticator(Authenticator):
    """A seat's name and its key, as on its paper."""

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        """Return the seat's name if the key is right."""
        key = SEATS.get(data["username"], "")
        return data["username"] if key and hmac.compare_digest(key, data["password"]) else None


def prepare(spawner: SimpleLocalProcessSpawner) -> None:
    """Give a seat its own notebooks, and the shared server for those that can ask one."""
    seat = spawner.user.name
    make_working_copy(HOME / seat / "work")
    spawner.environment = {LAB_VARIABLE: seat, "ENSEMBLEKIT_RUN_DIR": str(HOME / seat / "run")}
    if SERVER:
        spawner.environment[URL_VARIABLE] = f"{SEATS[seat]}@{SERVER}"
    spawner.args = lab_options(HOME / seat / "work") + ROOT_ALLOWED


HOME.mkdir(parents=True, exist_ok=True)
c.JupyterHub.authenticator_class = SeatAuthenticator
c.Authenticator.allowed_users = set(SEATS)
c.JupyterHub.spawner_class = SimpleLocalProcessSpawner
c.SimpleLocalProcessSpawner.home_dir_template = str(HOME / "{username}")
c.Spawner.pre_spawn_hook = prepare
c.Spawner.cmd = [str(Path(sys.executable).with_name("jupyterhub-singleuser"))]
c.Spawner.default_url = "/lab/tree/start.ipynb"
c.Spawner.start_timeout = 120  # thirty seats that start at once on two cores
c.Spawner.http_timeout = 120
c.JupyterHub.db_url = f"sqlite:///{HOME / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(HOME / "cookie_secret")
c.ConfigurableHTTPProxy.api_url = os.environ.get("ENSEMBLEKIT_HUB_PROXY_URL", "http://127.0.0.1:8001")
c.ConfigurableHTTPProxy.pid_file = str(HOME / "proxy.pid")
c.JupyterHub.bind_url = os.environ.get("ENSEMBLEKIT_HUB_URL", "http://127.0.0.1:8888")
c.JupyterHub.hub_bind_url = os.environ.get("ENSEMBLEKIT_HUB_INNER_URL", "http://127.0.0.1:8081")
