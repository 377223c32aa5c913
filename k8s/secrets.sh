#!/bin/sh
# Print the Secrets that the manifests name, with new random values: `sh k8s/secrets.sh | kubectl apply -f -`.
#   --namespace NAME  the namespace; by default nightshift
#   --only SECRET     this Secret only, to replace one and keep the others: ray-token, redis, webhook, dashboard or redis-tls
#   --tls             TLS for Redis (component `tls`): rediss:// addresses, and redis-tls, a private certificate authority and a
#                     certificate. A cluster with TLS needs it for `--only redis` too.
# Files are written only to a private temporary folder. The pods read new values when they restart: see README.md.
set -eu
umask 077
namespace=nightshift
scheme=redis
authority=
only=
usage() { echo "usage: sh k8s/secrets.sh [--namespace NAME] [--only ray-token|redis|webhook|dashboard|redis-tls] [--tls]" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case "$1" in
    --tls) scheme=rediss authority='?ssl_ca_certs=/run/secrets/redis-ca/ca.crt' ;;
    --namespace) [ $# -gt 1 ] || usage; shift; namespace=$1 ;;
    --only) [ $# -gt 1 ] || usage; shift; only=$1 ;;
    *) usage ;;
  esac
  shift
done
case "$namespace" in "" | -* | *- | *[!a-z0-9-]*) echo "--namespace $namespace is not a name of a namespace; write small letters, digits and -" >&2; exit 2 ;; esac
case "$only" in
  "" | ray-token | redis | webhook | dashboard) ;;
  redis-tls) [ "$scheme" = rediss ] || { echo "--only redis-tls needs --tls; add it" >&2; exit 2; } ;;
  *) usage ;;
esac

command -v openssl > /dev/null || { echo "openssl is not installed; install it" >&2; exit 1; }
sha256() { printf %s "$1" | openssl dgst -sha256 -r | cut -d ' ' -f 1; }
random() { openssl rand -hex 32; }
# wanted NAME [TYPE]: begin the Secret NAME if it is to be printed.
wanted() {
  [ -z "$only" ] || [ "$only" = "$1" ] || return 1
  printf -- '---\napiVersion: v1\nkind: Secret\n%smetadata: {name: %s, namespace: %s}\nstringData:\n' "${2:-}" "$1" "$namespace"
}

if wanted ray-token; then
  token=$(random)
  echo "  auth_token: \"$token\""
fi

if wanted redis; then
  password=$(random) scaler=$(random) viewer=$(random) ray=$(random)
  cat <<YAML
  url: "$scheme://nightshift:$password@redis:6379/0"
  scaler-address: "redis.$namespace.svc:6379"
  scaler-username: scaler
  scaler-password: "$scaler"
  viewer-url: "$scheme://viewer:$viewer@redis:6379/0$authority"
  ray-password: "$ray"
  users.acl: |
    user default off
    user nightshift on #$(sha256 "$password") ~rq:* ~nightshift:* &rq:* &nightshift:* +@all -@admin -@dangerous +info +client|list +client|kill
    user scaler on #$(sha256 "$scaler") ~rq:queue:nightshift-* resetchannels -@all +@connection +eval +evalsha +script|load +type +llen
    user viewer on #$(sha256 "$viewer") ~rq:* resetchannels -@all +@read +@connection -@dangerous +info +time
    user ray on #$(sha256 "$ray") ~RAY* ~DUMMY resetchannels -@all +@read +@write +@connection -@dangerous +info
    user probe on nopass resetkeys resetchannels -@all +ping
YAML
fi

if wanted webhook; then # the key with which --notify signs its messages; the receiver needs it too
  key=$(random)
  echo "  secret: \"$key\""
fi

if wanted dashboard; then # user "nightshift"; read the password with kubectl get secret dashboard -o jsonpath={.data.password} | base64 -d
  password=$(openssl rand -hex 12)
  cat <<YAML
  password: "$password"
  htpasswd: "nightshift:$(printf %s "$password" | openssl passwd -apr1 -stdin)"
YAML
fi

[ "$scheme" = rediss ] || exit 0
[ -z "$only" ] || [ "$only" = redis-tls ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
names=subjectAltName=DNS:redis,DNS:redis.$namespace,DNS:redis.$namespace.svc,DNS:redis.$namespace.svc.cluster.local,DNS:localhost
curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256"
openssl req -x509 $curve -days 3650 -subj /CN=nightshift-ca -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt 2>/dev/null
openssl req $curve -subj /CN=redis -addext "$names" -keyout tls.key -out tls.csr 2>/dev/null
printf '%s\n' "$names" extendedKeyUsage=serverAuth keyUsage=critical,digitalSignature > extensions
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -sha256 -extfile extensions -out tls.crt 2>/dev/null
wanted redis-tls 'type: kubernetes.io/tls
'
for file in ca.crt tls.crt tls.key; do
  echo "  $file: |"
  sed 's/^/    /' "$file"
done
