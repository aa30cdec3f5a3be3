-- Allocates a mandelbox on the fullest active host of the region that has room, and returns it with the address of its
-- host. No row: nobody has room. `app` is null where the host's default is wanted.
--
-- The host's row is locked first and its mandelboxes are counted afterwards, in a statement, and thus a snapshot, of
-- its own: what anybody allocated before is counted, and nobody allocates meanwhile. Hosts that others are allocating
-- on are skipped; only when all that have room are such, one of them is waited for. A host that turns out to be full
-- is given up at once, by the end of its block, so nobody waits while holding what others wait for.
CREATE OR REPLACE FUNCTION cloud.allocate_mandelbox(
    user_id character varying, region character varying, app character varying, session_id character varying
) RETURNS TABLE (mandelbox_id character varying, instance_name character varying, ip character varying)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    candidate record;
    host record;
    busy character varying[];
    waited_for character varying;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'cloud.allocate_mandelbox needs READ COMMITTED: it must see what others have just allocated'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    LOOP
        busy := '{}';
        FOR candidate IN
            SELECT i.instance_name FROM cloud.instance_info i
            CROSS JOIN LATERAL (
                SELECT count(*) AS number FROM cloud.mandelbox_info m WHERE m.instance_name = i.instance_name
            ) taken
            WHERE i.status = 'ACTIVE' AND i.location = region AND taken.number < i.mandelbox_capacity
              AND (waited_for IS NULL OR i.instance_name = waited_for)
            ORDER BY taken.number DESC, i.instance_name
        LOOP
            BEGIN
                IF waited_for IS NULL THEN
                    SELECT i.* INTO host FROM cloud.instance_info i
                        WHERE i.instance_name = candidate.instance_name FOR UPDATE SKIP LOCKED;
                ELSE
                    SELECT i.* INTO host FROM cloud.instance_info i
                        WHERE i.instance_name = candidate.instance_name FOR UPDATE;
                END IF;
                IF NOT FOUND THEN
                    busy := busy || candidate.instance_name;
                ELSIF host.status = 'ACTIVE' AND host.location = region AND host.mandelbox_capacity >
                    (SELECT count(*) FROM cloud.mandelbox_info m WHERE m.instance_name = host.instance_name)
                THEN
                    RETURN QUERY
                        INSERT INTO cloud.mandelbox_info AS m
                            (mandelbox_id, user_id, instance_name, status, creation_time_utc_unix_ms, session_id, app)
                        VALUES (gen_random_uuid()::text, allocate_mandelbox.user_id, host.instance_name, 'ALLOCATED',
                                extract(epoch FROM clock_timestamp()) * 1000, allocate_mandelbox.session_id,
                                allocate_mandelbox.app)
                        RETURNING m.mandelbox_id, m.instance_name, host.ip;
                    RETURN;
                ELSE
                    RAISE EXCEPTION 'full' USING ERRCODE = 'CL001';
                END IF;
            EXCEPTION WHEN SQLSTATE 'CL001' THEN
                NULL;
            END;
        END LOOP;
        IF waited_for IS NOT NULL THEN
            -- It was full in the end: look at all of them again.
            waited_for := NULL;
        ELSE
            EXIT WHEN cardinality(busy) = 0;
            -- Any: so that callers wait in as many short lines as there are hosts.
            waited_for := busy[1 + floor(random() * cardinality(busy))::integer];
        END IF;
    END LOOP;
END $$;
