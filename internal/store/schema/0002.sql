-- Policies of where sandboxes may connect, by name. The text is as it was
-- written; digest is its SHA-256, in hex.

CREATE TABLE policies (
	tenant    TEXT   NOT NULL,
	name      TEXT   NOT NULL,
	version   BIGINT NOT NULL,
	digest    TEXT   NOT NULL,
	created   BIGINT NOT NULL,
	updated   BIGINT NOT NULL,
	principal TEXT   NOT NULL,
	body      TEXT   NOT NULL,
	PRIMARY KEY (tenant, name)
);
