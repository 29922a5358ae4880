-- Secrets: encrypted, as the broker sealed them, or where they are. Never in the
-- clear. Bindings: what a secret may be used for; the columns beside the body, which
-- is JSON, repeat what is searched.

CREATE TABLE secrets (
	tenant    TEXT   NOT NULL,
	name      TEXT   NOT NULL,
	version   BIGINT NOT NULL,
	created   BIGINT NOT NULL,
	updated   BIGINT NOT NULL,
	principal TEXT   NOT NULL,
	reference TEXT   NOT NULL,
	sealed    TEXT   NOT NULL,
	PRIMARY KEY (tenant, name)
);

CREATE TABLE bindings (
	tenant    TEXT   NOT NULL,
	name      TEXT   NOT NULL,
	secret    TEXT   NOT NULL,
	version   BIGINT NOT NULL,
	created   BIGINT NOT NULL,
	updated   BIGINT NOT NULL,
	principal TEXT   NOT NULL,
	body      TEXT   NOT NULL,
	PRIMARY KEY (tenant, name)
);
CREATE INDEX bindings_secret ON bindings (tenant, secret);
