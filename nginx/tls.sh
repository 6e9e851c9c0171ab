# TLS for start.sh, which reads this file: certificates from a folder, each with a name of its own.
#
# nginx gets copies of those pairs of certificate and key that it can use. So a pair that is broken,
# or half written, hinders neither a start nor the renewal of others: the former copy stays.

tls_begin() { # once nginx.conf is there
    TLS=$NGINX_RUN_DIR/tls
    case $built in
        *with-http_ssl_module*) ;;
        *) refuse "NGINX_TLS_CERTIFICATES=$NGINX_TLS_CERTIFICATES: $NGINX_BIN can't speak TLS" ;;
    esac
    [ -d "$NGINX_TLS_CERTIFICATES" ] ||
        refuse "NGINX_TLS_CERTIFICATES=$NGINX_TLS_CERTIFICATES: no such folder"
    rm -rf "$TLS"
    mkdir -m 700 "$TLS"
    tls_write "$TLS"
    tls_taken=$(tls_state)
    tls_seen=$tls_taken
    tls_take || echo "start.sh: no certificate in $NGINX_TLS_CERTIFICATES yet: https begins with the first" >&2
}
tls_names() { # of the pairs that are there: NAME.crt with NAME.key, one a line
    for certificate in "$NGINX_TLS_CERTIFICATES"/*.crt; do
        [ -e "${certificate%.crt}.key" ] || continue
        name=${certificate##*/}
        echo "${name%.crt}"
    done
}
tls_state() { # changes with the files
    tls_names
    cat "$NGINX_TLS_CERTIFICATES"/*.crt "$NGINX_TLS_CERTIFICATES"/*.key 2>/dev/null | cksum
}
tls_changed() { # whether other pairs are there, and have been since the last look
    now=$(tls_state)
    [ "$now" = "$tls_seen" ] && [ "$now" != "$tls_taken" ] && tls_taken=$now && return
    tls_seen=$now
    return 1
}
tls_take() { # whether there was a new pair that nginx can use
    found=1
    for name in $(tls_names); do
        # Nothing of the kind in the configuration's own language, nor a hidden file.
        case $name in
            .* | *[!A-Za-z0-9._-]*)
                echo "start.sh: $name.crt: no name of a host, is left out" >&2
                continue
                ;;
        esac
        rm -rf "$TLS.new"
        mkdir -m 700 "$TLS.new"
        for end in crt key; do
            (umask 077 && cat "$NGINX_TLS_CERTIFICATES/$name.$end" >"$TLS.new/$name.$end") || continue 2
        done
        cmp -s "$TLS.new/$name.crt" "$TLS/$name.crt" && cmp -s "$TLS.new/$name.key" "$TLS/$name.key" && continue
        tls_write "$TLS.new"
        sed "s|$TLS/servers|$TLS.new/servers|" "$NGINX_RUN_DIR/nginx.conf" >"$TLS.new/nginx.conf"
        if why=$(run_nginx "$TLS.new/nginx.conf" -t -q 2>&1); then
            mv "$TLS.new/$name.crt" "$TLS.new/$name.key" "$TLS"
            found=0
            echo "start.sh: $name.crt: taken" >&2
        else
            echo "start.sh: $name.crt: refused, nothing changes:" \
                "$(echo "$why" | sed -n 's/^.*\[emerg\] *\([0-9#]*: \)*//p' | head -n 1)" >&2
        fi
    done
    rm -rf "$TLS.new"
    tls_write "$TLS"
    return $found
}
tls_write() { # FOLDER: the servers of the pairs in it
    {
        # Who names no host, or an unknown one, gets the first.
        which=default_server
        for certificate in "$1"/*.crt; do
            [ -e "$certificate" ] || continue
            host=${certificate##*/}
            host=${host%.crt}
            # As ACME clients name the file of a wildcard.
            case $host in _.*) host="*${host#_}" ;; esac
            echo "server {"
            tls_listens "$which"
            echo "    server_name $host;"
            echo "    ssl_certificate $certificate;"
            echo "    ssl_certificate_key ${certificate%.crt}.key;"
            echo "    include $NGINX_RUN_DIR/site.conf;"
            echo "}"
            which=
        done
    } >"$1/servers.conf"
}
tls_listens() { # [default_server]
    # HTTP/2 where nginx has it; from 1.25.1 on not said with the address.
    of_the_address=ssl
    case $built in
        *with-http_v2_module*)
            [ "$version" -lt 1025001 ] && of_the_address="ssl http2" || echo "    http2 on;"
            ;;
    esac
    # The length of the queue belongs to the address and is said once.
    listens "$NGINX_TLS_LISTEN" "$of_the_address${1:+ $1 backlog=4096}" | sed 's/^/    /'
}
tls_words() { # TICKETS and KTLS of tls.conf
    # Before 1.23.2 the keys of tickets stay the same until a reload.
    [ "$version" -ge 1023002 ] && fill TICKETS on || fill TICKETS off
    # The kernel encrypts, where it can, so that files are sent without being read. It takes nginx
    # 1.21.4 and OpenSSL 3: others would take the line for an error.
    ktls=
    case $built in
        *"with OpenSSL "[3-9].*) [ "$version" -lt 1021004 ] || ktls="ssl_conf_command Options KTLS;" ;;
    esac
    fill KTLS "$ktls"
}
