-- Snapshots of sandboxes: whose they are, and what their files have to be. The
-- columns beside the body, which is JSON, repeat what is searched.

CREATE TABLE snapshots (
	tenant  TEXT   NOT NULL,
	id      TEXT   NOT NULL,
	name    TEXT   NOT NULL,
	sandbox TEXT   NOT NULL,
	created BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	size    BIGINT NOT NULL,
	body    TEXT   NOT NULL,
	PRIMARY KEY (tenant, id)
);
CREATE UNIQUE INDEX snapshots_name ON snapshots (tenant, name) WHERE name <> '';
CREATE INDEX snapshots_expires ON snapshots (expires) WHERE expires > 0;
