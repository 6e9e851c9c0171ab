#!/bin/sh
# Fills in nginx.conf and site.conf from the environment and becomes nginx.
#
# NGINX_APP        host:port of the app; the name may have many addresses, and others later
# NGINX_APPS       several of them, with commas between them, in place of NGINX_APP
# NGINX_CACHE_DIR  the cache directory as nginx sees it
# Arguments are passed on to nginx: -t looks at the configuration and ends.
# The rest has defaults, below. COVER_ART_… are the settings of the same names of the app.
set -eu

HERE=$(cd "$(dirname "$0")" && pwd)
NGINX_BIN=${NGINX_BIN:-nginx}
NGINX_APPS=${NGINX_APPS:-${NGINX_APP:-app:8080}}
NGINX_CACHE_DIR=${NGINX_CACHE_DIR:-/opt/cover-art-cache}
# Addresses and ports, with commas between them; a port alone means all of IPv4 and IPv6.
NGINX_LISTEN=${NGINX_LISTEN:-8080}
# A folder with NAME.crt (and what the authority sent along) and NAME.key for each name, which may be
# renewed, and more of them come, at any time. None: no TLS.
NGINX_TLS_CERTIFICATES=${NGINX_TLS_CERTIFICATES:-}
NGINX_TLS_LISTEN=${NGINX_TLS_LISTEN:-8443}
# Plain HTTP that only leads to https, which is then all that browsers are to use (HSTS). None: no such.
NGINX_REDIRECT_LISTEN=${NGINX_REDIRECT_LISTEN:-}
# The folder of an ACME client's answers (its "webroot"), given over plain HTTP.
NGINX_ACME_CHALLENGES=${NGINX_ACME_CHALLENGES:-}
# auto: one for each processor of the machine, also of those that a container may not use.
NGINX_WORKERS=${NGINX_WORKERS:-auto}
# Where the configuration and the pid are written; a new folder if not said.
NGINX_RUN_DIR=${NGINX_RUN_DIR:-}
NGINX_HIT_LOG=${NGINX_HIT_LOG:-${COVER_ART_HIT_LOG:-/dev/null}}
# /dev/null or off: none.
NGINX_ACCESS_LOG=${NGINX_ACCESS_LOG:-/dev/stdout}
# on: direct hits are written to the access log too.
NGINX_LOG_HITS=${NGINX_LOG_HITS:-off}
# Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, with commas between them.
NGINX_TRUSTED_PROXIES=${NGINX_TRUSTED_PROXIES:-}
# Who may see /metrics and /cache-status and use /admin: private networks.
NGINX_OPERATORS=${NGINX_OPERATORS:-127.0.0.0/8,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7,fe80::/10}
# The same over TLS; none: nobody there.
NGINX_TLS_OPERATORS=${NGINX_TLS_OPERATORS:-$NGINX_OPERATORS}
# Whose rights the workers have when nginx is started by root; nginx's own choice if not said.
NGINX_USER=${NGINX_USER:-}
# Asked for the app's addresses; the system's own if not said.
NGINX_RESOLVER=${NGINX_RESOLVER:-$(sed -n 's/^nameserver  *\([^ ]*\).*/\1/p' /etc/resolv.conf | head -n 1)}
ALIAS_TTL=${COVER_ART_ALIAS_TTL:-86400}
UPSTREAM_TIMEOUT=${COVER_ART_UPSTREAM_TIMEOUT:-60}
ACCEL=${COVER_ART_ACCEL:-/cache-files/}

case $NGINX_RESOLVER in *:*:*) NGINX_RESOLVER="[${NGINX_RESOLVER%%%*}]" ;; esac
case ${COVER_ART_IMAGE_MODE:-serve} in
    # A front or back is answered with a redirect, which only the app can give, except below /serve.
    redirect) DIRECT_PREFIX='(?<serve>/serve)?' DIRECT_NAMES='[1-9][0-9]{0,17}|(?(<serve>)(?:front|back)|(?!))' ;;
    *) DIRECT_PREFIX='(?:/serve)?' DIRECT_NAMES='front|back|[1-9][0-9]{0,17}' ;;
esac
# nginx wants the same words wherever the same file is named, and the hit log may be /dev/null too.
case $NGINX_ACCESS_LOG in
    /dev/null | off) ACCESS_LOG=off NGINX_LOG_HITS=off ;;
    *) ACCESS_LOG="$NGINX_ACCESS_LOG access buffer=16k flush=1s" ;;
esac
case $NGINX_LOG_HITS in
    on) ACCESS_LOG_OF_HITS="access_log $ACCESS_LOG;" ;;
    *) ACCESS_LOG_OF_HITS='' ;;
esac

# A quarter of the descriptors is for files that are kept open. Of the rest a connection takes two
# at most: the client's and a file or the app's.
FILES=$(ulimit -Hn)
[ "$FILES" != unlimited ] && [ "$FILES" -lt 32768 ] || FILES=32768
OPEN_FILES=$((FILES / 4))
CONNECTIONS=$(((FILES - OPEN_FILES) / 2))
# No client fills more than half of one worker.
OF_A_CLIENT=$((CONNECTIONS / 2))
[ "$OF_A_CLIENT" -lt 512 ] || OF_A_CLIENT=512

refuse() { # WHY
    echo "start.sh: $1" >&2
    exit 1
}
own() { # VARIABLE FOLDER: make it; end if somebody else could write there, or lead it elsewhere
    mkdir -p "$2" || refuse "$1=$2: can't be made"
    # By its bare name: with a slash behind it a symlink is the folder it leads to.
    [ ! -h "${2%"${2##*[!/]}"}" ] || refuse "$1=$2: is a symlink; name the folder itself"
    [ -O "$2" ] || refuse "$1=$2: belongs to another user; name a folder of your own, or none"
    case $(ls -ld "$2") in
        d???????w*) refuse "$1=$2: anybody may write there; name a folder of your own, or none" ;;
    esac
}
umask 022
if [ -z "$NGINX_RUN_DIR" ]; then
    # New each time: a name that is known beforehand could be taken by any local user.
    NGINX_RUN_DIR=$(mktemp -d "${TMPDIR:-/tmp}/coverart-nginx.XXXXXX")
    # The workers' user has to get through.
    chmod 711 "$NGINX_RUN_DIR"
fi
NGINX_TEMP_DIR=${NGINX_TEMP_DIR:-$NGINX_RUN_DIR}
own NGINX_RUN_DIR "$NGINX_RUN_DIR"
own NGINX_TEMP_DIR "$NGINX_TEMP_DIR"

listens() { # ADDRESSES WORDS: a line for each address
    for listen in $(echo "$1" | tr ',' ' '); do
        echo "listen $listen $2;"
        # A port alone is IPv4 to nginx. Without IPv6 in the kernel its addresses can't be listened on.
        case $listen in *[!0-9]*) continue ;; esac
        [ ! -d /proc/net ] || [ -e /proc/net/if_inet6 ] || continue
        echo "listen [::]:$listen $2;"
    done
}
fill() { # WORD VALUE: one sed command
    printf 's|@%s@|%s|g\n' "$1" "$(printf '%s' "$2" | sed 's/[&|\\]/\\&/g')"
}
version=$("$NGINX_BIN" -v 2>&1 | sed -n 's|.*nginx/\([0-9]*\)\.\([0-9]*\)\.\([0-9]*\).*|\1 \2 \3|p')
version=$(printf '%d%03d%03d' ${version:-0 0 0})
built=$("$NGINX_BIN" -V 2>&1) || built=
run_nginx() { # CONFIGURATION ARGUMENTS...
    conf=$1
    shift
    # Before 1.19.5 it can't be told, and complains if it may not write where it was built to.
    [ "$version" -lt 1019005 ] || set -- -e stderr "$@"
    ${become:-} "$NGINX_BIN" -p "$NGINX_RUN_DIR" -c "$conf" -g "daemon off; ${NGINX_USER:+user $NGINX_USER;}" "$@"
}
. "$HERE/tls.sh"
{
    fill HERE "$HERE"
    fill RUN_DIR "$NGINX_RUN_DIR"
    fill TEMP_DIR "$NGINX_TEMP_DIR"
    fill CACHE_DIR "$NGINX_CACHE_DIR"
    fill WORKERS "$NGINX_WORKERS"
    fill FILES "$FILES"
    fill OPEN_FILES "$OPEN_FILES"
    fill CONNECTIONS "$CONNECTIONS"
    fill OF_A_CLIENT "$OF_A_CLIENT"
    fill LISTEN "$(listens "$NGINX_LISTEN" "default_server backlog=4096" | tr '\n' ' ')"
    fill HIT_LOG "$NGINX_HIT_LOG"
    fill ACCESS_LOG "$ACCESS_LOG"
    fill ACCESS_LOG_OF_HITS "$ACCESS_LOG_OF_HITS"
    fill DIRECT_PREFIX "$DIRECT_PREFIX"
    fill DIRECT_NAMES "$DIRECT_NAMES"
    fill ALIAS_TTL "${ALIAS_TTL%.*}"
    fill UPSTREAM_TIMEOUT "${UPSTREAM_TIMEOUT%.*}"
    fill ACCEL "$ACCEL"
    fill TLS "${NGINX_TLS_CERTIFICATES:+include $NGINX_RUN_DIR/tls.conf; include $NGINX_RUN_DIR/tls/servers.conf;}"
    fill REDIRECT "${NGINX_REDIRECT_LISTEN:+include $NGINX_RUN_DIR/redirect.conf;}"
    fill REDIRECT_LISTENS "$(listens "$NGINX_REDIRECT_LISTEN" "default_server backlog=4096" | tr '\n' ' ')"
    fill CHALLENGES "${NGINX_ACME_CHALLENGES:+include $NGINX_RUN_DIR/challenges.conf;}"
    fill ACME_CHALLENGES "$NGINX_ACME_CHALLENGES"
    fill HSTS "${NGINX_REDIRECT_LISTEN:+add_header Strict-Transport-Security \$hsts always;}"
    tls_words
} >"$NGINX_RUN_DIR/words.sed"
for template in nginx.conf site.conf tls.conf redirect.conf challenges.conf; do
    sed -f "$NGINX_RUN_DIR/words.sed" "$HERE/$template" >"$NGINX_RUN_DIR/$template"
done

{
    near() { # VARIABLE NETWORKS
        echo "geo \$$1 {"
        echo "    default 0;"
        for network in $(echo "$2" | tr ',' ' '); do echo "    $network 1;"; done
        echo "}"
    }
    near near_plain "$NGINX_OPERATORS"
    near near_tls "${NGINX_TLS_OPERATORS#none}"
    echo "map \$https \$near { default \$near_plain; on \$near_tls; }"
    echo "geo \$realip_remote_addr \$by_a_proxy {"
    echo "    default 0;"
    for network in $(echo "$NGINX_TRUSTED_PROXIES" | tr ',' ' '); do
        # set_real_ip_from takes names too.
        case $network in *[!0-9a-fA-F.:/]*) ;; *) echo "    $network 1;" ;; esac
    done
    echo "}"
    for network in $(echo "$NGINX_TRUSTED_PROXIES" | tr ',' ' '); do echo "set_real_ip_from $network;"; done
} >"$NGINX_RUN_DIR/addresses.conf"

upstream() { # the lines that say where the app is
    echo "upstream coverart_app {"
    echo "    zone coverart_app 256k;"
    # Those who wait for the same cover wait at the same process, which sends it as it arrives.
    echo "    hash \$uri consistent;"
    cat
    # Less than the app keeps an idle connection.
    echo "    keepalive 64;"
    echo "    keepalive_timeout 30s;"
    echo "}"
}
apps() { # one a line
    echo "$NGINX_APPS" | tr ', ' '\n\n' | sed '/^$/d'
}
addresses() { # what the apps' names mean now, a server line each
    for app in $(apps); do
        host=${app%:*}
        host=${host#[}
        getent ahosts "${host%]}" | sed -n "s/^\([^ ]*\) *STREAM.*/\1/p" | sort -u |
            sed "s/.*:.*/[&]/; s/.*/    server &:${app##*:} max_fails=1 fail_timeout=2s;/"
    done
}
moved() { # whether the apps' names mean something else
    [ -z "$nginx_looks" ] || return 1
    now=$(addresses)
    [ -n "$now" ] && [ "$now" != "$known" ] || return 1
    known=$now
    echo "$known" | upstream >"$NGINX_RUN_DIR/upstream.conf.new"
    mv "$NGINX_RUN_DIR/upstream.conf.new" "$NGINX_RUN_DIR/upstream.conf"
}
follow() { # PID: reload when something else is to be used
    while sleep 2 && kill -0 "$1" 2>/dev/null; do
        reload=
        ! moved || reload=1
        [ -z "$NGINX_TLS_CERTIFICATES" ] || ! tls_changed || ! tls_take || reload=1
        [ -z "$reload" ] || kill -HUP "$1"
    done
}

nginx_looks=
if [ "$version" -ge 1027003 ]; then
    # From 1.27.3 on nginx itself looks again where the name leads.
    nginx_looks=1
    {
        echo "resolver $NGINX_RESOLVER valid=5s;"
        apps | sed 's/.*/    server & resolve max_fails=1 fail_timeout=2s;/' | upstream
    } >"$NGINX_RUN_DIR/upstream.conf"
else
    known=$(addresses)
    # Without any app what is on the disk can be sent all the same.
    echo "${known:-    server 127.0.0.1:1;}" | upstream >"$NGINX_RUN_DIR/upstream.conf"
fi
[ -z "$NGINX_TLS_CERTIFICATES" ] || tls_begin

# Not beside a mere look (-t).
if [ $# -gt 0 ]; then
    :
elif [ -n "$NGINX_TLS_CERTIFICATES" ]; then
    follow $$ >/dev/null &
elif [ -z "$nginx_looks" ]; then
    # It has nothing to say: who waits for the end of nginx's output waits for nginx alone.
    follow $$ >/dev/null 2>&1 &
fi

become=exec
run_nginx "$NGINX_RUN_DIR/nginx.conf" "$@"
