-- Views that the original system made itself stay as they are: others depend on their columns.
DO $$
BEGIN
    IF to_regclass('cloud.instances_with_room_for_mandelboxes') IS NULL THEN
        CREATE VIEW cloud.instances_with_room_for_mandelboxes AS
        SELECT i.instance_name, i.ip, i.location, i.aws_ami_id, i.aws_instance_type, i.commit_hash, i.status,
               i.mandelbox_capacity, count(m.mandelbox_id) AS num_running_mandelboxes
        FROM cloud.instance_info i
        LEFT JOIN cloud.mandelbox_info m ON m.instance_name = i.instance_name
        WHERE i.status NOT IN ('DRAINING', 'HOST_SERVICE_UNRESPONSIVE')
        GROUP BY i.instance_name
        HAVING count(m.mandelbox_id) < i.mandelbox_capacity
        ORDER BY count(m.mandelbox_id) DESC, i.instance_name;
    END IF;

    -- Hosts that somebody should look after: silent for 2 minutes; draining and empty for 2 minutes, but not gone;
    -- asked for 15 minutes ago and never come up.
    IF to_regclass('cloud.lingering_instances') IS NULL THEN
        CREATE VIEW cloud.lingering_instances AS
        SELECT i.instance_name, i.cloud_provider_id, i.location, i.status, i.last_updated_utc_unix_ms
        FROM cloud.instance_info i,
             LATERAL (SELECT extract(epoch FROM clock_timestamp()) * 1000 AS ms) now
        WHERE i.status <> 'PRE_CONNECTION' AND i.last_updated_utc_unix_ms < now.ms - 120000
           OR i.status = 'PRE_CONNECTION' AND i.creation_time_utc_unix_ms < now.ms - 900000
           OR i.status = 'DRAINING' AND coalesce(i.idle_since_utc_unix_ms, 0) < now.ms - 120000
              AND NOT EXISTS (SELECT FROM cloud.mandelbox_info m WHERE m.instance_name = i.instance_name);
    END IF;
END $$;
