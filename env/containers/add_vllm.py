# SPDX-License-Identifier: Apache-2.0
"""Inside the base image: install vLLM, and put a vLLM backend where Triton looks for one.

Runs on the image's own Python (3.10 in NVIDIA's images) and uses nothing but its standard library and pip.
"""

import argparse
import io
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
BACKENDS = Path("/opt/tritonserver/backends")
NEEDED = ("model.py", "utils/metrics.py")  # of upstream's backend; the README's copy of model.py alone fails
TIMEOUT_S = 60
SITE = Path(sysconfig.get_path("purelib"))


def main() -> None:
    """Do both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--backend", choices=("upstream", "kit"), required=True)
    parser.add_argument("--source", required=True)
    options = parser.parse_args()
    if options.vllm == "none":
        print("no vLLM: the engine was left out on purpose")
    else:
        install_vllm(options.vllm)
    target = BACKENDS / "vllm"
    target.mkdir(parents=True, exist_ok=True)
    if options.backend == "kit":
        shutil.copytree(HERE / "kit", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        copy_upstream(options.source, target)
    print(f"backend {options.backend} in {target}: {', '.join(sorted(file.name for file in target.iterdir()))}")


def install_vllm(requirements: str) -> None:
    """Install what was asked for with pip, within the constraints where they are meant for it."""
    command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--progress-bar=off"]
    if requirements.startswith("vllm==0.5."):
        command += ["--constraint", str(HERE / "vllm-constraints.txt")]
    subprocess.run([*command, *requirements.split()], check=True)
    if requirements.startswith("vllm==0.5."):
        mend_pyairports()


def mend_pyairports() -> None:
    """Give outlines the module it imports: what PyPI now has under that name is an empty sample package.

    Without it every request with guided decoding fails, and so does vLLM's own API server. The list of
    airports stays empty, so outlines' type for airport codes matches nothing; the rest of it works.
    """
    package = SITE / "pyairports"
    if not (package / "airports.py").is_file():
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        (package / "airports.py").write_text("AIRPORT_LIST = []\n")


def copy_upstream(source: str, target: Path) -> None:
    """Copy `src/` of upstream's archive: model.py and utils/, both are needed."""
    if source.endswith("/main.tar.gz"):
        sys.exit("BACKEND_REF=main: its backend needs a far newer vLLM; use the release's own, for example r24.08")
    with urllib.request.urlopen(source, timeout=TIMEOUT_S) as answer:  # noqa: S310 - the Containerfile's own https address
        content = io.BytesIO(answer.read())
    with tarfile.open(fileobj=content) as archive:
        for member in archive.getmembers():
            _, _, name = member.name.partition("/src/")
            if name and member.isfile():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(archive.extractfile(member).read())
    missing = [name for name in NEEDED if not (target / name).is_file()]
    if missing:
        sys.exit(f"no {', no '.join(missing)} in {source}")


if __name__ == "__main__":
    main()
