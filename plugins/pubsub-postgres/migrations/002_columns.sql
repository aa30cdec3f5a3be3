-- What runs in the mandelbox, where the control plane says so.
ALTER TABLE cloud.mandelbox_info ADD COLUMN IF NOT EXISTS app character varying;

-- Since when a draining host has had nothing to do: when it began to drain, or lost its last mandelbox while draining.
ALTER TABLE cloud.instance_info ADD COLUMN IF NOT EXISTS idle_since_utc_unix_ms bigint;

-- Every read of a host, every deleted host and every allocation looks mandelboxes up by their host.
CREATE INDEX IF NOT EXISTS mandelbox_info_instance_name ON cloud.mandelbox_info (instance_name);
