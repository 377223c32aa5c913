#!/bin/sh
# Start nginx with what it cannot know before: Ray's token, the pod's DNS server, and the head's full name, because nginx
# ignores the search list. Both are read from /etc/resolv.conf, since their names differ between Kubernetes distributions.
set -eu
umask 077
printf 'proxy_set_header x-ray-authorization "%s %s";\n' Bearer "$(cat /run/secrets/ray/auth_token)" > /tmp/ray-header.conf
awk '
  $1 == "nameserver" && !server { server = $2 ~ /:/ ? "[" $2 "]" : $2 }
  $1 == "search" && !domain { for (i = 2; i <= NF && !domain; i++) if ($i ~ /^[^.]+[.]svc[.]/) domain = $i }
  END {
    if (!server || !domain) { print "/etc/resolv.conf has no nameserver or no search domain NAMESPACE.svc.DOMAIN" > "/dev/stderr"; exit 1 }
    printf "resolver %s valid=10s;\nset $head ray-head-svc.%s:8265;\n", server, domain
  }' /etc/resolv.conf > /tmp/ray-head.conf
exec nginx -c /etc/dashboard/nginx.conf -g 'daemon off;'
