-- The channel that one host listens on. A digest, because a name may be longer than a channel (63 bytes).
CREATE OR REPLACE FUNCTION cloud.host_channel(instance_name text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN 'host_' || encode(substr(sha256(convert_to(instance_name, 'UTF8')), 1, 16), 'hex');

-- Whether a host is changing rows of its own: it knows that itself. Every commit that notifies makes the server signal
-- every session that listens, whatever it listens to, so among hundreds of hosts a notification saved is worth a lot.
CREATE OR REPLACE FUNCTION cloud.is_own_change(instance_name text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(current_setting('cloud.own_change', true), '') = instance_name;

-- Wakes the hosts that a changed row concerns, once each per transaction. The payload, which nobody relies on, is for
-- people who listen in; it is cut, so that no name of whatever length (8000 bytes is the limit) can stop a change.
CREATE OR REPLACE FUNCTION cloud.wake_host() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM pg_notify(cloud.host_channel(OLD.instance_name), left(OLD.instance_name, 128));
    END IF;
    IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND NEW.instance_name <> OLD.instance_name THEN
        PERFORM pg_notify(cloud.host_channel(NEW.instance_name), left(NEW.instance_name, 128));
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS wake_host ON cloud.mandelbox_info;
CREATE TRIGGER wake_host AFTER INSERT ON cloud.mandelbox_info
    FOR EACH ROW EXECUTE FUNCTION cloud.wake_host();

DROP TRIGGER IF EXISTS wake_host_changed ON cloud.mandelbox_info;
CREATE TRIGGER wake_host_changed AFTER UPDATE ON cloud.mandelbox_info
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.* AND NOT cloud.is_own_change(NEW.instance_name))
    EXECUTE FUNCTION cloud.wake_host();

DROP TRIGGER IF EXISTS wake_host_removed ON cloud.mandelbox_info;
CREATE TRIGGER wake_host_removed AFTER DELETE ON cloud.mandelbox_info
    FOR EACH ROW WHEN (NOT cloud.is_own_change(OLD.instance_name))
    EXECUTE FUNCTION cloud.wake_host();

DROP TRIGGER IF EXISTS wake_host ON cloud.instance_info;
CREATE TRIGGER wake_host AFTER INSERT OR DELETE ON cloud.instance_info
    FOR EACH ROW EXECUTE FUNCTION cloud.wake_host();

-- A heartbeat wakes nobody.
DROP TRIGGER IF EXISTS wake_host_changed ON cloud.instance_info;
CREATE TRIGGER wake_host_changed AFTER UPDATE ON cloud.instance_info
    FOR EACH ROW WHEN (OLD.status <> NEW.status OR OLD.instance_name <> NEW.instance_name)
    EXECUTE FUNCTION cloud.wake_host();

-- idle_since_utc_unix_ms.
CREATE OR REPLACE FUNCTION cloud.began_draining() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.idle_since_utc_unix_ms := extract(epoch FROM clock_timestamp()) * 1000;
    RETURN NEW;
END $$;

DROP TRIGGER IF EXISTS began_draining ON cloud.instance_info;
CREATE TRIGGER began_draining BEFORE UPDATE ON cloud.instance_info
    FOR EACH ROW WHEN (NEW.status = 'DRAINING' AND OLD.status <> 'DRAINING')
    EXECUTE FUNCTION cloud.began_draining();

CREATE OR REPLACE FUNCTION cloud.lost_mandelbox() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE cloud.instance_info SET idle_since_utc_unix_ms = extract(epoch FROM clock_timestamp()) * 1000
    WHERE instance_name = OLD.instance_name AND status = 'DRAINING';
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS lost_mandelbox ON cloud.mandelbox_info;
CREATE TRIGGER lost_mandelbox AFTER DELETE ON cloud.mandelbox_info
    FOR EACH ROW EXECUTE FUNCTION cloud.lost_mandelbox();
