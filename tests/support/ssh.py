"""Two hosts on this machine's loopback, reached by a real sshd with a key of its own, for root; for pdsh."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOSTS = ("127.0.0.2", "127.0.0.3")
START_SECONDS = 30
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def why_not() -> str | None:
    """Why no hosts can be started here; None: they can."""
    missing = [name for name in ("sshd", "ssh", "ssh-keygen", "pdsh") if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: openssh-server, pdsh)"
    return None if os.geteuid() == 0 else "an sshd that starts sessions needs root"


@contextmanager
def hosts(folder: Path) -> Iterator[dict[str, str]]:
    """A running sshd behind the names of ``HOSTS``; yields an environment whose ``ssh`` gets in without a password."""
    folder.mkdir(parents=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as probe:
        probe.bind((HOSTS[0], 0))
        port = probe.getsockname()[1]
    addresses = [f"ListenAddress {host}:{port}" for host in HOSTS]
    own = [f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/user.pub", "PidFile none"]
    rules = ["PermitRootLogin prohibit-password", "PasswordAuthentication no", "StrictModes no", "UsePAM no"]
    (folder / "sshd_config").write_text("\n".join([*addresses, *own, *rules]) + "\n")
    known = ["UserKnownHostsFile /dev/null", "StrictHostKeyChecking no", "LogLevel ERROR", "BatchMode yes"]
    key = [f"Port {port}", f"IdentityFile {folder}/user", "IdentitiesOnly yes"]
    (folder / "ssh_config").write_text("\n".join([*key, *known]) + "\n")
    programs = folder / "bin"
    programs.mkdir()
    # ssh does not look at $HOME for its settings, so a program of its name brings them.
    real = shutil.which("ssh", path=_PATH)
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {real} -F "{folder}/ssh_config" "$@"\n')
    (programs / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    log = folder / "sshd.log"
    daemon = [str(shutil.which("sshd", path=_PATH)), "-D", "-f", str(folder / "sshd_config"), "-E", str(log)]
    process = subprocess.Popen(daemon)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    try:
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run([str(programs / "ssh"), HOSTS[1], "true"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"sshd did not start:\n{log.read_text() if log.exists() else ''}"
            time.sleep(0.1)
        yield environment
    finally:
        process.terminate()
        process.wait(10)
