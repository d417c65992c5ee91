# SPDX-License-Identifier: Apache-2.0
"""A stand-in for upstream's build.py: the same options, scripts of the same form.

It compiles nothing. Where STAND_IN_BASE names an image that holds a Triton server, a real engine can run the scripts:
the "compilation" then fails the first time, half done, and the result is that server.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
FLAGS = (
    "dryrun", "no-container-interactive", "enable-logging", "enable-stats", "enable-tracing", "enable-metrics",
    "enable-gpu-metrics", "enable-cpu-metrics", "enable-gpu",
)  # fmt: skip
COMPILE = """#!/usr/bin/env bash
# cmake -DTRITON_ENABLE_ENSEMBLE:BOOL={ensemble} /workspace
set -e
mkdir -p /tmp/tritonbuild/install /tmp/tritonbuild/ci
if [ ! -e /tmp/tritonbuild/half ]; then
  echo "[ 50%] Building CXX object src/first_half.cc.o"
  touch /tmp/tritonbuild/half
  echo "/workspace/src/second_half.cc:1:1: error: not this time"
  exit 2
fi
echo "[100%] Building CXX object src/second_half.cc.o"
touch /tmp/tritonbuild/install/built /tmp/tritonbuild/ci/tests
"""
DOCKERFILES = {
    "Dockerfile.buildbase": "FROM {base}\nCOPY . /workspace\n",
    "Dockerfile": "FROM {base}\nCOPY build/install/built /opt/tritonserver/built\n",
    "Dockerfile.cibase": "FROM {base}\nCOPY build/ci /opt/tritonserver/qa\n",
}
CACHES = " ".join(f"--cache-from=tritonserver_buildbase{end}" for end in ("", "_cache0", "_cache1"))


def docker_build(it: str) -> str:
    """The steps of a build, one Docker command each."""
    return f"""#!/usr/bin/env bash

#
# Docker-based build script for Triton Inference Server
#

# Exit script immediately if any command fails
set -e
set -x

########
# Create Triton base build image
#
cd {HERE}
docker build -t tritonserver_buildbase -f {BUILD}/Dockerfile.buildbase --pull {CACHES} .

########
# Run build in tritonserver_buildbase container
#
if [ "$(docker ps -a | grep tritonserver_builder)" ]; then  docker rm -f tritonserver_builder; fi
docker run -w /workspace/build --name tritonserver_builder {it}-v {HERE}:/s:ro tritonserver_buildbase ./cmake_build
docker cp tritonserver_builder:/tmp/tritonbuild/install {BUILD}
docker cp tritonserver_builder:/tmp/tritonbuild/ci {BUILD}

########
# Create final tritonserver image
#
cd {HERE}
docker build -t tritonserver -f {BUILD}/Dockerfile .

########
# Create CI base image
#
cd {HERE}
docker build -t tritonserver_cibase -f {BUILD}/Dockerfile.cibase .
"""


def main() -> int:
    """Write the scripts, and run them unless it is a dry run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("-j", "--build-parallel", type=int)
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("backend", "endpoint", "filesystem", "extra-core-cmake-arg"):
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("--upstream-container-version")
    flags = parser.parse_args()
    print(f"Building Triton Inference Server, upstream container version {flags.upstream_container_version}")
    BUILD.mkdir(exist_ok=True)
    ensemble = "ON" if "ensemble" in flags.backend else "OFF"
    base = os.environ.get("STAND_IN_BASE", f"nvcr.io/nvidia/tritonserver:{flags.upstream_container_version}-py3-min")
    (BUILD / "cmake_build").write_text(COMPILE.format(ensemble=ensemble))
    (BUILD / "cmake_build").chmod(0o755)
    for name, text in DOCKERFILES.items():
        (BUILD / name).write_text(text.format(base=base))
    script = BUILD / "docker_build"
    script.write_text(docker_build("" if flags.no_container_interactive else "-it "))
    script.chmod(0o755)
    return 0 if flags.dryrun else subprocess.run([script], cwd=BUILD, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
