#!/bin/sh
# Print the Secrets that the manifests name, with new random values: `sh k8s/secrets.sh | kubectl apply -f -`.
# With --tls, also create a private certificate authority and a certificate for Redis, for the component `tls`.
# Files are written only to a private temporary folder. Each call generates new values: restart the pods afterwards.
set -eu
umask 077
namespace=nightshift
scheme=redis
authority=
case "${1:-}" in
  --tls) scheme=rediss authority='?ssl_ca_certs=/run/secrets/redis-ca/ca.crt' ;;
  "") ;;
  *) echo "usage: sh k8s/secrets.sh [--tls]" >&2; exit 2 ;;
esac

sha256() { printf %s "$1" | openssl dgst -sha256 -r | cut -d ' ' -f 1; }

password=$(openssl rand -hex 32)
scaler=$(openssl rand -hex 32)
viewer=$(openssl rand -hex 32)
token=$(openssl rand -hex 32)
sight=$(openssl rand -hex 12)

cat <<YAML
apiVersion: v1
kind: Secret
metadata: {name: ray-token, namespace: $namespace}
stringData:
  auth_token: "$token"
---
apiVersion: v1
kind: Secret
metadata: {name: redis, namespace: $namespace}
stringData:
  url: "$scheme://nightshift:$password@redis:6379/0"
  scaler-username: scaler
  scaler-password: "$scaler"
  viewer-url: "$scheme://viewer:$viewer@redis:6379/0$authority"
  users.acl: |
    user default off
    user nightshift on #$(sha256 "$password") ~rq:* ~nightshift:* &rq:* &nightshift:* +@all -@admin -@dangerous +info +client|list +client|kill
    user scaler on #$(sha256 "$scaler") ~rq:queue:nightshift-* resetchannels -@all +@connection +eval +evalsha +script|load +type +llen
    user viewer on #$(sha256 "$viewer") ~rq:* resetchannels -@all +@read +@connection -@dangerous +info +time
    user probe on nopass resetkeys resetchannels -@all +ping
---
apiVersion: v1
kind: Secret
metadata: {name: webhook, namespace: $namespace}
stringData: # the key with which --notify signs its messages; the receiver needs it too
  secret: "$(openssl rand -hex 32)"
---
apiVersion: v1
kind: Secret
metadata: {name: dashboard, namespace: $namespace}
stringData: # user "nightshift"; read the password with kubectl get secret dashboard -o jsonpath={.data.password} | base64 -d
  password: "$sight"
  htpasswd: "nightshift:$(printf %s "$sight" | openssl passwd -apr1 -stdin)"
  ray-header.conf: 'proxy_set_header x-ray-authorization "Bearer $token";'
YAML
[ "$scheme" = rediss ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
names=subjectAltName=DNS:redis,DNS:redis.$namespace,DNS:redis.$namespace.svc,DNS:redis.$namespace.svc.cluster.local,DNS:localhost
curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256"
openssl req -x509 $curve -days 3650 -subj /CN=nightshift-ca -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt 2>/dev/null
openssl req $curve -subj /CN=redis -addext "$names" -keyout tls.key -out tls.csr 2>/dev/null
printf '%s\n' "$names" extendedKeyUsage=serverAuth keyUsage=critical,digitalSignature > extensions
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -sha256 -extfile extensions -out tls.crt 2>/dev/null
echo ---
echo "apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata: {name: redis-tls, namespace: $namespace}
stringData:"
for file in ca.crt tls.crt tls.key; do
  echo "  $file: |"
  sed 's/^/    /' "$file"
done
