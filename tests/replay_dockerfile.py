"""What `docker build` and `docker run` would do, without Docker: docker/Dockerfile on a Debian made here.

    sudo apt-get install buildah debootstrap
    sudo python3 tests/replay_dockerfile.py [--stack gpu --without flash-attn] [--folder /tmp/replay] [--keep]

debootstrap makes the base, buildah (in chroots, without a registry) takes the very Dockerfile, and in a container of the image
the health check, `raml doctor` and (cpu) `raml run smoke` are run by the image's user. It prints what each took, and the sizes.
It needs root, Debian's packages and PyPI, half an hour, and 25 GB in --folder (gpu: 40, and 20 in /var/tmp, where buildah
packs); where a machine needs a certificate authority (SSL_CERT_FILE) or, cpu, a folder of wheels (PIP_FIND_LINKS) of its own,
the build is given them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = "localhost/debian:bookworm-slim"


class Replay:
    """Buildah with its storage in a folder of its own, and what its steps took."""

    def __init__(self, folder: Path, driver: str) -> None:
        self.folder = folder
        self.driver = driver
        self.took: list[tuple[str, float]] = []

    def buildah(self, *words: str, capture: bool = False) -> str:
        store = ["--root", f"{self.folder}/store", "--runroot", f"{self.folder}/run", "--storage-driver", self.driver]
        done = subprocess.run(
            ["buildah", *store, *words], check=True, text=True, stdout=subprocess.PIPE if capture else None, cwd=ROOT
        )
        return (done.stdout or "").strip()

    def step(self, name: str, call: Sequence[str] = (), **options: bool) -> str:
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        start = time.monotonic()
        out = self.buildah(*call, **options)
        self.took.append((name, time.monotonic() - start))
        return out

    def base(self) -> None:
        """Debian's smallest, as an image."""
        root = self.folder / "debian"
        start = time.monotonic()
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root)], check=True, stdout=sys.stderr)
        self.took.append(("debootstrap", time.monotonic() - start))
        packed = self.folder / "debian.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(packed), "."], check=True)
        shutil.rmtree(root)
        container = self.buildah("from", "scratch", capture=True)
        self.step("import the base", ["add", "--quiet", container, str(packed), "/"])
        self.buildah("commit", "--quiet", "--rm", container, BASE)
        packed.unlink()

    def image(self, stack: str, without: str) -> str:
        given = ["--build-arg", "FLASH_ATTN=no"] if without else []
        if authority := os.environ.get("SSL_CERT_FILE"):
            given += ["--volume", f"{authority}:/authority.crt:ro"]
            given += ["--build-arg", "SSL_CERT_FILE=/authority.crt", "--build-arg", "PIP_CERT=/authority.crt"]
        wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
        # torch's CPU build would answer to the gpu lock's name, and not to its hashes.
        if stack == "cpu" and wheels and Path(wheels).is_dir():
            given += ["--volume", f"{wheels}:/wheels:ro", "--build-arg", "UV_FIND_LINKS=/wheels"]
        name = f"localhost/raml:{stack}"
        words = ["bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "--build-arg", f"BASE={BASE}"]
        words += ["--build-arg", f"STACK={stack}", *given, "--file", "docker/Dockerfile", "--tag", name, "."]
        self.step("build", words)
        return name

    def check(self, image: str, stack: str) -> None:
        """The image's own user runs the doctor and (cpu) the smallest run, with the image's entry point."""
        container = self.buildah("from", "--pull-never", image, capture=True)
        entry = ["run", "--isolation", "chroot", "--workingdir", "/app", container, "--", "tini", "--"]
        self.step("who", [*entry, "id"])
        self.step("healthcheck", [*entry, "python", "/app/healthcheck.py"])
        self.step("raml doctor", [*entry, "raml", "doctor"])
        if stack == "cpu":  # the other one's vLLM needs a GPU
            self.step("raml run smoke", [*entry, "raml", "run", "smoke"])
        mounted = self.buildah("mount", container, capture=True)
        for part in ("", "app/.venv", "usr"):
            size = subprocess.run(
                ["du", "-sxm", f"{mounted}/{part}"], check=True, text=True, capture_output=True
            ).stdout
            sys.stdout.write(f"size of /{part}: {size.split()[0]} MiB\n")
        self.buildah("umount", container)

    def clean(self) -> None:
        """All containers and images, and then the folder."""
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")
        shutil.rmtree(self.folder)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--stack", choices=("cpu", "gpu"), default="cpu")
    words.add_argument("--without", choices=("flash-attn",), default="", help="leave out what is compiled for hours")
    words.add_argument(
        "--storage-driver", default="overlay", help="buildah's; `vfs` copies every layer, and works on any file system"
    )
    words.add_argument("--folder", type=Path, default=Path("/tmp/replay"))
    words.add_argument("--keep", action="store_true", help="leave base and image there, to look at or for a second run")
    options = words.parse_args()
    for program, package in {"buildah": "buildah", "debootstrap": "debootstrap"}.items():
        if shutil.which(program) is None:
            sys.stderr.write(f"{program} is missing\n  type: sudo apt-get install {package}\n")
            return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    replay = Replay(options.folder.resolve(), options.storage_driver)
    try:
        if BASE not in replay.buildah("images", "--format", "{{.Name}}:{{.Tag}}", capture=True):
            replay.base()
        replay.check(replay.image(options.stack, options.without), options.stack)
        replay.buildah("images")
    finally:
        for name, seconds in replay.took:
            sys.stdout.write(f"{seconds:8.1f} s  {name}\n")
        if not options.keep:
            replay.clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())
