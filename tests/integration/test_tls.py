"""The shipped nginx over TLS: names, certificates that are renewed or broken, and what is answered."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import pytest_twisted

from tests.support.certificates import authority, signed
from tests.support.nginx_server import ACCEL, START, NginxServer
from tests.support.programs import find_nginx
from tests.support.running import free_port
from tests.support.talk import LOCAL, ask, becomes
from tests.support.tls_client import TlsClient, variables, write_pair

LARGE = 50_000_000
ONE, TWO, WILD = "covers.test", "other.test", "_.wild.test"


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """The folder that nginx is to take certificates from."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    return folder


async def takes_over(client: TlsClient, name: str, serial: int) -> None:
    """Returns as soon as new connections are shown that certificate."""

    async def shown() -> int:
        return (await client.shown(name)).serial_number

    await becomes(shown, lambda found: found == serial, f"{name} has the new certificate")


@pytest_twisted.ensureDeferred
async def test_hit_miss_and_error(sim, run, nginx, certificates) -> None:
    """Over TLS a miss, a direct hit and an error are what they are without, HTTP/2 is offered."""
    proxy = await run(**ACCEL)
    write_pair(certificates, ONE)
    told = variables(certificates)
    front = await nginx(proxy, **told)
    client = TlsClient(told)
    path = sim.catalogue.examples()["thumbnail"]
    miss = await client.ask(f"https://{ONE}{path}")
    assert (miss.status, miss["X-Cache-Status"]) == (200, "MISS")
    await proxy.settled()
    hit = await client.ask(f"https://{ONE}{path}")
    plain = await front.get(path)
    assert (hit.status, hit["X-Cache-Status"], hit.body) == (200, "HIT", miss.body)
    del hit.named["date"]
    assert {**hit.named, "date": ""} == {**plain.named, "date": ""}
    assert len(await front.hits(2)) == 2
    wrong = await client.ask(f"https://{ONE}/{'a' * 9000}")
    assert (wrong.status, wrong.json) == (414, {"error": "path too long"})
    for offered, spoken in ((b"h2", b"h2"), (b"http/1.1", b"http/1.1")):
        wire = await client.connect(ONE, offered)
        wire.get("/")
        await wire.got(1)
        assert wire.transport.negotiatedProtocol == spoken
        wire.leave()


@pytest_twisted.ensureDeferred
async def test_plain_on_the_port_of_tls(run, nginx, certificates) -> None:
    """Who speaks no TLS where it is spoken is told in the words of any other bad request."""
    write_pair(certificates, ONE)
    told = variables(certificates)
    await nginx(await run(**ACCEL), **told)
    answer = await ask(f"http://{told['NGINX_TLS_LISTEN']}/health")
    assert (answer.status, answer.json) == (400, {"error": "bad request"})


@pytest_twisted.ensureDeferred
async def test_each_name_has_its_certificate(run, nginx, certificates) -> None:
    """By the name that a client asks for it is shown that name's certificate; else the first."""
    serials = {
        name: write_pair(certificates, name, signed(name.replace("_", "*"), authority()))
        for name in (WILD, ONE, TWO)
    }
    told = variables(certificates)
    await nginx(await run(**ACCEL), **told)
    client = TlsClient(told)
    for name, pair in ((ONE, ONE), (TWO, TWO), ("any.wild.test", WILD)):
        answer = await client.ask(f"https://{name}/health")
        assert answer.status == 200
        shown = await client.shown(name)
        assert shown.serial_number == serials[pair].certificate.serial_number
    with pytest.raises(Exception, match="DNSMismatch"):
        await client.ask("https://unknown.test/health")


@pytest_twisted.ensureDeferred
async def test_renewed_beside_a_download(sim, run, nginx, certificates) -> None:
    """A new certificate is used within seconds; what is being sent goes on, nothing is restarted."""
    proxy = await run(**ACCEL)
    write_pair(certificates, ONE)
    told = variables(certificates)
    front = await nginx(proxy, **told)
    client = TlsClient(told)
    path = f"/release/{sim.catalogue.release(0).mbid}/front-250"
    await client.ask(f"https://{ONE}{path}")
    await proxy.settled()
    (name,) = proxy.files()
    image = name.partition("_")[0]
    # More than the kernel takes off nginx's hands.
    with (proxy.root / f"{image}_7.jpg").open("wb") as file:
        file.truncate(LARGE)
    wire = await client.connect(ONE)
    wire.get(f"/release/{image.rpartition('/')[2]}/7", "Connection: close")
    await wire.got(1000)
    wire.transport.pauseProducing()
    renewed = write_pair(certificates, ONE).certificate.serial_number
    await takes_over(client, ONE, renewed)
    another = write_pair(certificates, TWO).certificate.serial_number
    await takes_over(client, TWO, another)
    assert len(wire.body) < LARGE
    wire.transport.resumeProducing()
    await wire.end()
    assert (wire.status, len(wire.body)) == (200, LARGE)
    assert wire.transport.getPeerCertificate().get_serial_number() != renewed
    assert f"start.sh: {TWO}.crt: taken" in front.log


@pytest_twisted.ensureDeferred
async def test_broken_pair(run, nginx, certificates) -> None:
    """A pair that nginx can't use is told in the log; the former one stays, and others are renewed."""
    former = write_pair(certificates, ONE).certificate.serial_number
    told = variables(certificates)
    front: NginxServer = await nginx(await run(**ACCEL), **told)
    client = TlsClient(told)
    # The key of another certificate, and no certificate at all.
    (certificates / f"{ONE}.crt").write_bytes(signed(ONE, authority()).pem)
    for end in ("crt", "key"):
        (certificates / f"empty.test.{end}").write_bytes(b"")
        (certificates / f"evil;name.{end}").write_bytes(b"")
    await takes_over(client, TWO, write_pair(certificates, TWO).certificate.serial_number)
    assert (await client.shown(ONE)).serial_number == former
    for name in (ONE, "empty.test"):
        assert f"start.sh: {name}.crt: refused, nothing changes: " in front.log
    assert "start.sh: evil;name.crt: no name of a host, is left out" in front.log
    mended = write_pair(certificates, ONE).certificate.serial_number
    await takes_over(client, ONE, mended)
    # A restart finds them as they are.
    front.kill()
    await front.start()
    await takes_over(client, ONE, mended)


@pytest_twisted.ensureDeferred
async def test_first_certificate_comes_later(run, nginx, certificates) -> None:
    """Without any certificate nginx starts and says so; TLS begins with the first one."""
    told = variables(certificates)
    front = await nginx(await run(**ACCEL), **told)
    assert (await front.get("/health")).status == 200
    assert f"no certificate in {certificates} yet" in front.log
    pair = write_pair(certificates, ONE)
    client = TlsClient(told)

    async def answers() -> bool:
        try:
            return (await client.ask(f"https://{ONE}/health")).status == 200
        except Exception:  # not yet
            return False

    await becomes(answers, bool, "https is spoken")
    assert (await client.shown(ONE)).serial_number == pair.certificate.serial_number


@pytest_twisted.ensureDeferred
async def test_plain_http_leads_to_https(sim, run, nginx, certificates, tmp_path) -> None:
    """Where it is wanted, plain HTTP redirects, lets an ACME client answer, and browsers are told so."""
    write_pair(certificates, ONE)
    told = variables(certificates)
    answers = tmp_path / "challenges" / ".well-known" / "acme-challenge"
    answers.mkdir(parents=True)
    (answers / "token").write_text("answer")
    (tmp_path / "challenges" / "secret").write_text("secret")
    redirect = f"{LOCAL}:{free_port()}"
    told |= {"NGINX_REDIRECT_LISTEN": redirect, "NGINX_ACME_CHALLENGES": str(answers.parents[1])}
    front = await nginx(await run(**ACCEL), **told)
    for path in ("/release/x?y=1", "/", "/.well-known/acme-challenge", "//evil.test/"):
        led = await ask(f"http://{redirect}{path}", headers={"Host": f"{ONE}:80"})
        assert (led.status, led["Location"]) == (301, f"https://{ONE}{path}")
    for base in (f"http://{redirect}", front.url):
        answer = await ask(f"{base}/.well-known/acme-challenge/token")
        assert (answer.status, answer.body) == (200, b"answer")
        for path in ("other", "..%2f..%2fsecret", "%2e%2e/%2e%2e/secret", ""):
            none = await ask(f"{base}/.well-known/acme-challenge/{path}")
            assert none.status in (301, 400, 403, 404), path
            assert b"secret" not in none.body.replace(b"/secret", b"")
    client = TlsClient(told)
    thumbnail = sim.catalogue.examples()["thumbnail"]
    # A miss, a hit, the app's own, an error of the app's, one of nginx's, shut.
    for path in (thumbnail, thumbnail, "/health", "/nothing", f"/{'a' * 9000}"):
        answer = await client.ask(f"https://{ONE}{path}")
        assert answer["Strict-Transport-Security"] == "max-age=2592000", path
        assert (await front.get(path))["Strict-Transport-Security"] == "", path


@pytest_twisted.ensureDeferred
async def test_operators_over_tls(run, nginx, certificates) -> None:
    """Over TLS operators are those of NGINX_OPERATORS, unless NGINX_TLS_OPERATORS says others or none."""
    write_pair(certificates, ONE)
    proxy = await run(**ACCEL)
    for more, status in (
        ({}, 200),
        ({"NGINX_OPERATORS": "192.0.2.1"}, 403),
        ({"NGINX_TLS_OPERATORS": "none"}, 403),
        ({"NGINX_OPERATORS": "192.0.2.1", "NGINX_TLS_OPERATORS": LOCAL}, 200),
    ):
        told = variables(certificates) | more
        front = await nginx(proxy, **told)
        # As the name is asked for by its address, no page of another site can.
        answer = await TlsClient(told).ask(f"https://{ONE}/metrics", Host="localhost")
        assert answer.status == status, more
        plain = await front.get("/metrics")
        assert plain.status == (403 if "NGINX_OPERATORS" in more else 200), more


BUILT = "configure arguments: --with-http_ssl_module --with-http_v2_module"


@pytest.mark.parametrize(
    ("version", "library", "http_2", "tickets", "ktls"),
    [
        ("1.18.0", "built with OpenSSL 1.1.1", "ssl http2 default_server", "off", False),
        ("1.20.2", "built with OpenSSL 3.0.2", "ssl http2 default_server", "off", False),
        ("1.22.1", "built with OpenSSL 3.0.2", "ssl http2 default_server", "off", True),
        ("1.24.0", "built with OpenSSL 1.1.1", "ssl http2 default_server", "on", False),
        ("1.31.3", "built with OpenSSL 3.5.0", "http2 on;", "on", True),
        ("1.31.3", "built with LibreSSL 4.0.0", "http2 on;", "on", False),
    ],
)
def test_what_an_nginx_can(
    tmp_path: Path,
    certificates: Path,
    *,
    version: str,
    library: str,
    http_2: str,
    tickets: str,
    ktls: bool,
) -> None:
    """Each version of nginx and OpenSSL gets the lines that it knows."""
    write_pair(certificates, ONE)
    program = tmp_path / "nginx"
    program.write_text(
        "#!/bin/sh\n"
        f"[ $1 != -v ] || {{ echo nginx version: nginx/{version} >&2; exit; }}\n"
        f"[ $1 != -V ] || echo '{library}\n{BUILT}' >&2\n"
    )
    program.chmod(0o755)
    run = tmp_path / "run"
    done = started(tmp_path, certificates, NGINX_BIN=str(program), NGINX_RUN_DIR=str(run))
    assert done.returncode == 0, done.stderr
    words = (run / "tls.conf").read_text()
    assert f"ssl_session_tickets {tickets};" in words
    assert ("Options KTLS" in words) is ktls
    servers = (run / "tls" / "servers.conf").read_text()
    assert http_2 in servers
    assert servers.count("http2") == servers.count(http_2)


def test_refused_at_the_start(tmp_path: Path, certificates: Path) -> None:
    """A folder that is not there, and an nginx without TLS, end the start in one line."""
    missing = started(tmp_path, tmp_path / "nothing")
    plain = tmp_path / "nginx"
    plain.write_text("#!/bin/sh\necho nginx version: nginx/1.31.0 >&2\n")
    plain.chmod(0o755)
    without = started(tmp_path, certificates, NGINX_BIN=str(plain))
    for done, why in ((missing, "no such folder"), (without, "can't speak TLS")):
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("start.sh: NGINX_TLS_CERTIFICATES=")
        assert why in line


def started(tmp_path: Path, certificates: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Have start.sh write a configuration and nginx look at it."""
    told = {"NGINX_BIN": find_nginx(), "NGINX_APP": f"{LOCAL}:1", **variables(certificates), **more}
    return subprocess.run(
        [str(START), "-t"],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), **told},
        capture_output=True,
        text=True,
        check=False,
    )
