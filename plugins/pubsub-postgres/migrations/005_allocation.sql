-- Allocates a mandelbox on the fullest active host of the region that has room, and returns it with the address of its
-- host. No row: nobody has room. `app` is null where the host's default is wanted.
--
-- The host's row is locked first and its mandelboxes are counted afterwards, in a statement, and thus a snapshot, of
-- its own: what anybody allocated before is counted, and nobody allocates meanwhile. Hosts that others are allocating
-- on are skipped; only when nothing else is left is one of them waited for.
CREATE OR REPLACE FUNCTION cloud.allocate_mandelbox(
    user_id character varying, region character varying, app character varying, session_id character varying
) RETURNS TABLE (mandelbox_id character varying, instance_name character varying, ip character varying)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    candidate record;
    busy character varying;
    host record;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'cloud.allocate_mandelbox needs READ COMMITTED: it must see what others have just allocated'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    LOOP
        busy := NULL;
        FOR candidate IN
            SELECT i.instance_name FROM cloud.instance_info i
            LEFT JOIN cloud.mandelbox_info m ON m.instance_name = i.instance_name
            WHERE i.status = 'ACTIVE' AND i.location = region
            GROUP BY i.instance_name
            HAVING count(m.mandelbox_id) < i.mandelbox_capacity
            ORDER BY count(m.mandelbox_id) DESC, i.instance_name
        LOOP
            SELECT i.* INTO host FROM cloud.instance_info i
                WHERE i.instance_name = candidate.instance_name FOR UPDATE SKIP LOCKED;
            IF NOT FOUND THEN
                busy := coalesce(busy, candidate.instance_name);
                CONTINUE;
            END IF;
            CONTINUE WHEN host.status <> 'ACTIVE' OR host.location <> region OR host.mandelbox_capacity <=
                (SELECT count(*) FROM cloud.mandelbox_info m WHERE m.instance_name = host.instance_name);
            RETURN QUERY
                INSERT INTO cloud.mandelbox_info AS m
                    (mandelbox_id, user_id, instance_name, status, creation_time_utc_unix_ms, session_id, app)
                VALUES (gen_random_uuid()::text, allocate_mandelbox.user_id, host.instance_name, 'ALLOCATED',
                        extract(epoch FROM clock_timestamp()) * 1000, allocate_mandelbox.session_id,
                        allocate_mandelbox.app)
                RETURNING m.mandelbox_id, m.instance_name, host.ip;
            RETURN;
        END LOOP;
        -- All that looked as if they had room are full now.
        EXIT WHEN busy IS NULL;
        PERFORM FROM cloud.instance_info i WHERE i.instance_name = busy FOR UPDATE;
    END LOOP;
END $$;
