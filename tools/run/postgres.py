"""Starts PostgreSQL as its container image does: the first start creates the database.

Usage: `postgres.py INIT_DIR POSTGRES_PROGRAM [ARGUMENT...]`, with the variables of the image
(`PGDATA`, `PGPORT`, `POSTGRES_USER`, `POSTGRES_PASSWORD`, `POSTGRES_DB`). PostgreSQL refuses to run
as root, so root becomes the user `nobody` first. This file imports nothing from the project,
because `nobody` may not be able to read it.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    init_dir, program, *arguments = sys.argv[1:]
    binaries = Path(program).parent
    data_dir = Path(os.environ["PGDATA"])
    if not os.environ.get("POSTGRES_PASSWORD"):
        sys.exit("error: set POSTGRES_PASSWORD in the environment of the service")
    # Read these before giving up root's permissions.
    scripts = [
        (path.name, path.read_text(encoding="utf-8"))
        for path in sorted(Path(init_dir).glob("*"))
        if path.suffix in (".sql", ".sh")
    ]
    data_dir.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        become_nobody(data_dir)
    os.chdir(data_dir)
    if not os.access(program, os.X_OK):
        sys.exit(f'error: the user "nobody" cannot run {program}: run `apt install postgresql`')
    if set(program) & set('"$`\\'):
        sys.exit(f"error: initdb cannot quote the path {program}: run `apt install postgresql`")

    # Renaming comes last, so that an interrupted first start leaves no incomplete database.
    database, unfinished = data_dir / "database", data_dir / "unfinished"
    if not database.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        make_database(binaries, unfinished, scripts)
        unfinished.rename(database)
    sockets_off = ["-c", "unix_socket_directories="]
    on_loopback = ["-c", "listen_addresses=127.0.0.1"]
    # supervisord sends signals to this process, so it has to become the server.
    os.execv(program, [program, "-D", str(database), *sockets_off, *arguments, *on_loopback])  # noqa: S606


def become_nobody(data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    if data_dir.stat().st_uid != nobody.pw_uid:
        os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)


def make_database(binaries: Path, data_dir: Path, scripts: list[tuple[str, str]]) -> None:
    user, database = os.environ["POSTGRES_USER"], os.environ["POSTGRES_DB"]
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        password_file = Path(folder, "password")
        password_file.write_text(os.environ["POSTGRES_PASSWORD"] + "\n", encoding="utf-8")
        # No sync is needed here: the stop below writes everything to disk.
        # Both programs pass a directory that is named with -D to a shell, which expands a `$`.
        os.environ["PGDATA"] = str(data_dir)
        run(
            [binaries / "initdb", "-E", "UTF8", "--locale=C", "--no-sync"],
            [f"--username={user}", f"--pwfile={password_file}"],
            ["--auth-local=trust", "--auth-host=scram-sha-256"],
        )
        # The server accepts no TCP connections before the database is complete.
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}'"
        control: list[str | Path] = [binaries / "pg_ctl", "-s", "-w"]
        run(control, ["-l", Path(folder, "log"), "-o", options, "start"])
        os.environ |= {"PGHOST": folder, "PGUSER": user}
        if database != "postgres":
            run([binaries / "createdb", "--maintenance-db=postgres", database])
        os.environ["PGDATABASE"] = database
        for name, text in scripts:
            print(f"running {name}", flush=True)
            if name.endswith(".sql"):
                psql: list[str | Path] = [binaries / "psql", "-v", "ON_ERROR_STOP=1"]
                run(psql, ["--no-psqlrc", "--quiet"], text=text)
            else:
                run(["bash", "-c", text])
        run(control, ["-m", "fast", "stop"])


def run(*command: list[str | Path], text: str | None = None) -> None:
    words = [str(word) for part in command for word in part]
    finished = subprocess.run(
        words, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if finished.returncode:
        sys.exit(f"error: {Path(words[0]).name} failed: {finished.stdout.strip()}")


if __name__ == "__main__":
    main()
