"""Real servers for tests: each on a free loopback port, in a folder of its own, gone with the test."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from .conftest import BINARY, settled

PASSWORD = "not so secret"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A process that dies with this one, with what its name resolves to in a folder."""

    tier = None

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="kasmina-server-"))
        self.port = free_port()
        self.password_file = self.folder / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.process = None

    def run(self, *command, user=None):
        drop = ["--reuid", user, "--regid", user, "--clear-groups"] if user else []
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *drop, *map(str, command)], stdout=log, stderr=log
            )
        settled(self.answers)

    def answers(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, number):
        """To the server and its children: a paused PostgreSQL is all of its processes."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in [pid, *map(int, children)]:
            try:
                os.kill(each, number)
            except ProcessLookupError:
                pass

    def pause(self):
        self.signal(signal.SIGSTOP)

    def resume(self):
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait(20)

    def close(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Redis(Server):
    tier = "redis"

    def start(self):
        settings = ["--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.run("redis-server", *settings, "--dir", self.folder, "--requirepass", PASSWORD)
        settled(lambda: self.ask("PING") == "PONG")
        return self

    def restart_empty(self):
        self.kill()
        self.start()

    def ask(self, *words):
        command = ["redis-cli", "-p", self.port, "-a", PASSWORD, "--no-auth-warning", *words]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True).stdout.strip()

    def refuse_auth(self):
        self.ask("CONFIG", "SET", "requirepass", "another")
        # Who is in already would stay in.
        command = ["redis-cli", "-p", self.port, "-a", "another", "--no-auth-warning", "CLIENT", "KILL", "TYPE", "normal"]
        subprocess.run(list(map(str, command)), capture_output=True)

    def settings(self, port=None):
        return (
            f'[cache.redis]\nurl = "redis://127.0.0.1:{port or self.port}"\n'
            f'password_file = "{self.password_file}"\nconnect_timeout = "2s"\ntimeout = "2s"\n'
        )


class Postgres(Server):
    tier = "postgres"

    def start(self):
        self.user = None
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root.
            names = {entry.pw_name for entry in pwd.getpwall()}
            self.user = "postgres" if "postgres" in names else "nobody"
        self.data = self.folder / "data"
        self.data.mkdir()
        if self.user:
            owner = pwd.getpwnam(self.user)
            self.group = owner.pw_gid
            for path in (self.folder, self.password_file, self.data):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        self.initialise()
        return self.begin()

    def initialise(self):
        drop = ["setpriv", "--reuid", self.user, "--regid", str(self.group), "--clear-groups"] if self.user else []
        options = ["-U", "kasmina", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]
        command = [*drop, binary("initdb"), *options, "--pwfile", str(self.password_file), "-D", str(self.data)]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)

    def begin(self):
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        places = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        self.run(binary("postgres"), "-D", self.data, "-p", self.port, *places, user=self.user)
        settled(lambda: "ready to accept connections" in (self.folder / "log").read_text())
        return self

    def restart(self):
        self.kill()
        (self.folder / "log").unlink()
        self.begin()

    def restart_empty(self):
        self.kill()
        shutil.rmtree(self.data)
        self.data.mkdir()
        if self.user:
            shutil.chown(self.data, self.user, self.group)
        self.initialise()
        (self.folder / "log").unlink()
        self.begin()

    def keep_tables_in(self, folder):
        """From now on new tables are made there."""
        if self.user:
            shutil.chown(folder, self.user, self.group)
        for statement in (
            f"CREATE TABLESPACE elsewhere LOCATION '{folder}'",
            "ALTER ROLE kasmina SET default_tablespace = elsewhere",
        ):
            command = [binary("psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "kasmina", "postgres", "-c", statement]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PGPASSWORD": PASSWORD})

    def refuse_auth(self):
        (self.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 reject\n")
        self.restart()

    def settings(self, port=None):
        return (
            f'[cache.postgres]\nurl = "postgres://127.0.0.1:{port or self.port}/postgres"\nuser = "kasmina"\n'
            f'password_file = "{self.password_file}"\nconnect_timeout = "2s"\ntimeout = "2s"\n'
        )


class Urza(Server):
    """`kasmina urza` over a folder of kernels; its blobs are at the same address."""

    def __init__(self, kernels):
        super().__init__()
        self.kernels = kernels

    def start(self):
        tool = BINARY.with_name("kasmina")
        self.run(tool, "urza", "--dir", self.kernels, "--listen", f"127.0.0.1:{self.port}")
        return self

    def settings(self, port=None, timeout="500ms"):
        return (
            f'kind = "urza"\ntimeout = "{timeout}"\n'
            f'[origin.urza]\nendpoints = ["http://127.0.0.1:{port or self.port}/api/v1"]\n'
            f'[origin.blob]\nallowed_hosts = ["127.0.0.1:{self.port}"]\nallow_private_addresses = true\n'
            f'stall_timeout = "{timeout}"\ntimeout = "{timeout}"\n'
        )


class S3(Server):
    """`examples/s3_folder` over a folder of buckets, of which `kernels` is one."""

    def __init__(self):
        super().__init__()
        self.bucket = self.folder / "buckets" / "kernels"
        self.bucket.mkdir(parents=True)
        self.credentials = self.write_credentials("credentials", PASSWORD)

    def write_credentials(self, name, secret):
        path = self.folder / name
        path.write_text(f"[default]\naws_access_key_id = kasmina\naws_secret_access_key = {secret}\n")
        return path

    def start(self):
        options = ["--dir", self.bucket.parent, "--listen", f"127.0.0.1:{self.port}"]
        self.run(BINARY.parent / "examples" / "s3_folder", *options, "--credentials-file", self.credentials)
        return self

    def settings(self, port=None, part_size="8MiB", credentials=None):
        """To stand behind Urza's, which end in the section of blobs."""
        return (
            'allowed_buckets = ["kernels"]\n'
            f'[origin.s3]\nendpoint = "http://127.0.0.1:{port or self.port}"\npath_style = true\n'
            f'credentials_file = "{credentials or self.credentials}"\npart_size = "{part_size}"\n'
        )


def binary(name):
    """PostgreSQL's programs stand beside the path on Debian."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else name
