-- Times are Unix nanoseconds, 0 for none. Bodies are JSON; the columns beside
-- them repeat what is searched.

CREATE TABLE sandboxes (
	tenant   TEXT   NOT NULL,
	id       TEXT   NOT NULL,
	version  BIGINT NOT NULL,
	state    TEXT   NOT NULL,
	name     TEXT   NOT NULL,
	instance TEXT   NOT NULL,
	reason   TEXT   NOT NULL,
	created  BIGINT NOT NULL,
	expires  BIGINT NOT NULL,
	ended    BIGINT NOT NULL,
	body     TEXT   NOT NULL,
	PRIMARY KEY (tenant, id)
);
CREATE INDEX sandboxes_page ON sandboxes (tenant, created, id);
CREATE INDEX sandboxes_live ON sandboxes (tenant, created, id) WHERE state <> 'ended';
CREATE UNIQUE INDEX sandboxes_name ON sandboxes (tenant, name) WHERE name <> '' AND state <> 'ended';
CREATE UNIQUE INDEX sandboxes_instance ON sandboxes (instance) WHERE instance <> '';
CREATE INDEX sandboxes_expires ON sandboxes (expires) WHERE expires > 0 AND state <> 'ended';
CREATE INDEX sandboxes_ended ON sandboxes (ended) WHERE state = 'ended';

CREATE TABLE sandbox_metadata (
	tenant  TEXT NOT NULL,
	sandbox TEXT NOT NULL,
	name    TEXT NOT NULL,
	value   TEXT NOT NULL,
	PRIMARY KEY (tenant, sandbox, name)
);

CREATE TABLE runs (
	tenant  TEXT   NOT NULL,
	id      TEXT   NOT NULL,
	version BIGINT NOT NULL,
	state   TEXT   NOT NULL,
	sandbox TEXT   NOT NULL,
	created BIGINT NOT NULL,
	ended   BIGINT NOT NULL,
	body    TEXT   NOT NULL,
	PRIMARY KEY (tenant, id)
);
CREATE INDEX runs_page ON runs (tenant, created, id);
CREATE INDEX runs_open ON runs (created) WHERE state <> 'ended';
CREATE INDEX runs_ended ON runs (ended) WHERE state = 'ended';

CREATE TABLE idempotency (
	tenant  TEXT   NOT NULL,
	name    TEXT   NOT NULL,
	hash    TEXT   NOT NULL,
	result  TEXT   NOT NULL,
	owner   TEXT   NOT NULL,
	done    BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	PRIMARY KEY (tenant, name)
);
CREATE INDEX idempotency_expires ON idempotency (expires);

CREATE TABLE api_keys (
	tenant    TEXT   NOT NULL,
	id        TEXT   NOT NULL,
	name      TEXT   NOT NULL,
	hash      TEXT   NOT NULL,
	role      TEXT   NOT NULL,
	scopes    TEXT   NOT NULL,
	created   BIGINT NOT NULL,
	last_used BIGINT NOT NULL,
	expires   BIGINT NOT NULL,
	revoked   BIGINT NOT NULL,
	PRIMARY KEY (tenant, id)
);
CREATE UNIQUE INDEX api_keys_id ON api_keys (id);
