#!/bin/sh
# ssh and psql to private services, by local ports: sh recipes/forwards.sh
# It ends when it is interrupted; use the ports from another terminal:
#
#   ssh -p 2222 -o HostKeyAlias=host1.testdom localhost
#   psql -h localhost -p 15432 mydb
#
# HostKeyAlias keeps the host keys of different instances apart, which all are "localhost".
exec whip forward \
  2222:host1.testdom:22 \
  15432:db1.testdom:5432 \
  --whip-external-tcp-address="${BROKER_NAME:-localhost}" \
  --tls-key-path=server-key.pem \
  --tls-cert-path=server-cert.pem \
  --tls-ca-cert-path=ca-cert.pem \
  --wait=30
