"""
What sends held covers to clients: the shipped nginx, and what it is measured against.

Each is a process of its own on a free local port, with as many workers as the bench says and as
many processors. Every nginx here is the same program.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.processes import LOCAL, ROOT, Bench, Child, free_port
from bench.table import CannotMeasureError
from tests.support.programs import NotInstalled, find_nginx

Served = tuple[Child, int]
"""A server and its port."""

_NGINX = """
worker_processes {workers};
worker_rlimit_nofile 16384;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    types {{ image/jpeg jpg; }}
    # Sends as the shipped configuration does.
    sendfile on;
    tcp_nopush on;
    {open_files}
    keepalive_requests 100000;
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {more}
}}
"""
_BARE = """
    server {{
        listen {local}:{port} backlog=4096;
        root {root};
        location / {{
            {header}
            try_files $uri =404;
        }}
    }}
"""
_TLS = """
    server {{
        listen {local}:{port} ssl backlog=4096;
        listen [::1]:{port} ssl backlog=4096;
        http2 on;
        ssl_certificate {certificates}/localhost.crt;
        ssl_certificate_key {certificates}/localhost.key;
        root {root};
        location / {{
            try_files $uri =404;
        }}
    }}
"""
_PROXY_CACHE = """
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=covers:16m max_size=4g inactive=1d;
    server {{
        listen {local}:{port} backlog=4096;
        location / {{
            proxy_cache covers;
            proxy_cache_valid 200 1d;
            proxy_pass http://{local}:{origin};
        }}
    }}
"""
_SQUID = """
http_port {local}:{port} accel defaultsite={local}
cache_peer {local} parent {origin} 0 no-query originserver
http_access allow all
visible_hostname localhost
workers {workers}
cache_mem 512 MB
maximum_object_size_in_memory 1 MB
access_log none
cache_log {log}
cache_store_log none
pid_filename {pid}
netdb_filename none
pinger_enable off
coredump_dir /
shutdown_lifetime 0 seconds
"""
_VCL = 'vcl 4.1; backend origin {{ .host = "{local}"; .port = "{origin}"; }}'


def _open_files(like: Child) -> str:
    """The lines about open files in the configuration that the shipped nginx runs with."""
    lines = (like.folder / "nginx.conf").read_text().splitlines()
    found = [line.strip() for line in lines if line.strip().startswith("open_file_cache")]
    return "\n    ".join(line for line in found if line != "open_file_cache off;")


def _program(name: str) -> str:
    # Servers lie where only the paths of root lead.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"))
    found = shutil.which(name, path=path)
    if found is None:
        raise CannotMeasureError(f"{name}, not installed")
    return found


def _nginx_program() -> str:
    try:
        return find_nginx()
    except NotInstalled as error:
        raise CannotMeasureError(str(error)) from None


@contextlib.contextmanager
def shipped(
    bench: Bench, cache_dir: Path, *app_ports: int, hit_log: Path | None = None, tls: bool = False
) -> Iterator[Served]:
    """
    nginx/start.sh with the hit log on. Without an app only what is held can be had.

    :param tls: the port is the one where TLS is spoken.
    """
    folder, port = bench.folder("shipped"), free_port()
    apps = ",".join(f"{LOCAL}:{each}" for each in app_ports or [free_port()])
    env = {
        "NGINX_BIN": _nginx_program(),
        "NGINX_APPS": apps,
        "NGINX_CACHE_DIR": str(cache_dir),
        "NGINX_LISTEN": f"{LOCAL}:{port}",
        "NGINX_RUN_DIR": str(folder),
        "NGINX_ACCESS_LOG": str(folder / "access.log"),
        "NGINX_HIT_LOG": str(hit_log or folder / "hits.log"),
        "NGINX_WORKERS": str(bench.workers),
        "NGINX_USER": _user(),
    }
    if tls:
        port = free_port()
        env["NGINX_TLS_LISTEN"] = f"{LOCAL}:{port},[::1]:{port}"
        env["NGINX_TLS_CERTIFICATES"] = str(_certificates(bench))
    with _server(bench, "shipped", [str(ROOT / "nginx" / "start.sh")], folder, env) as child:
        child.answers(port)
        yield child, port


@contextlib.contextmanager
def bare(bench: Bench, root: Path, *, like: Child, header: str = "") -> Iterator[Served]:
    """
    A bare try_files of nginx, which sends the same files by their own paths.

    :param like: the shipped nginx: as many files are kept open.
    """
    folder, port = bench.folder("bare"), free_port()
    server = _BARE.format(local=LOCAL, port=port, root=root, header=header)
    with _nginx(bench, folder, port, server, like) as served:
        yield served


@contextlib.contextmanager
def bare_tls(bench: Bench, root: Path, *, like: Child) -> Iterator[Served]:
    """A bare try_files of nginx over TLS, HTTP/1.1 and 2, with the certificate that the shipped one has."""
    folder, port = bench.folder("bare-tls"), free_port()
    server = _TLS.format(local=LOCAL, port=port, root=root, certificates=_certificates(bench))
    with _nginx(bench, folder, port, server, like) as served:
        yield served


def _certificates(bench: Bench) -> Path:
    """A folder with a certificate for localhost, whose key is as certbot makes it."""

    def make() -> Path:
        folder = bench.folder("certificates")
        words = [_program("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
        words += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]
        words += ["-keyout", str(folder / "localhost.key"), "-out", str(folder / "localhost.crt")]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        return folder

    return bench.kept("certificates", make)


@contextlib.contextmanager
def proxy_cache(bench: Bench, origin: int, like: Child) -> Iterator[Served]:
    """An nginx with a cache of its own before an origin."""
    folder, port = bench.folder("proxy-cache"), free_port()
    server = _PROXY_CACHE.format(local=LOCAL, port=port, folder=folder, origin=origin)
    with _nginx(bench, folder, port, server, like) as served:
        yield served


@contextlib.contextmanager
def varnish(bench: Bench, origin: int) -> Iterator[Served]:
    """Varnish with everything in memory."""
    folder, port = bench.folder("varnish"), free_port()
    vcl = folder / "covers.vcl"
    vcl.write_text(_VCL.format(local=LOCAL, origin=origin))
    # The folders of a run are their user's alone, so it can't take another one's rights.
    words = [_program("varnishd"), "-F", "-j", "none", "-n", str(folder / "state"), "-f", str(vcl)]
    words += ["-a", f"{LOCAL}:{port}", "-s", "malloc,512m", "-p", f"thread_pools={bench.workers}"]
    with _server(bench, "varnish", words, folder) as child:
        child.answers(port)
        yield child, port


@contextlib.contextmanager
def squid(bench: Bench, origin: int) -> Iterator[Served]:
    """Squid as a reverse proxy with everything in memory."""
    folder, port = bench.folder("squid"), free_port()
    log = "/dev/null" if os.geteuid() == 0 else folder / "cache.log"
    conf = folder / "squid.conf"
    conf.write_text(
        _SQUID.format(
            local=LOCAL, port=port, origin=origin, workers=bench.workers, log=log, pid="none"
        )
    )
    words = [_program("squid"), "-f", str(conf), "-d", "1"]
    # With -N there is only the one process, whatever the configuration says.
    words.append("-N" if bench.workers == 1 else "--foreground")
    with _server(bench, "squid", words, folder) as child:
        child.answers(port)
        yield child, port


def _server(
    bench: Bench, name: str, words: list[str], folder: Path, env: dict[str, str] | None = None
) -> contextlib.AbstractContextManager[Child]:
    # As many processors as workers: else Varnish, all threads, would have more than the others.
    return bench.program(name, words, folder, env, processors=bench.workers)


@contextlib.contextmanager
def _nginx(bench: Bench, folder: Path, port: int, server: str, like: Child) -> Iterator[Served]:
    conf = folder / "nginx.conf"
    conf.write_text(
        _NGINX.format(
            workers=bench.workers, folder=folder, open_files=_open_files(like), more=server
        )
    )
    user = _user()
    rights = f"user {user};" if user else ""
    words = [_nginx_program(), "-p", str(folder), "-e", "stderr", "-c", str(conf)]
    with _server(bench, "nginx", [*words, "-g", f"daemon off; {rights}"], folder) as child:
        child.answers(port)
        yield child, port


def _user() -> str:
    # The folders of a run are their user's alone, and by itself nginx leaves root's rights.
    return "root" if os.geteuid() == 0 else ""
