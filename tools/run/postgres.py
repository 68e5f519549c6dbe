"""Starts PostgreSQL as its container image does: the first start makes the database.

Called as `postgres.py INIT_DIR POSTGRES_PROGRAM [ARGUMENT...]` with the variables of the image
(`PGDATA`, `PGPORT`, `POSTGRES_USER`, `POSTGRES_PASSWORD`, `POSTGRES_DB`). PostgreSQL refuses to run
as root, so root becomes the user `nobody` first. It imports nothing from the project, because
`nobody` may not be able to read it.
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
    # Read while the rights are still there.
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

    # A first start that was interrupted leaves no half-made database: the name comes last.
    database, unfinished = data_dir / "database", data_dir / "unfinished"
    if not database.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        make_database(binaries, unfinished, scripts)
        unfinished.rename(database)
    sockets_off = ["-c", "unix_socket_directories="]
    on_loopback = ["-c", "listen_addresses=127.0.0.1"]
    # supervisord signals this process: it must be the server itself.
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
        # What is not yet on the disk is written by the stop below.
        run(
            [binaries / "initdb", "-D", data_dir, "-E", "UTF8", "--locale=C", "--no-sync"],
            [f"--username={user}", f"--pwfile={password_file}"],
            ["--auth-local=trust", "--auth-host=scram-sha-256"],
        )
        # Nobody reaches the server over TCP before the database is complete.
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}'"
        control: list[str | Path] = [binaries / "pg_ctl", "-D", data_dir, "-s", "-w"]
        run(control, ["-l", Path(folder, "log"), "-o", options, "start"])
        os.environ["PGHOST"] = folder
        os.environ["PGUSER"] = user
        psql: list[str | Path] = [
            binaries / "psql",
            "-v",
            "ON_ERROR_STOP=1",
            "--no-psqlrc",
            "--quiet",
        ]
        if database != "postgres":
            run([binaries / "createdb", "--maintenance-db=postgres", database])
        os.environ["PGDATABASE"] = database
        for name, text in scripts:
            print(f"running {name}", flush=True)
            if name.endswith(".sql"):
                run(psql, text=text)
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
