-- Exactly what a host needs. `db migrate` runs this with pubsub.postgres.row_security = true; running it again, or by
-- hand, is harmless. A host's own login role is a member of this one:
--
--   CREATE ROLE "host-1" LOGIN PASSWORD '…' IN ROLE cloud_host;
--   ALTER ROLE "host-1" SET statement_timeout = '10s';
--   ALTER ROLE "host-1" SET idle_in_transaction_session_timeout = '10s';
--   INSERT INTO cloud.host_credentials (role_name, instance_name) VALUES ('host-1', '<instance name>');
DO $$
BEGIN
    CREATE ROLE cloud_host NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;

GRANT USAGE ON SCHEMA cloud TO cloud_host;
GRANT SELECT ON cloud.schema_migrations TO cloud_host;
GRANT SELECT, DELETE ON cloud.instance_info, cloud.mandelbox_info TO cloud_host;
-- Everything but the name.
GRANT UPDATE (ip, location, aws_ami_id, aws_instance_type, cloud_provider_id, commit_hash, gpu_vram_remaining_kb,
              last_updated_utc_unix_ms, mandelbox_capacity, memory_remaining_kb, nanocpus_remaining, status,
              idle_since_utc_unix_ms)
    ON cloud.instance_info TO cloud_host;
GRANT UPDATE (status) ON cloud.mandelbox_info TO cloud_host;
-- Allocating is the control plane's.
REVOKE EXECUTE ON FUNCTION cloud.allocate_mandelbox FROM PUBLIC;
