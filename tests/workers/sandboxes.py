"""Whether this machine lets anybody have a sandbox, asked of bubblewrap alone, not of ours."""

import os
import shutil
import subprocess

import pytest


def _why_not() -> str:
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    nobody = 65534 if os.geteuid() == 0 else None
    tried = subprocess.run(
        ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--ro-bind", "/usr", "/usr"]
        + [word for name in ("lib", "lib64") for word in ("--ro-bind-try", f"/{name}", f"/{name}")]
        + ["/usr/bin/env", "true"],
        capture_output=True,
        text=True,
        user=nobody,
        group=nobody,
    )
    return f"this machine forbids bubblewrap: {tried.stderr.strip()}" if tried.returncode else ""


WHY_NOT = _why_not()
needs_sandbox = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
