INSERT INTO sandboxes (tenant, id, version, state, name, instance, reason, created, expires, ended, body) VALUES
 ('acme', 'sbaaaaaaaaaaaaaaaaaa', 4, 'ended', 'web', 'inaaaaaaaaaaaaaaaaaa', 'memory', 1767323045000000678, 0, 1767323046000000000,
  '{"id":"sbaaaaaaaaaaaaaaaaaa","tenant":"acme","instance":"inaaaaaaaaaaaaaaaaaa","name":"web","state":"ended","reason":"memory","isolation":2,"metadata":{"team":"red"},"limits":{"Memory":67108864,"CPUs":0.5,"PIDs":128,"Disk":1073741824},"explicit":1,"enforced":15,"max_life":3600000000000,"created":"2026-01-02T03:04:05.000000678Z","ended":"2026-01-02T03:04:06Z","receipt":{"Instance":"inaaaaaaaaaaaaaaaaaa","Objects":[{"Kind":"mount","Name":"/x","Gone":true,"Detail":""}],"Clean":true,"Time":"2026-01-02T03:04:06Z"}}');
INSERT INTO sandbox_metadata (tenant, sandbox, name, value) VALUES ('acme', 'sbaaaaaaaaaaaaaaaaaa', 'team', 'red');
INSERT INTO runs (tenant, id, version, state, sandbox, created, ended, body) VALUES
 ('acme', 'rnaaaaaaaaaaaaaaaaaa', 2, 'ended', 'sbaaaaaaaaaaaaaaaaaa', 1767323045000000678, 1767323046000000000,
  '{"id":"rnaaaaaaaaaaaaaaaaaa","tenant":"acme","sandbox":"sbaaaaaaaaaaaaaaaaaa","state":"ended","exit_code":3,"created":"2026-01-02T03:04:05.000000678Z","ended":"2026-01-02T03:04:06Z"}');
INSERT INTO idempotency (tenant, name, hash, result, owner, done, expires) VALUES ('acme', 'key', 'aa', 'sbaaaaaaaaaaaaaaaaaa', 'x', 1, 4102444800000000000);
INSERT INTO api_keys (tenant, id, name, hash, role, scopes, created, last_used, expires, revoked) VALUES
 ('acme', 'k1', 'ci', '000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f', 'admin', 'exec files:read', 1767323045000000678, 0, 0, 0);
INSERT INTO policies (tenant, name, version, digest, created, updated, principal, body) VALUES
 ('acme', 'build', 3, '67dcb214c8cf1c37ca5c2cd5e02a2f048e1287d334feaa5c9768903524d322dd', 1767323045000000678, 1767323046000000000, 'k1', 'allow: [example.com]');
INSERT INTO secrets (tenant, name, version, created, updated, principal, reference, sealed) VALUES
 ('acme', 'openai', 2, 1767323045000000678, 1767323046000000000, 'k1', '', 'sealed'),
 ('acme', 'vault', 1, 1767323045000000678, 1767323045000000678, 'k1', 'file:/run/secrets/vault', '');
INSERT INTO bindings (tenant, name, secret, version, created, updated, principal, body) VALUES
 ('acme', 'api', 'openai', 3, 1767323045000000678, 1767323046000000000, 'k1', '{"name":"api","secret":"openai","host":"api.example.com","port":443,"path":"/v1","inject":{"as":"bearer"},"tier":"user-kernel"}');
INSERT INTO snapshots (tenant, id, name, sandbox, created, expires, size, body) VALUES
 ('acme', 'snaaaaaaaaaaaaaaaaaa', 'warm', 'sbaaaaaaaaaaaaaaaaaa', 1767323045000000678, 4102444800000000000, 13631488, '{"digest":"sha256:00"}');
